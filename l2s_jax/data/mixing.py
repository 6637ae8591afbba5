"""Batches whose share of EASY items changes during a run.

Lives here: `MixedBatches`, and `Mix`, the state of such an input. Not here: what share is right
(`training/reweighting.py`), batches with whatever share the items have (`data/pipeline.py`).

EASY and regular items are packed into rows of their own, and a batch takes so many rows of each.
How many were taken before depends on the shares before, so the state is more than the step: `Mix`
goes into the checkpoint's record, and a resumed run draws the same rows again.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from l2s_jax.data.pipeline import Rows, stack
from l2s_jax.tokens.layouts import Example
from l2s_jax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """What share of rows is EASY from here on, and which rows come next."""

    easy_share: float
    easy_rows: int = 0  # taken so far
    regular_rows: int = 0
    owed: float = 0.0  # of an EASY row, carried over: shares of a row add up over batches

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Mix":
        """The mix that `dataclasses.asdict` gave; JSON keeps every bit of a float."""
        return cls(**record)


class MixedBatches:
    """`draw(step, mix)`: the next batch, and the mix after it."""

    def __init__(self, examples: Sequence[Example], *, row_length: int, batch_rows: int, seed: int):
        self._batch_rows = batch_rows
        easy = [example for example in examples if example.easy]
        regular = [example for example in examples if not example.easy]
        if not easy or not regular:
            raise ValueError(
                f"{len(easy)} EASY items and {len(regular)} regular ones: there is nothing to mix."
                " Set mixing=null, or curate items of both kinds."
            )
        self._easy = Rows(easy, row_length=row_length, seed=seed)
        self._regular = Rows(regular, row_length=row_length, seed=seed + 1)
        self.num_rows = len(self._easy) + len(self._regular)
        num_tokens = self._easy.num_tokens + self._regular.num_tokens
        self.fill = num_tokens / (self.num_rows * row_length)

    def start(self) -> Mix:
        """The mix that the items themselves have."""
        return Mix(easy_share=len(self._easy) / self.num_rows)

    def draw(self, step: int, mix: Mix | None) -> tuple[Batch, Mix]:
        """The step's batch; all that it depends on is in `mix`."""
        assert mix is not None, "begin with start()"
        wanted = mix.owed + mix.easy_share * self._batch_rows
        num_easy = min(int(wanted), self._batch_rows)
        num_regular = self._batch_rows - num_easy
        rows = [self._easy[mix.easy_rows + k] for k in range(num_easy)]
        rows += [self._regular[mix.regular_rows + k] for k in range(num_regular)]
        after = dataclasses.replace(
            mix,
            easy_rows=mix.easy_rows + num_easy,
            regular_rows=mix.regular_rows + num_regular,
            owed=wanted - num_easy,
        )
        return stack(rows), after
