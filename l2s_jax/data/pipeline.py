"""Packed batches by step: a pure function of (examples, seed, step).

Lives here: `Batches`, on grain's random-access datasets, and `in_turn`, every row once. Not here:
packing (`data/packing.py`), a mix of two kinds of items (`data/mixing.py`).

Because batch number `step` can be asked for by its number, the whole state of the input is the
step itself: resuming needs nothing else, and no row is lost or repeated. Rows are laid out when
they are asked for, so that the examples are held once. No worker processes: a batch takes
8 ms to lay out (16 rows of 16,384), while the device is at work on the one before.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import grain
import numpy as np

from l2s_jax.data.packing import Row, build_row, pack, refuse_overlong
from l2s_jax.tokens.layouts import Example
from l2s_jax.types import Batch

T = TypeVar("T")
Bin = list[Example]  # the examples of one row


class Rows:
    """`rows[n]`: examples are packed once, and the rows shuffled anew in every epoch."""

    def __init__(self, examples: Sequence[Example], *, row_length: int, seed: int):
        refuse_overlong(examples, row_length)
        # Shuffle before packing, so that rows of equal lengths mix sources and levels.
        order = np.random.default_rng(seed).permutation(len(examples))
        self.row_length = row_length
        self.bins = bins_of([examples[i] for i in order], row_length)
        self.num_tokens = sum(e.num_tokens for e in examples)
        self._dataset = grain.MapDataset.source(self.bins).seed(seed).shuffle().repeat()

    def __len__(self) -> int:
        return len(self.bins)

    def __getitem__(self, number: int) -> Row:
        """Row `number` of an endless row of epochs."""
        bin = self._dataset[number]
        assert bin is not None, "no transformation here filters"
        return build_row(bin, self.row_length)


class Batches:
    """`batches[step]`: the next rows, whatever kinds of items they hold."""

    def __init__(self, examples: Sequence[Example], *, row_length: int, batch_rows: int, seed: int):
        self._rows, self._batch_rows = Rows(examples, row_length=row_length, seed=seed), batch_rows
        self.num_rows = len(self._rows)
        if self.num_rows < batch_rows:
            raise ValueError(
                f"{len(examples)} examples fill {self.num_rows} rows of {row_length} tokens, fewer"
                f" than one batch of {batch_rows}. Lower batch_rows or row_length, or add items."
            )
        self.fill = self._rows.num_tokens / (self.num_rows * row_length)

    def __getitem__(self, step: int) -> Batch:
        first = step * self._batch_rows
        return stack([self._rows[first + k] for k in range(self._batch_rows)])

    def start(self) -> None:
        """This input has no state but the step."""

    def draw(self, step: int, mix: T) -> tuple[Batch, T]:
        """The step's batch, and the state as it was (`MixedBatches` changes it)."""
        return self[step], mix


def bins_of(examples: Sequence[Example], row_length: int) -> list[Bin]:
    """The examples of each packed row."""
    bins = pack([e.num_tokens for e in examples], row_length)
    return [[examples[i] for i in bin] for bin in bins]


def in_turn(examples: Sequence[Example], *, row_length: int, batch_rows: int) -> Iterator[Batch]:
    """Every example once, in batches of one size; empty rows fill the last one."""
    refuse_overlong(examples, row_length)
    bins = bins_of(examples, row_length)
    bins += [[]] * (-len(bins) % batch_rows)
    for first in range(0, len(bins), batch_rows):
        yield stack([build_row(bin, row_length) for bin in bins[first : first + batch_rows]])


def stack(rows: Sequence[Row]) -> Batch:
    """The rows as one batch, with its denominator."""
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Batch(**arrays, num_tokens=np.float32(arrays["weights"].sum()))
