"""Stage 2 as its sources tell it: which signal, which advantage, which loss go together.

Lives here: one frozen config per preset, each with the same two methods, so that a run names a
preset as a value and a union of these classes is the choice. Not here: the parts themselves
(`rewards`, `advantages`, `grpo`), and where the rollouts come from (`training.grpo`).

Shape letters: B rows = N prompts times G samples, each prompt's samples side by side; T
completion time.

Source: AutoL2S, arXiv 2505.22662, of which there are three (v1 has no stage 2). v2 is known in
its ingredients: binary correctness, a clipped ratio at 0.2 against the SFT policy, no length
term. Of Plus it is known that it is length-aware and clipped against the SFT policy; its formula
is not, so there are two readings.
"""

import dataclasses

from jaxtyping import Array, Bool, Float, Int

from l2s_jax.objectives.advantages import (
    Advantages,
    group_standardised,
    leave_one_out,
    length_harmonising,
    whiten,
)
from l2s_jax.objectives.groups import group_means
from l2s_jax.objectives.grpo import GrpoConfig, LossAndMetrics, grpo_loss, sequence_ratio_loss
from l2s_jax.objectives.rewards import correctness, length_scaled, weighted_sum


@dataclasses.dataclass(frozen=True, kw_only=True)
class V2:
    """Correctness only. Groups that are always right teach nothing: see `flat_groups`."""

    clip: GrpoConfig = dataclasses.field(default_factory=GrpoConfig)

    def advantages(
        self, correct_B: Bool[Array, " B"], num_tokens_B: Int[Array, " B"], *, group_size: int
    ) -> Advantages:
        """Returns group-standardised correctness; lengths are not looked at."""
        reward_B, means = weighted_sum(
            {"correctness": correctness(correct_B)}, {"correctness": 1.0}
        )
        adv_B, metrics = group_standardised(reward_B, group_size=group_size)
        return adv_B, means | metrics

    def loss(
        self,
        logp_BT: Float[Array, "B T"],
        old_logp_BT: Float[Array, "B T"],
        adv_B: Float[Array, " B"],
        free_BT: Bool[Array, "B T"],
        *,
        num_sequences: Float[Array, ""] | float,
    ) -> LossAndMetrics:
        """Returns `grpo_loss` with this preset's clip."""
        return grpo_loss(
            logp_BT, old_logp_BT, adv_B, free_BT, num_sequences=num_sequences, cfg=self.clip
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plus:
    """Length-aware after O1-Pruner (arXiv 2501.12570), whom the paper has as a baseline.

    The rollouts are the SFT policy's, as the paper samples them, so that a prompt's own group is
    its reference for length and accuracy.
    """

    accuracy_weight: float = 2.0  # what a right answer is worth, in reference lengths saved
    low: float = -2.0
    high: float = 4.0
    clip: GrpoConfig = dataclasses.field(default_factory=GrpoConfig)

    def __post_init__(self):
        if not self.accuracy_weight > 0:
            raise ValueError(
                f"Plus.accuracy_weight={self.accuracy_weight}: wrong answers would cost nothing,"
                " and the shortest is empty. Set it above 0; 2 and 5 were used."
            )
        if not self.low < 0 < self.high:
            raise ValueError(
                f"Plus.low={self.low}, Plus.high={self.high}: advantages are held in [low, high],"
                " which must hold both signs. O1-Pruner takes -2 and 4."
            )

    def advantages(
        self, correct_B: Bool[Array, " B"], num_tokens_B: Int[Array, " B"], *, group_size: int
    ) -> Advantages:
        """Returns length-harmonising advantages, whitened over the rows."""
        correct = correctness(correct_B)
        adv_B, metrics = length_harmonising(
            correct_B,
            num_tokens_B,
            ref_tokens_N=group_means(num_tokens_B.astype(correct.dtype), group_size),
            ref_accuracy_N=group_means(correct, group_size),
            group_size=group_size,
            accuracy_weight=self.accuracy_weight,
            low=self.low,
            high=self.high,
        )
        return whiten(adv_B), metrics | {"reward/correctness": correct.mean()}

    def loss(
        self,
        logp_BT: Float[Array, "B T"],
        old_logp_BT: Float[Array, "B T"],
        adv_B: Float[Array, " B"],
        free_BT: Bool[Array, "B T"],
        *,
        num_sequences: Float[Array, ""] | float,
    ) -> LossAndMetrics:
        """Returns `sequence_ratio_loss` with this preset's clip."""
        return sequence_ratio_loss(
            logp_BT, old_logp_BT, adv_B, free_BT, num_sequences=num_sequences, cfg=self.clip
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlusLinear:
    """Length-aware by a reward, correct * (1 - alpha * tokens / max_tokens), with token ratios.

    Advantages are leave-one-out, as in Arora & Zanette (arXiv 2502.04463): divided by the group's
    deviation, a group that is always right would get the same advantages whatever alpha is.
    """

    alpha: float = 0.4
    max_tokens: int  # the generation limit of the rollouts
    clip: GrpoConfig = dataclasses.field(default_factory=GrpoConfig)

    def __post_init__(self):
        if not 0 <= self.alpha < 1:
            raise ValueError(
                f"PlusLinear.alpha={self.alpha}. Below 0 it pays for length, from 1 on a long"
                " right answer may be worth no more than a wrong one. Set it in [0, 1)."
            )
        if self.max_tokens < 1:
            raise ValueError(
                f"PlusLinear.max_tokens={self.max_tokens}. Give the generation limit, 1 or more."
            )

    def advantages(
        self, correct_B: Bool[Array, " B"], num_tokens_B: Int[Array, " B"], *, group_size: int
    ) -> Advantages:
        """Returns leave-one-out advantages of the length-scaled reward."""
        reward_B = length_scaled(
            correct_B, num_tokens_B, alpha=self.alpha, max_tokens=self.max_tokens
        )
        adv_B, metrics = leave_one_out(reward_B, group_size=group_size)
        return adv_B, metrics | {
            "reward/correctness": correctness(correct_B).mean(),
            "reward": reward_B.mean(),
        }

    def loss(
        self,
        logp_BT: Float[Array, "B T"],
        old_logp_BT: Float[Array, "B T"],
        adv_B: Float[Array, " B"],
        free_BT: Bool[Array, "B T"],
        *,
        num_sequences: Float[Array, ""] | float,
    ) -> LossAndMetrics:
        """Returns `grpo_loss` with this preset's clip."""
        return grpo_loss(
            logp_BT, old_logp_BT, adv_B, free_BT, num_sequences=num_sequences, cfg=self.clip
        )


Preset = V2 | Plus | PlusLinear
