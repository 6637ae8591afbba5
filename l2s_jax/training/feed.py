"""What a run of stage 1 is fed, and what it is not.

Lives here: the held-out items, the report in `data.json`, what went through the model. Not here:
the items (`training/curated.py`), packing and order (`data`).
"""

import json
import pathlib
from typing import Any

import numpy as np

from l2s_jax.data.mixing import MixedBatches
from l2s_jax.data.pipeline import Batches
from l2s_jax.data.split import split
from l2s_jax.data.store import replace_file
from l2s_jax.model.config import ModelConfig
from l2s_jax.tokens.layouts import Example
from l2s_jax.training.hosts import is_first
from l2s_jax.training.speed import Clock, training_flops
from l2s_jax.training.validation import ValidationConfig
from l2s_jax.types import Batch

FILE = "data.json"


def hold_out(
    cfg: ValidationConfig | None, examples: list[Example]
) -> tuple[list[Example], list[Example]]:
    """(trained on, held out)."""
    if cfg is None:
        return examples, []
    kept, held_out = split(examples, fraction=cfg.fraction, seed=cfg.seed)
    if not kept or not held_out:
        raise ValueError(
            f"SftRun.validation.fraction={cfg.fraction} holds out {len(held_out)} of"
            f" {len(examples)} items. Change it, or validation.seed; or set validation=null."
        )
    return kept, held_out


def report_data(
    workdir: pathlib.Path,
    kept: list[Example],
    held_out: list[Example],
    left_out: list[str],
    batches: Batches | MixedBatches,
) -> None:
    """Writes what the run is trained on, and the ids of the items that it is not."""
    if not is_first():
        return
    report: dict[str, Any] = {
        "num_examples": len(kept),
        "num_easy": sum(example.easy for example in kept),
        "num_tokens": sum(example.num_tokens for example in kept),
        "num_rows": batches.num_rows,
        "filled": batches.fill,
        "held_out": [example.id for example in held_out],
        "too_long": left_out,
    }
    replace_file(workdir / FILE, json.dumps(report, indent=2).encode())


class Work:
    """What went through the model since the clock's last lap."""

    def __init__(self, model: ModelConfig):
        self._model = model
        self._steps, self._tokens, self._lengths = 0, 0, []

    def add(self, batch: Batch) -> None:
        """Takes up a step's batch, while it lies on the host."""
        self._steps += 1
        self._tokens += batch.tokens.size
        for segments in batch.segment_ids:
            self._lengths += [int(n) for n in np.bincount(segments)[1:] if n]

    def lap(self, clock: Clock) -> dict[str, float]:
        """How fast it was, per step; a segment with branches counts as one sequence."""
        numbers = clock.lap(
            tokens=self._tokens,
            useful_tokens=sum(self._lengths),
            flops=training_flops(self._model, self._lengths),
            steps=self._steps,
        )
        self._steps, self._tokens, self._lengths = 0, 0, []
        return numbers
