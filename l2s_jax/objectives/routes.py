"""Rewards that look at the route: how a router is trained without collapsing.

Lives here: AdaptThink's bonus, Thinkless's rewards, ARM's boost of the rare route. Not here: the
weight of the marker in the loss (`losses.ThinklessLoss`), forced routes as draws
(`terms.routed_by_design`).

Shape letters: B rows = N prompts times G samples, each prompt's samples side by side.

The form is that of `rewards`.
"""

import dataclasses

import jax.numpy as jnp

from l2s_jax.objectives.groups import split_groups
from l2s_jax.objectives.outcomes import Outcomes
from l2s_jax.objectives.rewards import Rewards


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortBonus:
    """correct + bonus where short: AdaptThink (arXiv 2505.13417), whose bonuses go up to 0.1.

    The short route wins a question unless it costs more accuracy than the bonus. Wrong answers
    get it too.
    """

    bonus: float = 0.05

    def __post_init__(self):
        if not 0 <= self.bonus < 1:
            raise ValueError(
                f"ShortBonus.bonus={self.bonus}: from 1 on, short and wrong is worth as much as"
                " long and right. Set it in [0, 1); 0.05 is AdaptThink's."
            )

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns the reward."""
        return outcomes.correct + self.bonus * jnp.asarray(outcomes.short)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouteReward:
    """One number each for short and right, long and right, wrong: Thinkless (2505.13379)."""

    short_right: float = 1.0
    long_right: float = 0.5
    wrong: float = -1.0

    def __post_init__(self):
        if not self.wrong < self.long_right <= self.short_right:
            raise ValueError(
                f"RouteReward.wrong={self.wrong}, long_right={self.long_right}, short_right="
                f"{self.short_right} must not fall in this order. Thinkless takes -1, 0.5 and 1."
            )

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns the reward."""
        right_B = jnp.where(outcomes.short, self.short_right, self.long_right)
        return jnp.where(outcomes.correct, right_B, self.wrong)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RareRoute:
    """correct * (1 + (group / count of its route - 1) * (1 + cos(pi * progress)) / 2).

    Ada-GRPO of ARM (arXiv 2505.20258), with two formats: whatever the group does seldom is boosted
    when right, so that neither route dies out; the boost is gone at the end of the run.
    """

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns the reward."""
        short_NG = split_groups(jnp.asarray(outcomes.short), group_size)
        num_short_N1 = jnp.sum(short_NG, axis=-1, keepdims=True)
        count_NG = jnp.where(short_NG, num_short_N1, group_size - num_short_N1)
        left = (1.0 + jnp.cos(jnp.pi * outcomes.progress)) / 2.0
        boost_NG = 1.0 + (group_size / count_NG - 1.0) * left  # a row counts itself: never 0
        return outcomes.correct * boost_NG.reshape(-1)
