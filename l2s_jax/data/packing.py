"""Examples into rows of one length, and the arrays of those rows; pure numpy.

Lives here: best-fit packing and row building. Not here: what an example is
(`tokens/layouts.py`), order and batches (`data/pipeline.py`).
"""

import bisect
from collections.abc import Sequence

import numpy as np

from l2s_jax.tokens.layouts import Example

Row = dict[str, np.ndarray]  # field of `Batch` → [T]


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Indices of the examples in each row: longest first, each where it leaves least room.

    Best-fit decreasing, the usual heuristic for bin packing (Johnson, 1973).
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(rooms, (lengths[index], -1))
        if at == len(rooms):
            rows.append([index])
            room, row = row_length - lengths[index], len(rows) - 1
        else:
            room, row = rooms.pop(at)
            rows[row].append(index)
            room -= lengths[index]
        bisect.insort(rooms, (room, row))
    return rows


def refuse_overlong(examples: Sequence[Example], row_length: int) -> None:
    """An error that lists the examples that no row can hold; nothing is ever truncated."""
    overlong = [(e.id, e.num_tokens) for e in examples if e.num_tokens > row_length]
    if overlong:
        listed = ", ".join(f"{id} ({num})" for id, num in overlong[:10])
        more = f" and {len(overlong) - 10} more" if len(overlong) > 10 else ""
        longest = max(num for _, num in overlong)
        raise ValueError(
            f"{len(overlong)} of {len(examples)} examples are longer than row_length={row_length}"
            f" tokens: {listed}{more}. Raise row_length to {longest}, or leave them out with"
            f" data.max_tokens={row_length}."
        )


def build_row(examples: Sequence[Example], row_length: int) -> Row:
    """The arrays of one packed row; segment s holds the s-th example, 0 is padding."""
    row = {
        "tokens": np.zeros(row_length, np.int32),
        "targets": np.zeros(row_length, np.int32),
        "weights": np.zeros(row_length, np.float32),
        "positions": np.zeros(row_length, np.int32),
        "segment_ids": np.zeros(row_length, np.int32),
        "branches": np.zeros(row_length, np.int32),
        "easy": np.zeros(row_length, bool),
        "routing": np.zeros(row_length, bool),
    }
    at = 0
    for segment, example in enumerate(examples, start=1):
        here = slice(at, at + example.num_tokens)
        for name in ("tokens", "targets", "weights", "positions", "branches"):
            row[name][here] = getattr(example, name)
        row["segment_ids"][here] = segment
        row["easy"][here] = example.easy
        if example.decision is not None:
            row["routing"][at + example.decision] = True
        at += example.num_tokens
    return row
