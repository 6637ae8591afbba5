"""What a loop does about steps that were skipped.

Lives here: `Guard`, which saves the batches of such steps and ends a run that makes too many in a
row. Not here: the decision to skip, which is inside the compiled step (`training/step.py`).
"""

import dataclasses
import io
import pathlib
import sys
from typing import Any

import numpy as np

from l2s_jax.data.store import replace_file
from l2s_jax.training.hosts import is_first, whole
from l2s_jax.types import Metrics

FOLDER = "skipped"


class Guard:
    """Looks at every step's metrics one step late, so that the device never waits for the host."""

    def __init__(self, workdir: pathlib.Path, max_skips: int):
        self._folder = workdir / FOLDER
        self._max_skips = max_skips
        self._held: tuple[int, Any, Metrics] | None = None

    def watch(self, step: int, batch: Any, metrics: Metrics) -> None:
        """Takes up a step that has been started, and looks at the one before it.

        Args:
          step: steps taken, this one included.
        """
        before, self._held = self._held, (step, batch, metrics)
        self._look(before)

    def settle(self) -> None:
        """Looks at the last step; call it before a checkpoint is written."""
        before, self._held = self._held, None
        self._look(before)

    def _look(self, held: tuple[int, Any, Metrics] | None) -> None:
        if held is None:
            return
        step, batch, metrics = held
        if not metrics["skipped"]:
            return
        path = self._folder / f"step_{step:06}.npz"
        save_batch(path, batch)
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        what = f"step {step} was skipped: loss={loss}, grad_norm={norm}; its batch is {path}"
        in_a_row = int(metrics["skips_in_a_row"])
        if in_a_row < self._max_skips:
            print(what, file=sys.stderr)
            return
        raise FloatingPointError(
            f"{what}. It is number {in_a_row} in a row, and max_skips={self._max_skips}. The"
            " parameters are as they were before these steps. Look for numbers that are not finite"
            " in those batches; if there are none, lower optim.peak_lr and start from an earlier"
            " checkpoint, or raise max_skips."
        )


def save_batch(path: pathlib.Path, batch: Any) -> None:
    """Writes the arrays of a batch under the names of its fields; all hosts must come here."""
    arrays: dict[str, Any] = {
        field.name: whole(getattr(batch, field.name))
        for field in dataclasses.fields(batch)
        if getattr(batch, field.name) is not None
    }
    if not is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    replace_file(path, content.getvalue())
