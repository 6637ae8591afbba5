"""Which checkpoints of a run stay on disk.

Lives here: `KeepConfig` and its rule, pure. Not here: the deleting (`training/checkpoint.py`).
"""

import dataclasses
import math
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """The newest few stay, and beside them the best few by a metric."""

    newest: int = 2  # 2: where the newest turns out damaged, there is one before it
    best: int = 0
    metric: str | None = None  # a name in metrics.jsonl
    largest: bool = True  # the best is the largest; False: the smallest, as for a loss

    def __post_init__(self):
        if self.newest < 1 or self.best < 0:
            raise ValueError(
                f"KeepConfig.newest={self.newest}, best={self.best}: at least 1 and 0. A run that"
                " keeps no checkpoint cannot be resumed."
            )
        if (self.best > 0) != (self.metric is not None):
            raise ValueError(
                f"KeepConfig.best={self.best}, metric={self.metric!r}: the best are found by a"
                " metric. Give both, or neither."
            )

    def check(self, metrics: Mapping[str, float]) -> None:
        """Refuses metrics among which the asked one is missing."""
        if self.metric is not None and self.metric not in metrics:
            raise ValueError(
                f"KeepConfig.metric={self.metric!r} is none of this run's: {', '.join(metrics)}."
            )

    def stay(self, values: Mapping[int, float | None]) -> set[int]:
        """The steps that stay, of step → its metric's value; of equal ones the newer is better."""
        sign = 1 if self.largest else -1
        known = [step for step, v in values.items() if v is not None and not math.isnan(v)]
        ranked = sorted(known, key=lambda step: (sign * (values[step] or 0.0), step))
        best = ranked[len(ranked) - self.best :] if self.best else []
        return {*sorted(values)[-self.newest :], *best}
