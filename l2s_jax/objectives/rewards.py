"""What one rollout is worth: correctness and length.

Lives here: rewards that compare lengths with a limit or with the group's. Not here: rewards that
look at a told budget (`budgets`) or at the route (`routes`), the verifier that decides what is
right (`verify`), advantages (`advantages`), which reward goes with which loss (`presets`).

Shape letters: B rows = N prompts times G samples, each prompt's samples side by side.

A reward is a frozen config and the pure function `__call__(outcomes, *, group_size)`. Sources are
named at each. A rollout that was cut off is wrong. Lengths are generated tokens, triggers and
stop included.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2s_jax.objectives.groups import group_means, masked_mean_std, split_groups
from l2s_jax.objectives.outcomes import Outcomes

Rewards = Float[Array, " B"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correct:
    """Two numbers: AutoL2S v2's only signal (2505.22662) with 1 and 0; DAPO has 1 and -1."""

    right: float = 1.0
    wrong: float = 0.0

    def __post_init__(self):
        if not self.wrong < self.right:
            raise ValueError(
                f"Correct.wrong={self.wrong} is not below Correct.right={self.right}: wrong answers"
                " would be preferred. Set it lower; 0 and 1 are usual."
            )

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns `right` or `wrong`."""
        return jnp.where(outcomes.correct, self.right, self.wrong)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearLength:
    """1 - alpha * tokens / limit for a right answer, 0 for a wrong one.

    The linear form of Arora & Zanette's length penalty (2502.04463), with the generation limit in
    place of the group's statistics.
    """

    alpha: float = 0.4

    def __post_init__(self):
        _check_alpha("LinearLength.alpha", self.alpha)

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns the reward; the longest right answer is worth more than a wrong one."""
        return jnp.where(outcomes.correct, 1.0 - self.alpha * _share(outcomes), 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmoidLength:
    """1 - alpha * sigmoid(z) for a right answer, 0 for a wrong one.

    z is the length against mean and population deviation of the group's right answers, with 1e-7
    added to the deviation; right answers of one length all have z = 0. Arora & Zanette (arXiv
    2502.04463), whose published code this follows.
    """

    alpha: float = 0.1

    def __post_init__(self):
        _check_alpha("SigmoidLength.alpha", self.alpha)

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns the reward."""
        length_NG = _lengths(outcomes, group_size)
        correct_NG = split_groups(jnp.asarray(outcomes.correct), group_size)
        mean_N1, std_N1 = masked_mean_std(length_NG, correct_NG)
        z_NG = jnp.where(correct_NG, (length_NG - mean_N1) / (std_N1 + 1e-7), 0.0)
        return jnp.where(correct_NG, 1.0 - self.alpha * jax.nn.sigmoid(z_NG), 0.0).reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KimiLength:
    """Correctness plus weight * length term; Kimi k1.5 (arXiv 2501.12599).

    The term is 1/2 - (tokens - shortest) / (longest - shortest) over the group; a wrong answer
    gets no more than 0 of it, and samples of one length get none. At first it is left out.
    """

    weight: float = 1.0
    warm_up: float = 0.0  # share of the run without the length term

    def __post_init__(self):
        if not self.weight > 0 or not 0 <= self.warm_up < 1:
            raise ValueError(
                f"KimiLength.weight={self.weight}, KimiLength.warm_up={self.warm_up}: a weight is"
                " above 0, a share of the run in [0, 1)."
            )

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns the reward."""
        length_NG = _lengths(outcomes, group_size)
        low_N1 = jnp.min(length_NG, axis=-1, keepdims=True)
        span_N1 = jnp.max(length_NG, axis=-1, keepdims=True) - low_N1
        term_NG = 0.5 - (length_NG - low_N1) / jnp.maximum(span_N1, 1.0)
        term_NG = jnp.where(span_N1 > 0, term_NG, 0.0)
        correct_NG = split_groups(jnp.asarray(outcomes.correct), group_size)
        term_NG = jnp.where(correct_NG, term_NG, jnp.minimum(term_NG, 0.0))
        weight = jnp.where(outcomes.progress < self.warm_up, 0.0, self.weight)
        return (correct_NG + weight * term_NG).reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class O1Pruner:
    """mean tokens / tokens - 1 + accuracy_weight * (correct - accuracy), held in [low, high].

    O1-Pruner (arXiv 2501.12570), clip and weight (2 for Marco-o1, 5 for QwQ) from its code. Mean
    length and accuracy are the reference policy's; the rollouts are that policy's, as in AutoL2S,
    so that a prompt's own group is its reference. It has a zero of its own: no advantage needs to
    centre it. A group that is always right has signal here.
    """

    accuracy_weight: float = 2.0  # what a right answer is worth, in reference lengths saved
    low: float = -2.0
    high: float = 4.0

    def __post_init__(self):
        if not self.accuracy_weight > 0:
            raise ValueError(
                f"O1Pruner.accuracy_weight={self.accuracy_weight}: wrong answers would cost"
                " nothing, and the shortest is empty. Set it above 0; 2 and 5 were used."
            )
        if not self.low < 0 < self.high:
            raise ValueError(
                f"O1Pruner.low={self.low}, O1Pruner.high={self.high}: the signal is held in"
                " [low, high], which must hold both signs. O1-Pruner takes -2 and 4."
            )

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns the reward."""
        length_NG = _lengths(outcomes, group_size)
        correct_B = jnp.asarray(outcomes.correct).astype(jnp.float32)
        mean_N1 = group_means(length_NG.reshape(-1), group_size)[:, None]
        saved_NG = mean_N1 / jnp.maximum(length_NG, 1.0) - 1.0  # rows that fill hold 0 tokens
        accuracy_N1 = group_means(correct_B, group_size)[:, None]
        gained_NG = self.accuracy_weight * (split_groups(correct_B, group_size) - accuracy_N1)
        return jnp.clip(saved_NG + gained_NG, self.low, self.high).reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tldr:
    """correct * (1 - penalty of the asked level * tokens / limit); TLDR (arXiv 2505.07961).

    Only the idea is published; the formula is our reading. Levels of brevity are drawn per
    prompt, so that a group has one, and its samples are compared under one. They count from 1:
    long, medium, short. Level 0 asked for nothing and pays nothing; a level beyond the last is
    nan, which the step's guard refuses.
    """

    penalties: tuple[float, ...] = (0.0, 0.3, 0.6)

    def __post_init__(self):
        for penalty in self.penalties:
            _check_alpha("Tldr.penalties", penalty)
        if not self.penalties or list(self.penalties) != sorted(set(self.penalties)):
            raise ValueError(
                f"Tldr.penalties={self.penalties}: level by level they must rise, or two levels"
                " ask for one thing. Give for example [0, 0.3, 0.6]."
            )

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns the reward."""
        table = jnp.asarray((0.0, *self.penalties), jnp.float32)
        penalty_B = jnp.take(table, outcomes.level, mode="fill", fill_value=jnp.nan)
        return outcomes.correct * (1.0 - penalty_B * _share(outcomes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlong:
    """DAPO's soft punishment (arXiv 2503.14476), added to a reward: 0, then falling to -factor.

    It falls over the last `buffer` of the generation limit; DAPO's 4,096 of 20,480 is 0.2.
    """

    buffer: float = 0.2  # share of the limit
    factor: float = 1.0

    def __post_init__(self):
        if not 0 < self.buffer <= 1 or not self.factor > 0:
            raise ValueError(
                f"Overlong.buffer={self.buffer}, Overlong.factor={self.factor}: the buffer is a"
                " share of the generation limit in (0, 1], the factor above 0. DAPO: 0.2 and 1."
            )

    def __call__(self, outcomes: Outcomes, *, group_size: int) -> Rewards:
        """Returns what to add: -factor at the limit, 0 before the buffer."""
        into_B = (_share(outcomes) - (1.0 - self.buffer)) / self.buffer
        return jnp.minimum(0.0, -self.factor * into_B)


def _lengths(outcomes: Outcomes, group_size: int):
    return split_groups(jnp.asarray(outcomes.num_tokens).astype(jnp.float32), group_size)


def _share(outcomes: Outcomes):
    return jnp.asarray(outcomes.num_tokens).astype(jnp.float32) / outcomes.limit


def _check_alpha(name: str, alpha: float) -> None:
    if not 0 <= alpha < 1:
        raise ValueError(
            f"{name}={alpha}. Below 0 it pays for length, from 1 on a long right answer may be"
            " worth no more than a wrong one. Set it in [0, 1); 0.1 to 0.4 is usual."
        )
