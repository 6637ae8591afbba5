"""What a policy loss reads.

Lives here: the record of one (micro-)batch, and what routing by design makes of it. Not here: who
fills it (`training`), the losses (`losses`), KL terms (`kl`).

Shape letters: B rows (one rollout each), T completion time.

Every loss is a sum over its rows, divided by counts over the whole step; so are its metrics.
Micro-batches therefore add up. A metric whose name starts with `max_` is combined by maximum.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

MAX_LOG_RATIO = 20.0
"""Log-ratios are held within it (as in verl): the gradient through exp(89) is 0 * inf."""


@struct.dataclass
class Terms:
    """Rollouts of one policy update. Log-probs are in nats, at the temperature of the draw.

    They may hold anything, nan too, where nothing is free and no marker stands.
    """

    logp: Any  # [B, T] float32, of the policy that is trained; alone carries gradient
    old_logp: Any  # [B, T] float32, of the behaviour policy, which wrote the rollouts
    advantages: Any  # [B] float32
    free: Any  # [B, T] bool, True on tokens that the policy chose, its stop token included
    marker: Any  # [B, T] bool, the token that decides the route (of LONG or EASY), whoever chose
    # it: one per row at most, none where EASY was taken back. `free` tells who chose.
    num_sequences: Any  # [] float32, rollouts of the whole step, above 0; fillers left out
    num_tokens: Any  # [] float32, free tokens of the whole step, above 0
    max_tokens: Any  # [] float32, the most tokens that any rollout may have
    ref_logp: Any = None  # [B, T] float32, of the reference policy; None without a KL term
    sampler_logp: Any = None  # [B, T] float32, what the sampler's own program wrote down. Only for
    # truncated importance sampling, where `old_logp` is the trainer's program on the same weights.


def log_ratio(terms: Terms) -> Float[Array, "B T"]:
    """Log-prob now less log-prob then; 0 where nothing is free. Gradient through `logp` only."""
    # Select before exp: exp of what padding holds may be inf, and inf * 0 is nan.
    gap_BT = jnp.where(terms.free, terms.logp - jax.lax.stop_gradient(terms.old_logp), 0.0)
    return jnp.clip(gap_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def routed_by_design(terms: Terms, probability: float) -> Terms:
    """The terms with forced markers as free ones that were drawn with `probability`.

    AdaptThink (arXiv 2505.13417): half of a group is made to take either route, so that the first
    token's behaviour log-prob is log 0.5, whatever the policy thought of it. With this the router
    is trained on forced rollouts; without, a forced marker is in no loss. `num_tokens` goes on
    counting the tokens that the policy itself chose.
    """
    forced_BT = terms.marker & ~terms.free

    def drawn(logp_BT: Any) -> Any:
        return None if logp_BT is None else jnp.where(forced_BT, math.log(probability), logp_BT)

    return dataclasses.replace(
        terms,
        free=terms.free | forced_BT,
        old_logp=drawn(terms.old_logp),
        sampler_logp=drawn(terms.sampler_logp),
    )
