"""The curated items as a data set that `datasets.load_dataset(folder)` loads.

Lives here: parquet files of the items and of the record of every question, and the card that
names them. Not here: the item store that training reads (`data/store.py`), what the records hold
(`curation/summary.py`).

The folder can be uploaded to the Hub as it is. Files are replaced whole, the card last; the same
items give the same bytes.
"""

import dataclasses
import io
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from l2s_jax.data.store import replace_file
from l2s_jax.types import Item

SHARD_ROWS = 16_384  # long traces of 20 KB each: 300 MB before compression
ROW_GROUP = 1024

_TEXTS, _NUMBERS = pa.list_(pa.string()), pa.list_(pa.int64())
# Written out, as a column that is empty throughout has no type of its own.
QUESTIONS = pa.schema(
    [
        ("id", pa.string()),
        ("level", pa.int64()),
        ("outcome", pa.string()),
        ("dropped", pa.string()),
        ("long_teacher", pa.string()),
        ("long_tokens", pa.int64()),
        ("long_verdict", pa.string()),
        ("num_trials", pa.int64()),
        ("num_right", pa.int64()),
        ("pass_rate", pa.float64()),
        ("short_teacher", pa.string()),
        ("short_tokens", pa.int64()),
        ("candidate_teachers", _TEXTS),
        ("candidate_tokens", _NUMBERS),
        ("candidate_fates", _TEXTS),
    ]
)
_ITEM_TYPES = {"level": pa.int64(), "num_trials": pa.int64(), "num_right": pa.int64()}
_OF_QUESTION = ("pass_rate", "long_teacher", "long_tokens", "short_teacher", "short_tokens")
ITEMS = pa.schema(
    [(field.name, _ITEM_TYPES.get(field.name, pa.string())) for field in dataclasses.fields(Item)]
    + [("easy", pa.bool_())]
    + [QUESTIONS.field(name) for name in _OF_QUESTION]
)


def write_dataset(
    folder: pathlib.Path,
    items: Sequence[Item],
    records: Sequence[Mapping[str, Any]],
    card: str,
) -> None:
    """Writes `items/`, `questions/` and `README.md` into `folder`."""
    by_id = {record["id"]: record for record in records}
    rows = [_item_row(item, by_id[item.id]) for item in items]
    _write_parquet(folder / "items", rows, ITEMS)
    _write_parquet(folder / "questions", records, QUESTIONS)
    replace_file(folder / "README.md", card.encode())


def _item_row(item: Item, record: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: record[name] for name in _OF_QUESTION}
    if not item.is_easy:  # one that was kept regular has a short path on record, not in the set
        known |= {"short_teacher": None, "short_tokens": None}
    return dataclasses.asdict(item) | {"easy": item.is_easy} | known


def _write_parquet(
    folder: pathlib.Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, max(len(rows), 1), SHARD_ROWS)
    names = [f"train-{number:05d}-of-{len(starts):05d}.parquet" for number in range(len(starts))]
    for start, name in zip(starts, names, strict=True):
        table = pa.Table.from_pylist(list(rows[start : start + SHARD_ROWS]), schema=schema)
        content = io.BytesIO()
        pq.write_table(table, content, row_group_size=ROW_GROUP, compression="zstd")
        replace_file(folder / name, content.getvalue())
    for path in folder.glob("train-*.parquet"):
        if path.name not in names:
            path.unlink()


# ---- the card ----


def dataset_card(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The text of README.md: front matter, what the set holds, and how it was made."""
    number = summary["num_items"]
    parts = [
        _front_matter(number),
        "# Long and short reasoning on the same questions\n\n"
        f"{number:,} items, {summary['num_easy']:,} of them EASY"
        f" ({100 * summary['easy_share']:.1f} %): beside a verified long chain of thought they"
        " have a short one, the shortest verified candidate. Made by `l2s curate`"
        " (AutoL2S, arXiv 2505.22662) for supervised fine-tuning of models that choose between the"
        " two.\n\n"
        "Licence: that of the questions and of the teachers' outputs. Name it here, and in the"
        " front matter, before you publish the set.",
        "```python\nfrom datasets import load_dataset\n\n"
        'items = load_dataset(FOLDER, split="train")\n'
        'questions = load_dataset(FOLDER, "questions", split="train")\n```',
        _FIELDS,
        "## Teachers\n\n" + _teacher_table(summary["acceptance_by_teacher"]),
        "## Tokens of the items\n\n" + _token_table(summary["tokens"]),
        "## What was left out\n\n" + _left_out(summary),
        "## How it was made\n\n```json\n" + json.dumps(config, indent=2) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


_FIELDS = """## Fields

Configuration `items`, one row per item: `question`, `reference` (the known answer), `long` and
`long_answer` (thought and answer text of the long path), `short` and `short_answer` (null in
regular items), `easy`, `level`, `num_trials` (short candidates that were verified) and `num_right`,
`pass_rate`, the teachers, and the lengths of both paths in tokens of the student.

Configuration `questions`, one row per question that was asked, those without an item too:
`outcome` (easy, regular, kept-regular, dropped) and `dropped` (why), the verdict on the long trace,
and for every candidate its teacher, its tokens and its fate (kept, or why not)."""


def _front_matter(number: int) -> str:
    sizes = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
    size = next((name for bound, name in sizes if number < bound), "n>1M")
    configs = "".join(
        f"- config_name: {name}\n{more}  data_files:\n  - split: train\n"
        f"    path: {name}/train-*.parquet\n"
        for name, more in (("items", "  default: true\n"), ("questions", ""))
    )
    return (
        "---\npretty_name: Long and short reasoning\ntask_categories:\n- text-generation\n"
        f"tags:\n- reasoning\n- l2s\nsize_categories:\n- {size}\nconfigs:\n{configs}---"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}"
    return re.sub(r"[|\n]", " ", "–" if value is None else str(value))


def _teacher_table(teachers: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, t["tried"], t["right"], f"{100 * t['share']:.1f} %", t["chosen"], t["tokens"]]
        for name, t in teachers.items()
    ]
    head = ["teacher", "verified", "right", "share", "in the items", "mean tokens"]
    return _table(head, rows) if rows else "No trace was verified."


def _token_table(tokens: Mapping[str, Mapping[str, Any]]) -> str:
    names = {"long": "long", "long_of_easy": "long, of EASY items", "short": "short"}
    rows = [[names[path], *tokens[path].values()] for path in names]
    return _table(["path", "mean", "median", "90th percentile", "maximum"], rows)


def _left_out(summary: Mapping[str, Any]) -> str:
    rows = [[name, number] for name, number in summary["rejections"].items()]
    rules = [[rule, number] for rule, number in summary["hygiene"].items() if rule != "questions"]
    parts = [
        _table(["traces, by reason", "number"], rows) if rows else "No trace.",
        _table(["questions, by rule of hygiene", "pairs"], rules)
        if rules
        else "No question was a copy of another, as far as was looked for.",
    ]
    if summary["num_bad_lines"]:
        parts.append(f"{summary['num_bad_lines']} lines of the source could not be read.")
    unused = [f"{what}: {number}" for what, number in summary["unused_rows"].items()]
    if unused:
        parts.append(f"Rows of the source that were of no use: {', '.join(unused)}.")
    return "\n\n".join(parts)
