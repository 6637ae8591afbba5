"""What a run does not train on, looked at every so many steps.

Lives here: `ValidationConfig`, and `Validation`, which scores the held-out items. Not here: which
items those are (`data/split.py`), the sums (`objectives/route_sums.py`), answers that the policy
writes itself (`training/reweighting.py`, `evaluation`).

`validation.json` in the workdir has the last look in full; the metrics have every one.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from l2s_jax.data.store import replace_file
from l2s_jax.objectives.route_sums import PREFIX, confusion, readable
from l2s_jax.training.hosts import is_first
from l2s_jax.training.state import TrainState
from l2s_jax.training.step import place_batch
from l2s_jax.types import Batch, Metrics

FILE = "validation.json"
NAMED = "validation/"  # before its names in the metrics

Score = Callable[[Any, Any, Batch], Metrics]
"""`score(trained, frozen, batch)`: the loss's metrics, among them its sums."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Which share of the items is held out, and how often it is looked at."""

    fraction: float = 0.01
    every: int = 100  # steps; the last step is looked at in any case
    seed: int = 0  # of the choice, apart from the run's: two runs may share their held-out items

    def __post_init__(self):
        if not 0 < self.fraction < 1:
            raise ValueError(
                f"ValidationConfig.fraction={self.fraction}: a share of the items, between 0 and 1."
                " To hold out none, set validation=null."
            )
        if self.every < 1 or self.seed < 0:
            raise ValueError(
                f"ValidationConfig.every={self.every}, seed={self.seed}: at least 1 and 0."
            )


class Validation:
    """The held-out items of a run."""

    def __init__(
        self,
        cfg: ValidationConfig,
        batches: list[Batch],
        num_items: int,
        score: Score,
        workdir: pathlib.Path,
    ):
        self._cfg, self._batches, self._num_items = cfg, batches, num_items
        self._score, self._workdir = score, workdir

    def is_due(self, step: int) -> bool:
        return step % self._cfg.every == 0

    def look(self, step: int, state: TrainState, places: TrainState) -> dict[str, float]:
        """The scores by their names in the metrics; the table of choices goes to the file."""
        total: dict[str, float] = {}
        for batch in self._batches:
            sums = self._score(state.params, state.frozen, place_batch(batch, places))
            for name, value in jax.device_get(sums).items():
                if name.startswith(PREFIX):
                    total[name] = total.get(name, 0.0) + float(value)
        scores = readable(total) | {"loss": mean_loss(total)}
        table = confusion(total)
        if is_first():
            report = {"step": step, "num_items": self._num_items} | scores | {"choices": table}
            content = json.dumps(report, indent=2).encode()
            replace_file(self._workdir / FILE, content)
        told = {f"{r}_as_{c}": float(n) for r, row in table.items() for c, n in row.items()}
        return {NAMED + name: value for name, value in (scores | told).items()}


def mean_loss(sums: dict[str, float]) -> float:
    """The loss over all items: weighted likelihood by weight."""
    nll, weight = (
        sum(sums[f"{PREFIX}{what}_{kind}"] for kind in ("easy", "regular"))
        for what in ("nll", "weight")
    )
    return nll / weight
