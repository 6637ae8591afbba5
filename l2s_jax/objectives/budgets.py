"""Rewards that hold a rollout against the budget that it was told.

Lives here: L1, the truncation of DLER, curriculum budgets. Not here: who draws a budget and
writes it into the prompt (`training`), rewards without one (`rewards`).

Shape letters: B rows = N prompts times G samples, each prompt's samples side by side.

The form is that of `rewards`. A row whose budget is 0 was told none: no length enters its reward.
"""

import dataclasses

import jax.numpy as jnp

from l2s_jax.objectives.outcomes import Outcomes
from l2s_jax.objectives.rewards import Rewards


@dataclasses.dataclass(frozen=True, kw_only=True)
class L1Exact:
    """correct - alpha * |budget - tokens|: LCPO-Exact of L1 (arXiv 2503.04697).

    The budget is drawn from 100 to 4,000 there. Wrong answers are paid for length as well. Its
    published code has a sigmoid form too, which grows with the deviation: not taken over.
    """

    alpha: float = 3e-4  # reward per token

    def __post_init__(self):
        _check_rate("L1Exact.alpha", self.alpha)

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns the reward."""
        return outcomes.correct - self.alpha * jnp.abs(_left(outcomes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class L1Max:
    """correct * (alpha * (budget - tokens) + 1/2, held in [0, 1]): LCPO-Max of L1 (2503.04697).

    The half keeps a right answer that is slightly beyond its budget above a wrong one.
    """

    alpha: float = 3e-4  # reward per token

    def __post_init__(self):
        _check_rate("L1Max.alpha", self.alpha)

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns the reward."""
        share_B = jnp.clip(self.alpha * _left(outcomes) + 0.5, 0.0, 1.0)
        return outcomes.correct * jnp.where(_told(outcomes), share_B, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truncation:
    """correct, times `factor` where the rollout did not end by itself within its budget.

    DLER (arXiv 2510.15110): a hard limit in place of a shaped penalty. A rollout that was cut off
    counts as wrong in any case, so that `factor` is for what ended, but after its budget; with 0
    it is ThinkPrune's reward.
    """

    factor: float = 0.1

    def __post_init__(self):
        if not 0 <= self.factor < 1:
            raise ValueError(
                f"Truncation.factor={self.factor}: beyond the budget a right answer must be worth"
                " less. Set it in [0, 1); DLER takes 0.1."
            )

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns the reward."""
        within_B = jnp.asarray(outcomes.stopped) & (_left(outcomes) >= 0)
        return outcomes.correct * jnp.where(within_B, 1.0, self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Triangle:
    """accuracy_weight * correct + length_weight * (1 - |tokens - budget| / budget, 0 at least).

    "Train Long, Think Short" (arXiv 2508.08940), whose other weights are 0.6 and 0.3. The length
    term peaks at the budget and is paid to wrong answers as well. Its reward for the format is
    left out: what opens with no trigger is wrong here.
    """

    accuracy_weight: float = 0.3
    length_weight: float = 0.6

    def __post_init__(self):
        if not self.accuracy_weight > 0 or not self.length_weight > 0:
            raise ValueError(
                f"Triangle.accuracy_weight={self.accuracy_weight}, Triangle.length_weight="
                f"{self.length_weight}: both must be above 0; 0.3 and 0.6 were used."
            )

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns the reward."""
        budget_B = jnp.maximum(outcomes.max_tokens, 1)
        peak_B = jnp.maximum(1.0 - jnp.abs(_left(outcomes)) / budget_B, 0.0)
        length_B = jnp.where(_told(outcomes), peak_B, 0.0)
        return self.accuracy_weight * outcomes.correct + self.length_weight * length_B


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Budgets that shrink: first * decay ^ floor(step / every), and never below 1.

    "Train Long, Think Short" (arXiv 2508.08940) goes from 256 to 87; its decay is read off a
    figure.
    """

    first: int = 256  # tokens
    decay: float = 0.7
    every: int = 100  # steps

    def __post_init__(self):
        if self.first < 1 or self.every < 1 or not 0 < self.decay <= 1:
            raise ValueError(
                f"Curriculum.first={self.first}, Curriculum.decay={self.decay}, Curriculum.every="
                f"{self.every}: tokens and steps are 1 or more, a decay lies in (0, 1]."
            )

    def at(self, step: int) -> int:
        """The budget of a step, tokens."""
        return max(1, round(self.first * self.decay ** (step // self.every)))


def _told(outcomes: Outcomes):
    return jnp.asarray(outcomes.max_tokens) > 0


def _left(outcomes: Outcomes):
    """Tokens of the budget that were left, below 0 where it was exceeded; 0 where none was told."""
    left_B = jnp.asarray(outcomes.max_tokens) - jnp.asarray(outcomes.num_tokens)
    return jnp.where(_told(outcomes), left_B, 0).astype(jnp.float32)


def _check_rate(name: str, alpha: float) -> None:
    if not alpha > 0:
        raise ValueError(f"{name}={alpha}: length would not matter. Set it above 0; L1: 3e-4.")
