"""The records of a file or data set, however it is stored, each with its place.

Lives here: JSON lines, parquet files, folders that the `datasets` library wrote or can load, and
data sets of the Hub. Not here: what the fields mean (`data/recorded.py`).
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from l2s_jax.data.jsonl import Fault, scan_jsonl

HUB = "hf:"
BATCH_ROWS = 256  # parquet rows held at once


def scan_rows(path: str) -> Iterator[tuple[str, dict[str, Any] | Fault]]:
    """("path:number", record or fault) of every row, the first being 1, or line.

    Args:
      path: a file of JSON lines or in parquet, a folder, or `hf:owner/name`, `hf:owner/name#config`
        of a data set on the Hub. Of a data set with splits, `train`.
    """
    if path.startswith(HUB):
        name, _, config = path.removeprefix(HUB).partition("#")
        rows = _load(name, config or None, path)
    elif pathlib.Path(path).is_dir():
        rows = _read_folder(path)
    elif path.endswith(".parquet"):
        rows = _read_parquet(path)
    else:
        yield from ((f"{path}:{line}", record) for line, record in scan_jsonl(path))
        return
    for number, row in enumerate(rows, start=1):
        yield f"{path}:{number}", row


def _read_parquet(path: str) -> Iterator[dict[str, Any]]:
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file. Give the path of a parquet file.")
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from batch.to_pylist()
    except pa.ArrowException as error:  # pyarrow's errors are ValueErrors or OSErrors by turns
        raise ValueError(
            f"{path}: not a whole parquet file ({error}). Download or write it again."
        ) from None


def _read_folder(path: str) -> Iterator[dict[str, Any]]:
    import datasets  # takes seconds to import, and most runs read files

    folder = pathlib.Path(path)
    if not (folder / "state.json").is_file() and not (folder / "dataset_dict.json").is_file():
        return _load(path, None, path)
    saved = datasets.load_from_disk(path)
    if isinstance(saved, datasets.DatasetDict):
        if "train" not in saved:
            splits = ", ".join(map(str, saved))
            raise ValueError(f"{path}: has the splits {splits}, not train. Give the folder of one.")
        saved = saved["train"]
    return iter(saved)  # type: ignore[return-value]


def _load(name: str, config: str | None, path: str) -> Iterator[dict[str, Any]]:
    """Rows of what `datasets.load_dataset` finds under a name, streamed: no second copy on disk."""
    import datasets

    try:
        rows = datasets.load_dataset(name, config, split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: `datasets` cannot load it ({error}). Give a file, a folder of parquet or JSON"
            " lines, or hf:owner/name with #config where it has several."
        ) from None
    return iter(rows)  # type: ignore[return-value]
