"""What a policy writes while it is trained: a few rollouts of every route, as JSON lines.

Lives here: which rollouts are kept, and how they are cut. Not here: the file and its escapes
(`training/metrics.py`), the answers of an evaluation (`evaluation/records.py`).
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, get_args

from l2s_jax.training.metrics import StepLines
from l2s_jax.types import Rollout, Route

FILE = "completions.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionsConfig:
    """How much of what is sampled is kept to be read."""

    every: int = 10  # steps; 0 keeps nothing
    per_route: int = 2  # rollouts of each route
    max_chars: int = 4000  # of a text: its beginning and its end

    def __post_init__(self):
        if self.every < 0:
            raise ValueError(f"CompletionsConfig.every={self.every}: steps, or 0 for never.")
        for name in ("per_route", "max_chars"):
            if getattr(self, name) < 1:
                raise ValueError(f"CompletionsConfig.{name}={getattr(self, name)}: at least 1.")


class CompletionsFile:
    """`completions.jsonl`; no line holds anything that a page or a terminal would obey."""

    def __init__(self, workdir: pathlib.Path, cfg: CompletionsConfig, *, resume_from: int):
        self._cfg = cfg
        self._lines = StepLines(workdir / FILE, resume_from=resume_from)

    def write(
        self, step: int, rollouts: Sequence[Rollout], facts: Sequence[dict[str, Any]]
    ) -> None:
        """Keeps some of a step's rollouts, if it is one of those that keep any.

        Args:
          facts: of each rollout, what else is known: its question, verdict, advantage.
        """
        if not self._cfg.every or step % self._cfg.every:
            return
        for index in chosen(rollouts, self._cfg.per_route):
            rollout = rollouts[index]
            fields = {
                "id": rollout.id,
                "sample": rollout.sample,
                "route": rollout.route,
                "p_easy": rollout.p_easy,
                "num_tokens": rollout.num_tokens,
                "num_forced": int((~rollout.free).sum()),
                "finish_reason": rollout.finish_reason,
            }
            self._lines.write(step, fields | facts[index] | cut(rollout.text, self._cfg.max_chars))

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> "CompletionsFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def chosen(rollouts: Sequence[Rollout], per_route: int) -> list[int]:
    """Some of every route, of different problems first."""
    by_sample = sorted(range(len(rollouts)), key=lambda i: (rollouts[i].sample, i))
    seen: dict[tuple[str, str], int] = {}
    turn = {}
    for index in by_sample:
        key = (rollouts[index].route, rollouts[index].id)
        turn[index] = seen[key] = seen.get(key, -1) + 1
    order = sorted(by_sample, key=lambda i: turn[i])  # stable: a problem's second comes later
    return [
        index
        for route in get_args(Route)
        for index in [i for i in order if rollouts[i].route == route][:per_route]
    ]


def cut(text: str | None, max_chars: int) -> dict[str, Any]:
    """A text's beginning and end, and how many characters between them were left out."""
    if text is None or len(text) <= max_chars:
        return {"text": text, "left_out": 0}
    head, tail = max_chars - max_chars // 2, max_chars // 2
    return {
        "text": text[:head] + " … " + text[len(text) - tail :],
        "left_out": len(text) - max_chars,
    }
