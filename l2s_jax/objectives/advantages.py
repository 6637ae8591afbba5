"""How much better a rollout was than it could be expected to be.

Lives here: what turns the rewards of a whole step into advantages. Not here: rewards (`rewards`,
`budgets`, `routes`), the losses that read advantages (`losses`), the choice (`presets`).

Shape letters: B rows = N prompts times G samples, each prompt's samples side by side.

An advantage is a frozen config and the pure function `__call__(reward_B, outcomes, *,
group_size)`. A flat group, all of whose samples earned the same, gets exactly zero from every
group-relative one. With correctness as the only reward these are the questions that are always
right, the easy ones: v2 learns nothing from them. `Signed` does.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from l2s_jax.objectives.groups import masked_mean_std, split_groups
from l2s_jax.objectives.outcomes import Outcomes
from l2s_jax.objectives.rewards import Rewards

Advantages = Float[Array, " B"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standardised:
    """(reward - mean) / (deviation + epsilon) within each group: GRPO (arXiv 2402.03300)."""

    ddof: int = 1  # taken from G in the deviation's denominator; TRL's and verl's
    epsilon: float = 1e-6  # verl's; TRL has 1e-4

    def __post_init__(self):
        if self.ddof not in (0, 1) or not self.epsilon > 0:
            raise ValueError(
                f"Standardised.ddof={self.ddof}, Standardised.epsilon={self.epsilon}: ddof is 0 or"
                " 1, epsilon above 0."
            )

    def __call__(self, reward_B: Rewards, outcomes: Outcomes, *, group_size: int) -> Advantages:
        """Returns the advantages."""
        if group_size <= self.ddof:
            raise ValueError(
                f"group_size={group_size} with Standardised.ddof={self.ddof}: no deviation can be"
                f" taken. Sample {self.ddof + 1} or more rollouts per prompt."
            )
        centred_NG, std_N1 = _centre(reward_B, group_size, self.ddof)
        return (centred_NG / (std_N1 + self.epsilon)).reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Centred:
    """reward - mean within each group, undivided: Dr. GRPO (arXiv 2503.20783)."""

    def __call__(self, reward_B: Rewards, outcomes: Outcomes, *, group_size: int) -> Advantages:
        """Returns the advantages."""
        return _centre(reward_B, group_size)[0].reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """reward - mean of the group's other samples: RLOO (arXiv 2402.14740)."""

    def __call__(self, reward_B: Rewards, outcomes: Outcomes, *, group_size: int) -> Advantages:
        """Returns the advantages."""
        if group_size < 2:
            raise ValueError(
                f"group_size={group_size}: LeaveOneOut finds no others. Sample 2 or more rollouts"
                " per prompt."
            )
        centred_NG, _ = _centre(reward_B, group_size)
        return (centred_NG * (group_size / (group_size - 1))).reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whitened:
    """(reward - mean) / (deviation + epsilon) over all rows, ddof 1; equal rows give zeros.

    For a reward with its own zero, as O1-Pruner (arXiv 2501.12570) does, whose statistics are the
    whole data set's; ours are one step's. It moves that zero: a rollout that is better than its
    reference may get a negative advantage.
    """

    epsilon: float = 1e-6

    def __call__(self, reward_B: Rewards, outcomes: Outcomes, *, group_size: int) -> Advantages:
        """Returns the advantages."""
        mean_11, std_11 = masked_mean_std(reward_B[None], jnp.ones_like(reward_B[None], bool), 1)
        return ((reward_B[None] - mean_11) / (std_11 + self.epsilon))[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CentredScaled:
    """reward - mean within each group, over the step's deviation, plus a bonus where right.

    REINFORCE++-baseline, as DLER (arXiv 2510.15110) has it, with its bonus of 0.1. The mean over
    the step is 0 already and not taken again, so that flat groups stay at exactly zero. Its code
    weighs rollouts by their tokens in the deviation; here each counts once.
    """

    bonus: float = 0.1  # advantage, added to right answers; 0 for REINFORCE++-baseline alone
    epsilon: float = 1e-6

    def __call__(self, reward_B: Rewards, outcomes: Outcomes, *, group_size: int) -> Advantages:
        """Returns the advantages."""
        centred_1B = _centre(reward_B, group_size)[0].reshape(1, -1)
        _, std_11 = masked_mean_std(centred_1B, jnp.ones_like(centred_1B, bool), 1)
        return (centred_1B / (std_11 + self.epsilon))[0] + self.bonus * outcomes.correct


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgainstLong:
    """reward - mean reward of the group's long rollouts; of all, where none is long.

    AdaptThink (arXiv 2505.13417) takes the accuracy of 16 rollouts of the reference model, which
    always thinks. The long half of the group stands for them. Never divided by a deviation.
    """

    def __call__(self, reward_B: Rewards, outcomes: Outcomes, *, group_size: int) -> Advantages:
        """Returns the advantages."""
        reward_NG = split_groups(reward_B, group_size)
        long_NG = ~split_groups(jnp.asarray(outcomes.short), group_size)
        used_NG = long_NG | ~jnp.any(long_NG, axis=-1, keepdims=True)
        return (reward_NG - masked_mean_std(reward_NG, used_NG)[0]).reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signed:
    """2 * reward - 1, without a baseline: right is good and wrong is bad, whatever the others did.

    One reading of AutoL2S v2, whose sources do not say how its utility becomes an advantage. A
    group that is always right has signal here.
    """

    def __call__(self, reward_B: Rewards, outcomes: Outcomes, *, group_size: int) -> Advantages:
        """Returns the advantages."""
        return 2.0 * reward_B - 1.0


def _centre(reward_B, group_size, ddof=0):
    reward_NG = split_groups(reward_B, group_size)
    mean_N1, std_N1 = masked_mean_std(reward_NG, jnp.ones_like(reward_NG, bool), ddof)
    return reward_NG - mean_N1, std_N1
