"""How far the policy is from the reference policy, token by token.

Lives here: the three estimators of KL(policy || reference), and a penalty for each. Not here: how
tokens are averaged, which the loss decides (`losses`).

Shape letters: B rows, T completion time.

Source: J. Schulman, "Approximating KL divergence" (2020). With d = log-prob now less the
reference's, and tokens that the policy itself drew: k1 = d is unbiased and may be negative; k2 =
d²/2 is biased; k3 = exp(-d) - 1 + d is unbiased and never negative. What is right as a number
need not be right as a loss: the gradient of k1 does not see the reference, that of k2 is the
gradient of the KL, and that of k3 pulls towards the reference by 1 - exp(-d). Where another policy
drew the tokens, only `RatioK3` stays right.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2s_jax.objectives.terms import MAX_LOG_RATIO, Terms, log_ratio

Nats = Float[Array, "B T"]


def k1(gap_BT: Nats) -> Nats:
    """Returns d."""
    return gap_BT


def k2(gap_BT: Nats) -> Nats:
    """Returns d² / 2."""
    return gap_BT**2 / 2


def k3(gap_BT: Nats) -> Nats:
    """Returns exp(-d) - 1 + d."""
    return jnp.expm1(-gap_BT) + gap_BT


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Penalty:
    weight: float  # loss per nat

    def __post_init__(self):
        if not self.weight > 0:
            raise ValueError(
                f"{type(self).__name__}.weight={self.weight}: without a weight the reference is"
                " not looked at. Set it above 0, or leave the KL term out."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class K1(_Penalty):
    """k1 as the number, the gradient of k2 (verl's "k1+"), since k1's own says nothing."""

    def penalty(self, terms: Terms) -> Nats:
        """Returns k1 of every free token, unweighted."""
        gap_BT = ref_gap(terms)
        pull_BT = k2(gap_BT)
        return jax.lax.stop_gradient(k1(gap_BT) - pull_BT) + pull_BT


@dataclasses.dataclass(frozen=True, kw_only=True)
class K2(_Penalty):
    """k2, number and gradient."""

    def penalty(self, terms: Terms) -> Nats:
        """Returns k2 of every free token, unweighted."""
        return k2(ref_gap(terms))


@dataclasses.dataclass(frozen=True, kw_only=True)
class K3(_Penalty):
    """k3, number and gradient: GRPO's (arXiv 2402.03300, equation 4) and verl's "low_var_kl"."""

    def penalty(self, terms: Terms) -> Nats:
        """Returns k3 of every free token, unweighted."""
        return k3(ref_gap(terms))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatioK3(_Penalty):
    """k3 times the token's ratio to the old policy, which carries gradient as well.

    DeepSeek-V3.2's (arXiv 2512.02556) and TRL's default. Number and gradient are unbiased also
    where an older policy drew the tokens, as the SFT policy does all through stage 2.
    """

    def penalty(self, terms: Terms) -> Nats:
        """Returns ratio * k3 of every free token, unweighted."""
        return jnp.exp(log_ratio(terms)) * k3(ref_gap(terms))


def ref_gap(terms: Terms) -> Nats:
    """Log-prob now less the reference's, 0 where nothing is free."""
    if terms.ref_logp is None:
        raise ValueError(
            "Terms.ref_logp=None: a KL term needs the reference policy's log-probs. Compute them"
            " where Objective.needs_reference is True."
        )
    gap_BT = jnp.where(terms.free, terms.logp - jax.lax.stop_gradient(terms.ref_logp), 0.0)
    return jnp.clip(gap_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO)
