"""What a reward may know of a step's rollouts.

Lives here: the record and its check. Not here: who fills it (`training`), rewards (`rewards`,
`budgets`, `routes`), advantages (`advantages`).

Shape letters: B rows = N prompts times G samples, each prompt's samples side by side.
"""

from typing import Any

import numpy as np
from flax import struct


@struct.dataclass
class Outcomes:
    """How each rollout of one whole step ended, numpy or jax.

    A rollout that was cut off is wrong. Lengths are generated tokens, triggers and stop included.
    """

    correct: Any  # [B] bool
    num_tokens: Any  # [B] int32
    stopped: Any  # [B] bool, True where it ended by itself
    short: Any  # [B] bool, True where it took the short route, chosen or forced
    level: Any  # [B] int32, of brevity, which TLDR asked for; 0 where none was asked
    max_tokens: Any  # [B] int32, the budget that it was told (L1, a curriculum); 0 where none
    limit: Any  # [] int32, the most tokens that any rollout may have (the sampler's)
    progress: Any = 0.0  # [] float32, share of the run's steps that lie behind: 0 to 1


def check_groups(outcomes: Outcomes, group_size: int) -> None:
    """Refuses samples of one prompt that were asked for different levels or budgets.

    They would be compared with each other, and what they were asked would pass for merit.
    """
    for name in ("level", "max_tokens"):
        value_NG = np.asarray(getattr(outcomes, name)).reshape(-1, group_size)
        mixed = np.flatnonzero(value_NG.min(axis=1) != value_NG.max(axis=1))
        if mixed.size:
            raise ValueError(
                f"Outcomes.{name} differs within the group of prompt {mixed[0]}:"
                f" {value_NG[mixed[0]].tolist()}. Ask all samples of a prompt for the same."
            )
