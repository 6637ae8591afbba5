"""Policy losses: what the gain of a token is, and what it weighs.

Lives here: the losses, which differ in what a ratio is, where it is clipped, and how tokens are
averaged. Not here: rewards, advantages, KL terms (`kl`), the sum of it all (`objective`).

Shape letters: B rows (one rollout each), T completion time; B1 is [B, 1].

A loss is a frozen config with two pure functions: `weights(terms)`, which holds the denominator,
and `gains(terms)`. The loss is minus the sum of weight times gain. What all promise: only free
tokens enter ratio, gradient and length, and the stop token is one of them; a row without such a
token adds nothing; denominators are of the whole step.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from l2s_jax.objectives.terms import MAX_LOG_RATIO, Terms, log_ratio

Weights = Float[Array, "B T"]


class Gains(NamedTuple):
    """Of every token, or of every row where the ratio is a row's. Padding holds finite numbers."""

    gain: Float[Array, "B #T"]
    ratio: Float[Array, "B #T"]
    outside: Bool[Array, "B #T"]  # True where the ratio is beyond the clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """Where the ratio to the old policy is clipped."""

    low: float = 0.2  # the ratio is held above 1 - low
    high: float = 0.2  # and below 1 + high; DAPO takes 0.28
    dual: float | None = None  # a bad token's ratio counts as this at most ("dual clip")

    def __post_init__(self):
        if not 0 < self.low < 1:
            raise ValueError(
                f"Clip.low={self.low}: a floor of {1 - self.low:g} never clips a ratio, or always"
                " does. Set it between 0 and 1; 0.2 is usual."
            )
        if not 0 < self.high < math.inf:
            raise ValueError(
                f"Clip.high={self.high}: a ceiling of {1 + self.high:g} always clips a ratio, or"
                " never does. Set it above 0; 0.2 is usual."
            )
        if self.dual is not None and not self.dual > 1 + self.high:
            raise ValueError(
                f"Clip.dual={self.dual} is not above the ceiling of {1 + self.high:g}. Set it"
                " higher (3 in verl, 10 in DLER), or null for none."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoLoss:
    """Token ratios; mean over a rollout's tokens, then over rollouts: GRPO (arXiv 2402.03300).

    AutoL2S v2 (arXiv 2505.22662) clips at 0.2 with the SFT policy as the old one. Its sources do
    not say whether its ratio is per token; we take GRPO's.
    """

    clip: Clip = Clip()

    def weights(self, terms: Terms) -> Weights:
        """Returns 1 / tokens of the row / rollouts."""
        return rollouts_alike(terms.free, terms.num_sequences)

    def gains(self, terms: Terms) -> Gains:
        """Returns the clipped gain of every token."""
        return _clipped(log_ratio(terms), terms, self.clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DapoLoss:
    """Token ratios; every token of the step weighs the same: DAPO (arXiv 2503.14476)."""

    clip: Clip = Clip(high=0.28)

    def weights(self, terms: Terms) -> Weights:
        """Returns 1 / tokens of the step."""
        return _tokens_alike(terms)

    def gains(self, terms: Terms) -> Gains:
        """Returns the clipped gain of every token."""
        return _clipped(log_ratio(terms), terms, self.clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrGrpoLoss:
    """Token ratios; sum over tokens, divided by a constant length: Dr. GRPO (arXiv 2503.20783)."""

    clip: Clip = Clip()

    def weights(self, terms: Terms) -> Weights:
        """Returns 1 / generation limit / rollouts."""
        return terms.free / (terms.num_sequences * terms.max_tokens)

    def gains(self, terms: Terms) -> Gains:
        """Returns the clipped gain of every token."""
        return _clipped(log_ratio(terms), terms, self.clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceRatioLoss:
    """One ratio per rollout, exp(mean of log-ratios): O1-Pruner (2501.12570), GSPO (2507.18071).

    The two differ in their clip: 0.2, and 3e-4 below with 4e-4 above.
    """

    clip: Clip = Clip()

    def weights(self, terms: Terms) -> Weights:
        """Returns 1 / rollouts, spread over the row's tokens."""
        return rollouts_alike(terms.free, terms.num_sequences)

    def gains(self, terms: Terms) -> Gains:
        """Returns the clipped gain of every row."""
        length_B1 = jnp.maximum(jnp.sum(terms.free, axis=-1, keepdims=True), 1)
        mean_B1 = jnp.sum(log_ratio(terms), axis=-1, keepdims=True) / length_B1
        return _clipped(mean_B1, terms, self.clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RlooLoss:
    """One ratio per rollout, the product of its tokens': RLOO (arXiv 2402.14740).

    A completion is one action there, so long ones are not averaged. The product leaves the clip
    soon when the old policy stays fixed: refresh it every step, or few rollouts will teach.
    """

    clip: Clip = Clip()

    def weights(self, terms: Terms) -> Weights:
        """Returns 1 / rollouts, spread over the row's tokens."""
        return rollouts_alike(terms.free, terms.num_sequences)

    def gains(self, terms: Terms) -> Gains:
        """Returns the clipped gain of every row."""
        total_B1 = jnp.sum(log_ratio(terms), axis=-1, keepdims=True)
        return _clipped(jnp.clip(total_B1, -MAX_LOG_RATIO, MAX_LOG_RATIO), terms, self.clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CispoLoss:
    """Log-likelihood weighted by clipped ratios, which carry no gradient: CISPO (2506.13585).

    A token beyond the clip still teaches, unlike with the clipped losses. TRL's ceiling is 5.
    """

    floor: float = 0.0
    ceiling: float = 5.0

    def __post_init__(self):
        if not 0 <= self.floor < 1 < self.ceiling < math.inf:
            raise ValueError(
                f"CispoLoss.floor={self.floor}, CispoLoss.ceiling={self.ceiling}: ratios are held"
                " between them, which must leave 1 inside. 0 and 5 are usual."
            )

    def weights(self, terms: Terms) -> Weights:
        """Returns 1 / tokens of the step."""
        return _tokens_alike(terms)

    def gains(self, terms: Terms) -> Gains:
        """Returns clipped ratio * advantage * log-prob of every token."""
        ratio_BT = jax.lax.stop_gradient(jnp.exp(log_ratio(terms)))
        clipped_BT = jnp.clip(ratio_BT, self.floor, self.ceiling)
        logp_BT = jnp.where(terms.free, terms.logp, 0.0)
        return Gains(clipped_BT * _advantages(terms) * logp_BT, ratio_BT, clipped_BT != ratio_BT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThinklessLoss:
    """GRPO's loss of the response plus control_weight times that of the marker.

    DeGRPO of Thinkless (arXiv 2505.13379): in a mean over tokens the one token that decides the
    route weighs 1 / length, so that short rollouts move the router more. Here it weighs the same
    in every rollout, and the response is averaged without it.
    """

    control_weight: float = 1e-3
    clip: Clip = Clip()

    def __post_init__(self):
        if not self.control_weight > 0:
            raise ValueError(
                f"ThinklessLoss.control_weight={self.control_weight}: the router would not be"
                " trained. Set it above 0; Thinkless takes 0.001."
            )

    def weights(self, terms: Terms) -> Weights:
        """Returns control_weight / rollouts on a free marker, GRPO's weights elsewhere."""
        control_BT = (terms.free & terms.marker) * (self.control_weight / terms.num_sequences)
        return control_BT + rollouts_alike(terms.free & ~terms.marker, terms.num_sequences)

    def gains(self, terms: Terms) -> Gains:
        """Returns the clipped gain of every token."""
        return _clipped(log_ratio(terms), terms, self.clip)


def rollouts_alike(used_BT: Bool[Array, "B T"], num_sequences: Float[Array, ""] | float) -> Weights:
    """Weights of a mean over a rollout's used tokens, then over rollouts."""
    length_B1 = jnp.maximum(jnp.sum(used_BT, axis=-1, keepdims=True), 1).astype(jnp.float32)
    return used_BT / length_B1 / num_sequences


def _tokens_alike(terms):
    return terms.free / terms.num_tokens


def _advantages(terms):
    """[B, 1]; a row that only fills the batch may hold nan."""
    used_B1 = jnp.any(terms.free, axis=-1, keepdims=True)
    return jnp.where(used_B1, jax.lax.stop_gradient(terms.advantages)[:, None], 0.0)


def _clipped(log_ratio, terms, clip):
    adv_B1, ratio = _advantages(terms), jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - clip.low, 1 + clip.high)
    gain = jnp.minimum(ratio * adv_B1, clipped * adv_B1)
    if clip.dual is not None:
        gain = jnp.where(adv_B1 < 0, jnp.maximum(gain, clip.dual * adv_B1), gain)
    return Gains(gain, ratio, clipped != ratio)
