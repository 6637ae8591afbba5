"""Verdicts of a step's rollouts, decided while others of them are still being sampled.

Lives here: the thread that hands rollouts to the verifier as they end. Not here: the decision and
its worker processes (`verify/math.py`), who is right (`training/rollouts.py`).

A verdict depends on its rollout alone, so that nobody can tell from it when it was made.
"""

import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from typing import Any

from l2s_jax.training.rollouts import judge
from l2s_jax.types import Rollout
from l2s_jax.verify.math import Verifier

LOOK_SECONDS = 0.1  # between two questions whether anybody still waits for the verdicts


class Left(Exception):
    """Nobody waits for the verdicts any more."""


class Judging:
    """Judges the rollouts of one call of the sampler; leaving the context ends what is at work."""

    def __init__(self, references: dict[str, str], verifier: Verifier):
        self._references, self._verifier = references, verifier
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="judging")
        self._left = threading.Event()
        self._taken: list[tuple[Sequence[Rollout], concurrent.futures.Future[list[bool]]]] = []

    def take(self, rollouts: Sequence[Rollout]) -> None:
        """Begins with these in the background."""
        made = self._thread.submit(
            judge, rollouts, self._references, self._verifier, check=self._check
        )
        self._taken.append((rollouts, made))

    def verdicts(self, rollouts: Sequence[Rollout], check: Callable[[], None]) -> list[bool]:
        """True where a rollout is right, in this order; those not taken yet are, too.

        Args:
          check: asked while the last verdicts are waited for; what it raises ends the wait.
        """
        known = {name_of(one) for taken, _ in self._taken for one in taken}
        rest = [one for one in rollouts if name_of(one) not in known]
        if rest:
            self.take(rest)
        right: dict[tuple[str, int], bool] = {}
        for taken, made in self._taken:
            while not made.done():
                concurrent.futures.wait([made], LOOK_SECONDS)
                check()
            right |= dict(zip(map(name_of, taken), made.result(), strict=True))
        return [right[name_of(one)] for one in rollouts]

    def _check(self) -> None:
        if self._left.is_set():
            raise Left

    def __enter__(self) -> "Judging":
        return self

    def __exit__(self, *_: Any) -> None:
        self._left.set()
        self._thread.shutdown(wait=True, cancel_futures=True)


def name_of(rollout: Rollout) -> tuple[str, int]:
    """What tells a rollout from all others of a call."""
    return rollout.id, rollout.sample
