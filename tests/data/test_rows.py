import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from l2s_jax.data.rows import scan_rows

ROWS = [
    {"id": str(i), "turns": [{"from": "user", "value": f"{i}?"}], "level": i or None}
    for i in range(5)
]


def test_one_set_however_it_is_stored(tmp_path):
    lines, parquet = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), parquet, row_group_size=2)
    loadable, saved, split = tmp_path / "loadable", tmp_path / "saved", tmp_path / "split"
    loadable.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), loadable / "train-00000-of-00001.parquet")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(saved))
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(str(split))
    for path in (lines, parquet, loadable, saved, split):
        expected = [(f"{path}:{number}", row) for number, row in enumerate(ROWS, start=1)]
        assert list(scan_rows(str(path))) == expected


def test_what_is_not_there_or_not_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(scan_rows(str(tmp_path / "nowhere.parquet")))
    torn = tmp_path / "torn.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), torn)
    torn.write_bytes(torn.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"torn\.parquet: not a whole parquet file"):
        list(scan_rows(str(torn)))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"empty: `datasets` cannot load it"):
        list(scan_rows(str(empty)))
    only_test = tmp_path / "only_test"
    datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS)).save_to_disk(str(only_test))
    with pytest.raises(ValueError, match="has the splits test, not train"):
        list(scan_rows(str(only_test)))


def test_a_set_of_the_hub_that_cannot_be_reached():
    """Tests are offline; the message names what was asked for."""
    with pytest.raises(ValueError, match="hf:nobody/nothing"):
        list(scan_rows("hf:nobody/nothing#config"))
