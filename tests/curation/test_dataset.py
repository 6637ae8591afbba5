import json

import datasets
import pytest

from l2s_jax.curation import dataset
from l2s_jax.curation.dataset import dataset_card, write_dataset
from l2s_jax.types import Item

SUMMARY = {
    "num_items": 3,
    "num_easy": 2,
    "easy_share": 2 / 3,
    "acceptance_by_teacher": {
        "a|b": {"tried": 4, "right": 3, "share": 0.75, "chosen": 2, "tokens": 12.5}
    },
    "tokens": dict.fromkeys(
        ("long", "long_of_easy", "short"), dict.fromkeys(("mean", "median", "p90", "max"), 7.0)
    ),
    "rejections": {"longer": 1},
    "hygiene": {"same": 2, "questions": 1},
    "num_bad_lines": 1,
    "unused_rows": {"without-reference": 5},
}


def item(number, short=True):
    fixed = {"question": "wie viel?\n é", "reference": "4", "long": "a\nb", "long_answer": "4"}
    more = {"short": "c", "short_answer": "4"} if short else {}
    return Item(id=str(number), level=number or None, num_trials=2, num_right=1, **fixed, **more)


def record(number, outcome):
    return {
        "id": str(number),
        "level": number or None,
        "outcome": outcome,
        "dropped": "long-missing" if outcome == "dropped" else None,
        "long_teacher": "L",
        "long_tokens": 9,
        "long_verdict": "same-text",
        "num_trials": 2,
        "num_right": 1,
        "pass_rate": 0.5,
        "short_teacher": "a|b",
        "short_tokens": 3,
        "candidate_teachers": ["a|b", "a|b"],
        "candidate_tokens": [3, 4],
        "candidate_fates": ["kept", "longer"],
    }


ITEMS = [item(0), item(1, short=False), item(2)]
RECORDS = [record(0, "easy"), record(1, "kept-regular"), record(2, "easy"), record(3, "dropped")]


def load(folder, cache, *config):
    return datasets.load_dataset(
        str(folder), *config, split="train", cache_dir=str(cache)
    ).to_list()


@pytest.mark.parametrize("shard_rows", [2, 100])
def test_datasets_loads_what_was_written(tmp_path, monkeypatch, shard_rows):
    monkeypatch.setattr(dataset, "SHARD_ROWS", shard_rows)
    folder = tmp_path / "dataset"
    write_dataset(folder, ITEMS, RECORDS, dataset_card(SUMMARY, {"seed": 1}))
    rows = load(folder, tmp_path / "cache")
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert [row["easy"] for row in rows] == [True, False, True]
    assert rows[0]["question"] == ITEMS[0].question and rows[0]["level"] is None
    assert (rows[0]["short"], rows[0]["short_tokens"], rows[0]["pass_rate"]) == ("c", 3, 0.5)
    assert (rows[1]["short"], rows[1]["short_teacher"], rows[1]["short_tokens"]) == (None,) * 3
    assert load(folder, tmp_path / "cache", "questions") == RECORDS


def test_columns_that_are_empty_throughout_keep_their_type(tmp_path):
    """Two sets of regular items only can be put together with one of EASY items."""
    regular = [item(0, short=False)]
    records = [record(0, "regular") | {"short_teacher": None, "short_tokens": None, "level": None}]
    write_dataset(tmp_path / "a", regular, records, dataset_card(SUMMARY, {}))
    write_dataset(tmp_path / "b", ITEMS, RECORDS, dataset_card(SUMMARY, {}))
    features = [
        datasets.load_dataset(
            str(tmp_path / name), split="train", cache_dir=str(tmp_path / "cache")
        ).features
        for name in "ab"
    ]
    assert features[0] == features[1]


def test_writing_again_leaves_the_same_bytes_and_no_old_shard(tmp_path, monkeypatch):
    card = dataset_card(SUMMARY, {})
    monkeypatch.setattr(dataset, "SHARD_ROWS", 1)
    write_dataset(tmp_path, ITEMS, RECORDS, card)
    assert len(list((tmp_path / "items").iterdir())) == 3
    monkeypatch.setattr(dataset, "SHARD_ROWS", 100)
    for _ in range(2):
        write_dataset(tmp_path, ITEMS, RECORDS, card)
        files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        bytes_now = [path.read_bytes() for path in files]
    write_dataset(tmp_path, ITEMS, RECORDS, card)
    assert [path.read_bytes() for path in files] == bytes_now
    assert [path.name for path in files if path.parent.name == "items"] == [
        "train-00000-of-00001.parquet"
    ]


def test_the_card_says_what_the_set_is():
    card = dataset_card(SUMMARY, {"tokenizer": "T"})
    assert "3 items, 2 of them EASY (66.7 %)" in card
    assert "| a b | 4 | 3 | 75.0 % | 2 | 12 |" in card  # no bar breaks the table
    assert "| longer | 1 |" in card and "| same | 2 |" in card
    assert "1 lines of the source could not be read" in card
    assert "without-reference: 5" in card
    assert json.dumps({"tokenizer": "T"}, indent=2) in card
