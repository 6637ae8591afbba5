"""When sampler and trainer compute different log-probs for the same weights.

Lives here: truncated importance sampling. Not here: the ratio to an older policy (`losses`).

Shape letters: B rows, T completion time.

Source: F. Yao et al., "Your efficient RL framework secretly brings you off-policy RL training"
(2025), token by token; TRL's mode "token_truncate".
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2s_jax.objectives.terms import MAX_LOG_RATIO, Terms


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedImportance:
    """Tokens weighed by P(trainer) / P(sampler) of the behaviour policy, `cap` at most."""

    cap: float = 2.0

    def __post_init__(self):
        if not 1 <= self.cap < math.inf:
            raise ValueError(
                f"TruncatedImportance.cap={self.cap}: below 1 it scales every token down. Set it"
                " to 1 or more; 2 is usual."
            )

    def ratio(self, terms: Terms) -> Float[Array, "B T"]:
        """Returns the ratio before it is cut, 1 where nothing is free; no gradient."""
        if terms.sampler_logp is None:
            raise ValueError(
                "Terms.sampler_logp=None: the sampler's log-probs are needed beside the trainer's"
                " own. Keep both where Objective.needs_sampler_logp is True."
            )
        gap_BT = jnp.where(terms.free, terms.old_logp - terms.sampler_logp, 0.0)
        return jax.lax.stop_gradient(jnp.exp(jnp.clip(gap_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO)))
