"""Dynamic sampling: problems in the place of those whose samples all earned the same.

Lives here: how many are drawn again, and which. Not here: who has contrast
(`objectives/objective.py`), sampling them (`training/gather.py`).

Source: DAPO (arXiv 2503.14476), section 3.2. There a round is always a whole batch, and rounds go
on until a step is full; here a round is as large as it must be by what was seen so far, and rounds
are bounded: what is still missing is filled with groups that teach nothing, and counted.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from l2s_jax.types import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refill:
    """Groups without contrast are replaced, in at most so many further rounds of sampling."""

    max_rounds: int = 3

    def __post_init__(self):
        if self.max_rounds < 1:
            raise ValueError(f"Refill.max_rounds={self.max_rounds}: at least 1, or no Refill.")


def spare_problems(
    problems: Sequence[Problem], chosen: Sequence[Problem], *, seed: int, step: int
) -> list[Problem]:
    """All others in the order in which a step's rounds take them: a function of (seed, step)."""
    taken = {problem.id for problem in chosen}
    # The third number keeps this order apart from that of an epoch.
    order = np.random.default_rng((seed, step, 1)).permutation(len(problems))
    return [problems[i] for i in order if problems[i].id not in taken]


def round_size(wanted: int, found: int, sampled: int) -> int:
    """How many to sample next, so that as many as are missing may be expected to have contrast.

    Args:
      wanted: groups of a step; no round is larger.
      found: of `sampled` groups so far, those with contrast.
    """
    missing = wanted - found
    share = max(found, 1) / sampled
    return min(wanted, math.ceil(missing / share)) if missing > 0 else 0
