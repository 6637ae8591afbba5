"""The parts of stage 2 put together: reward, advantage, loss, and what may be added.

Lives here: `Objective`, whose fields are the choice. Not here: the parts, and which of them go
together in a paper (`presets`).

Shape letters: B rows = N prompts times G samples, each prompt's samples side by side; T
completion time.

Every part is a small config that is also a function, and every field a union of them: a run names
a part as a value, on the command line as `--set 'preset.reward={"type": "KimiLength"}'`, and its
settings as `--set preset.reward.weight=0.5`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from l2s_jax.objectives.advantages import (
    AgainstLong,
    Centred,
    CentredScaled,
    LeaveOneOut,
    Signed,
    Standardised,
    Whitened,
)
from l2s_jax.objectives.budgets import L1Exact, L1Max, Triangle, Truncation
from l2s_jax.objectives.groups import flat_groups, masked_mean_std, split_groups
from l2s_jax.objectives.importance import TruncatedImportance
from l2s_jax.objectives.kl import K1, K2, K3, RatioK3, k3
from l2s_jax.objectives.losses import (
    CispoLoss,
    DapoLoss,
    DrGrpoLoss,
    GrpoLoss,
    RlooLoss,
    SequenceRatioLoss,
    ThinklessLoss,
    rollouts_alike,
)
from l2s_jax.objectives.outcomes import Outcomes
from l2s_jax.objectives.rewards import (
    Correct,
    KimiLength,
    LinearLength,
    O1Pruner,
    Overlong,
    SigmoidLength,
    Tldr,
)
from l2s_jax.objectives.routes import RareRoute, RouteReward, ShortBonus
from l2s_jax.objectives.terms import Terms, log_ratio, routed_by_design
from l2s_jax.types import Metrics

Reward = (
    Correct
    | LinearLength
    | SigmoidLength
    | KimiLength
    | O1Pruner
    | Tldr
    | L1Exact
    | L1Max
    | Truncation
    | Triangle
    | ShortBonus
    | RouteReward
    | RareRoute
)
Advantage = Standardised | Centred | LeaveOneOut | Whitened | CentredScaled | AgainstLong | Signed
PolicyLoss = (
    GrpoLoss | DapoLoss | DrGrpoLoss | SequenceRatioLoss | RlooLoss | CispoLoss | ThinklessLoss
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a policy update makes of a step's rollouts."""

    reward: Reward
    advantage: Advantage
    policy_loss: PolicyLoss
    overlong: Overlong | None = None  # added to the reward
    kl: K1 | K2 | K3 | RatioK3 | None = (
        None  # towards the reference policy, averaged as the loss is
    )
    importance: TruncatedImportance | None = None
    design_probability: float | None = None  # trains forced markers, drawn with it; None: not

    def __post_init__(self):
        if self.design_probability is not None and not 0 < self.design_probability < 1:
            raise ValueError(
                f"Objective.design_probability={self.design_probability}: it is the chance with"
                " which a rollout is made to take its route. Half a group each is 0.5."
            )

    @property
    def needs_reference(self) -> bool:
        """True where the loss reads `Terms.ref_logp`."""
        return self.kl is not None

    @property
    def needs_sampler_logp(self) -> bool:
        """True where the loss reads `Terms.sampler_logp` beside the trainer's own `old_logp`."""
        return self.importance is not None

    def rewards(self, outcomes: Outcomes, *, group_size: int) -> tuple[Float[Array, " B"], Metrics]:
        """Returns the whole reward, and the mean of each of its terms, which add up to it."""
        reward_B = self.reward(outcomes, group_size=group_size)
        correct_B = jnp.asarray(outcomes.correct).astype(jnp.float32)
        metrics = {
            "reward/correctness": jnp.mean(correct_B),
            "reward/shaping": jnp.mean(reward_B - correct_B),
        }
        if self.overlong is not None:
            overlong_B = self.overlong(outcomes, group_size=group_size)
            metrics["reward/overlong"] = jnp.mean(overlong_B)
            reward_B = reward_B + overlong_B
        return reward_B, metrics | {"reward": jnp.mean(reward_B)}

    def has_contrast(self, outcomes: Outcomes, *, group_size: int) -> Bool[Array, " N"]:
        """True for prompts whose samples earned different rewards; DAPO draws others instead.

        Without `overlong`, as in DAPO: a group that is all right teaches no more for being long.
        """
        reward_B = self.reward(outcomes, group_size=group_size)
        return ~flat_groups(split_groups(reward_B, group_size))[:, 0]

    def advantages(
        self, outcomes: Outcomes, *, group_size: int
    ) -> tuple[Float[Array, " B"], Metrics]:
        """Returns the advantages of a whole step, before it is cut into micro-batches."""
        reward_B, metrics = self.rewards(outcomes, group_size=group_size)
        reward_NG = split_groups(reward_B, group_size)
        _, std_N1 = masked_mean_std(reward_NG, jnp.ones_like(reward_NG, bool))
        metrics |= {
            "flat_groups": jnp.sum(flat_groups(reward_NG)).astype(jnp.float32),
            "reward_std": jnp.mean(std_N1),
        }
        return self.advantage(reward_B, outcomes, group_size=group_size), metrics

    def loss(self, terms: Terms) -> tuple[Float[Array, ""], Metrics]:
        """Returns the loss of these rows and metrics; both add up over micro-batches."""
        if self.design_probability is not None:
            terms = routed_by_design(terms, self.design_probability)
        gain, ratio, outside = self.policy_loss.gains(terms)
        weight_BT = self.policy_loss.weights(terms)
        mean_BT = rollouts_alike(terms.free, terms.num_sequences)
        metrics = {
            "clip_fraction": _total(outside.astype(jnp.float32), mean_BT),
            "ratio_mean": _total(ratio, mean_BT),
            "kl_to_old": _total(k3(-log_ratio(terms)), mean_BT),  # KL(old || policy): old ones drew
        }
        kept_BT = weight_BT
        if self.importance is not None:
            trust_BT = self.importance.ratio(terms)
            kept_BT = weight_BT * jnp.minimum(trust_BT, self.importance.cap)
            metrics["trainer_to_sampler"] = _total(trust_BT, mean_BT)
            metrics["max_trainer_to_sampler"] = jnp.max(jnp.where(terms.free, trust_BT, 0.0))
        loss = -_total(gain, kept_BT)
        if self.kl is not None:
            penalty_BT = self.kl.penalty(terms)
            loss = loss + self.kl.weight * _total(penalty_BT, weight_BT)
            metrics["kl_to_ref"] = _total(penalty_BT, mean_BT)
        return loss, jax.lax.stop_gradient(metrics)


def _total(value, weight_BT):
    """Sum of weight * value, `value` being [B, T] or [B, 1]."""
    return jnp.sum(value * weight_BT)
