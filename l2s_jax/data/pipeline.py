"""Packed batches by step: a pure function of (examples, seed, step).

Lives here: `Batches`, on grain's random-access datasets. Not here: packing
(`data/packing.py`). Because batch number `step` can be asked for by its number, the whole state
of the input is the step itself: resuming needs nothing else, and no row is lost or repeated.
"""

from collections.abc import Sequence

import grain
import numpy as np

from l2s_jax.data.packing import Row, build_row, pack, refuse_overlong
from l2s_jax.tokens.layouts import Example
from l2s_jax.types import Batch


class Batches:
    """`batches[step]`: rows are packed once, and shuffled anew in every epoch."""

    def __init__(self, examples: Sequence[Example], *, row_length: int, batch_rows: int, seed: int):
        refuse_overlong(examples, row_length)
        # Shuffle before packing, so that rows of equal lengths mix sources and levels.
        order = np.random.default_rng(seed).permutation(len(examples))
        shuffled = [examples[i] for i in order]
        bins = pack([e.num_tokens for e in shuffled], row_length)
        if len(bins) < batch_rows:
            raise ValueError(
                f"{len(examples)} examples fill {len(bins)} rows of {row_length} tokens, fewer"
                f" than one batch of {batch_rows}. Lower batch_rows or row_length, or add items."
            )
        self.rows = [build_row([shuffled[i] for i in bin], row_length) for bin in bins]
        self.num_rows = len(self.rows)
        self.fill = sum(e.num_tokens for e in examples) / (self.num_rows * row_length)
        dataset = grain.MapDataset.source(self.rows).seed(seed).shuffle().repeat()
        self._dataset = dataset.batch(batch_rows, batch_fn=_stack)

    def __getitem__(self, step: int) -> Batch:
        batch = self._dataset[step]
        assert batch is not None, "no transformation here filters"
        return batch


def _stack(rows: Sequence[Row]) -> Batch:
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Batch(**arrays, num_tokens=np.float32(arrays["weights"].sum()))
