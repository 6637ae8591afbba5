"""Fields of a record, checked; an error names the place, the field, its value and what to do.

Lives here: texts, levels and problems out of one JSON object. Not here: reading files
(`data/jsonl.py`, `data/rows.py`).
"""

import math
import pathlib
from typing import Any, TypeVar

from l2s_jax.data.jsonl import Ids
from l2s_jax.types import Problem

T = TypeVar("T")


def text_of(record: dict[str, Any], field: str, where: str) -> str:
    """The non-empty string of a field. Numbers are taken as their digits (ids, answers)."""
    if field not in record:
        raise ValueError(f"{where}: has no field {field!r}, only {', '.join(sorted(record))}.")
    value = record[field]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {field}={value!r} must be a text that is not empty.")
    return value


def level_of(record: dict[str, Any], field: str | None, where: str) -> int | None:
    """The whole number of a field; None where it is missing or null."""
    value = None if field is None else record.get(field)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value != int(value):
        raise ValueError(
            f"{where}: {field}={value!r} is not a whole number."
            " Set the source's level=null to read the problems without levels."
        )
    return int(value)


def problem_of(
    record: dict[str, Any], id: str, where: str, *, question: str, answer: str, level: str | None
) -> Problem:
    """The problem in a record; the last three name its fields."""
    return Problem(
        id=id,
        question=text_of(record, question, where),
        answer=text_of(record, answer, where),
        level=level_of(record, level, where),
    )


def claim_id(ids: Ids, record: dict[str, Any], field: str, line: int) -> str:
    """The id of a record, which no earlier one may have."""
    return ids.claim(text_of(record, field, f"{ids.path}:{line}"), field, line)


def not_empty(records: list[T], path: str | pathlib.Path) -> list[T]:
    """The records; ValueError where there are none."""
    if not records:
        raise ValueError(f"{path}: holds no record. Give a file with at least one line.")
    return records
