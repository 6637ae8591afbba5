"""One token per row from logits: drawn, or dictated by a controller.

Lives here: `choose` and the keys that name each draw. Not here: who dictates
(`sampling/controllers.py`), the loop (`sampling/loop.py`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

FREE = -1  # in `forced_B`: the controller leaves the choice to the policy


def row_keys(
    key: Key[Array, ""], row_id_B: UInt32[Array, " B"], position_B: Int[Array, " B"]
) -> Key[Array, " B"]:
    """One key per row, named by row id and position: re-batching changes no draw.

    Args:
      position_B: tokens that the row has drawn before.
    """

    def named(row_id, position):
        return jax.random.fold_in(jax.random.fold_in(key, row_id), position)

    return jax.vmap(named)(row_id_B, position_B)


def nucleus(logp_BV: Float[Array, "B V"], top_p_B: Float[Array, " B"]) -> Float[Array, "B V"]:
    """Probabilities of the smallest set of tokens whose mass reaches top_p, others 0.

    Not renormalised. Source: nucleus sampling, arXiv 1904.09751.
    """
    p_BV = jnp.exp(logp_BV)
    order_BV = jnp.argsort(-p_BV, axis=-1)
    sorted_BV = jnp.take_along_axis(p_BV, order_BV, axis=-1)
    before_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV  # mass of the likelier tokens
    kept_BV = jnp.where(before_BV < top_p_B[:, None], sorted_BV, 0.0)
    back_BV = jnp.argsort(order_BV, axis=-1)
    return jnp.take_along_axis(kept_BV, back_BV, axis=-1)


def draw(
    key_B: Key[Array, " B"], logp_BV: Float[Array, "B V"], top_p_B: Float[Array, " B"]
) -> Int[Array, " B"]:
    """A token per row from its nucleus: one uniform through the inverse of the cumulative sum.

    One random number a row, where Gumbel noise would take one per vocabulary entry.
    """
    p_BV = jax.lax.cond(
        jnp.any(top_p_B < 1.0), nucleus, lambda logp, _: jnp.exp(logp), logp_BV, top_p_B
    )
    mass_BV = jnp.cumsum(p_BV, axis=-1)
    uniform_B = jax.vmap(jax.random.uniform)(key_B)
    possible_BV = p_BV > 0
    # A parallel sum rounds differently at every place, so that it may rise where p is 0 and fall
    # elsewhere: the total is the largest sum that belongs to a possible token.
    total_B = jnp.max(mass_BV, axis=-1, where=possible_BV, initial=0.0)
    reach_B1 = (uniform_B * total_B)[:, None]
    token_B = jnp.argmax((mass_BV > reach_B1) & possible_BV, axis=-1)
    return token_B.astype(jnp.int32)


def choose(
    key_B: Key[Array, " B"],
    logits_BV: Float[Array, "B V"],
    forced_B: Int[Array, " B"],
    temperature_B: Float[Array, " B"],
    top_p_B: Float[Array, " B"],
) -> tuple[Int[Array, " B"], Float[Array, " B"], Bool[Array, " B"]]:
    """The token that enters each row, its log-prob, and True where the policy chose it.

    The log-prob is the policy's at the row's temperature before top-p, of the token that entered
    even when it was forced.

    Args:
      temperature_B: 0 is greedy; its log-probs are those of temperature 1.
    """
    greedy_B = temperature_B <= 0
    divisor_B = jnp.where(greedy_B, 1.0, temperature_B)
    logp_BV = jax.nn.log_softmax(logits_BV / divisor_B[:, None], axis=-1)
    best_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # A batch that is greedy throughout does not pay for a sum over the vocabulary.
    drawn_B = jax.lax.cond(jnp.all(greedy_B), lambda: best_B, lambda: draw(key_B, logp_BV, top_p_B))
    drawn_B = jnp.where(greedy_B, best_B, drawn_B)
    free_B = forced_B == FREE
    token_B = jnp.where(free_B, drawn_B, forced_B).astype(jnp.int32)
    return token_B, jnp.take_along_axis(logp_BV, token_B[:, None], axis=-1)[:, 0], free_B
