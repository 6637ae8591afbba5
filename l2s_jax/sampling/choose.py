"""One token per row from logits: drawn, or dictated by a controller.

Lives here: the keys that name each draw, truncation (top-k, top-p, min-p), the draw and `choose`.
Not here: who dictates (`sampling/controllers`), the loop (`sampling/loop.py`).

Letters beyond `types.py`: C blocks of the vocabulary, W entries of a block.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

FREE = -1  # in `forced_B`: the controller leaves the choice to the policy
BLOCK = 256  # vocabulary entries whose masses are summed before one is looked for
ONE = 0x3F800000  # the bits of 1.0: floats from 0 to 1 are ordered as their bits are


@struct.dataclass
class Draw:
    """How a row draws; all of it traced."""

    temperature: Any  # [B] float32, 0 is greedy
    top_k: Any  # [B] int32, 0 keeps all
    top_p: Any  # [B] float32, 1 keeps all
    min_p: Any  # [B] float32, 0 keeps all


@struct.dataclass
class Chosen:
    """What entered each row."""

    token: Any  # [B] int32
    logp: Any  # [B] float32, of the policy at the row's temperature, before truncation; nats
    kept_logp: Any  # [B] float32, after truncation; -inf for a forced token that was cut off
    free: Any  # [B] bool, True where the policy chose
    finite: Any  # [B] bool, False where the logits hold nan or plus infinity


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


def best(scores_BV: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The first place of each row's largest entry.

    Two plain reductions: on a CPU they take a quarter of the time of `argmax`.
    """
    most_B1 = jnp.max(scores_BV, axis=-1, keepdims=True)
    place_V = jnp.arange(scores_BV.shape[-1], dtype=jnp.int32)
    last = jnp.int32(scores_BV.shape[-1] - 1)
    return jnp.min(jnp.where(scores_BV == most_B1, place_V[None], last), axis=-1)


def smallest_allowed(share_BV: Float[Array, "B V"], too_many: Any) -> Float[Array, " B"]:
    """The smallest value in [0, 1] at which `too_many(kept_BV) -> [B]` no longer holds.

    By bisection over the bits of floats: exact, and without sorting the vocabulary.
    """
    low_B = jnp.full(share_BV.shape[0], -1, jnp.int32)  # too many, or below everything
    high_B = jnp.full(share_BV.shape[0], ONE, jnp.int32)

    def halve(_, bounds):
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B) // 2
        cut_B = jax.lax.bitcast_convert_type(jnp.maximum(middle_B, 0), jnp.float32)
        over_B = too_many(share_BV >= cut_B[:, None])
        return jnp.where(over_B, middle_B, low_B), jnp.where(over_B, high_B, middle_B)

    _, high_B = jax.lax.fori_loop(0, 31, halve, (low_B, high_B))
    return jax.lax.bitcast_convert_type(high_B, jnp.float32)


def truncate(share_BV: Float[Array, "B V"], draw: Draw) -> Float[Array, "B V"]:
    """`share_BV` with 0 where top-k, then top-p, then min-p cut off; ties stand or fall together.

    Args:
      share_BV: probability over the row's largest one.

    Sources: top-k arXiv 1805.04833, top-p arXiv 1904.09751, min-p arXiv 2407.01082; in the order
    of transformers.
    """
    every = share_BV.shape[-1]
    top_k_B = jnp.where(draw.top_k > 0, jnp.minimum(draw.top_k, every), every)

    def more_than_k(kept_BV):  # strictly above a cut that keeps k or more
        return jnp.sum(kept_BV, axis=-1) >= top_k_B

    # The largest cut that still keeps k is the k-th value itself: one bit below the smallest cut
    # that keeps fewer.
    share_BV = jnp.where(share_BV >= below(smallest_allowed(share_BV, more_than_k)), share_BV, 0.0)
    wanted_B = draw.top_p * jnp.sum(share_BV, axis=-1)

    def enough_mass(kept_BV):
        return jnp.sum(share_BV, axis=-1, where=kept_BV) >= wanted_B

    nucleus_BV = share_BV >= below(smallest_allowed(share_BV, enough_mass))
    share_BV = jnp.where(nucleus_BV | (draw.top_p >= 1)[:, None], share_BV, 0.0)
    return jnp.where(share_BV >= draw.min_p[:, None], share_BV, 0.0)


def below(cut_B: Float[Array, " B"]) -> Float[Array, "B 1"]:
    """The next smaller float of each."""
    bits_B = jax.lax.bitcast_convert_type(cut_B, jnp.int32)
    return jax.lax.bitcast_convert_type(jnp.maximum(bits_B - 1, 0), jnp.float32)[:, None]


def invert(
    share_BV: Float[Array, "B V"], uniform_B: Float[Array, " B"]
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """(the entry that each row's uniform falls on, the row's total mass).

    The inverse of the cumulative sum, first over blocks of the vocabulary, then within one: one
    random number a row, and no sum over the whole vocabulary entry by entry.
    """
    batch, vocab = share_BV.shape
    width = min(BLOCK, vocab)
    share_BCW = jnp.pad(share_BV, ((0, 0), (0, -vocab % width))).reshape(batch, -1, width)
    mass_BC = jnp.sum(share_BCW, axis=-1)
    until_BC = jnp.cumsum(mass_BC, axis=-1)
    total_B = until_BC[:, -1]
    reach_B = uniform_B * total_B
    block_B = first_past(until_BC, mass_BC > 0, reach_B)
    rows_B = jnp.arange(batch)
    left_B = reach_B - (until_BC[rows_B, block_B] - mass_BC[rows_B, block_B])
    share_BW = jnp.take_along_axis(share_BCW, block_B[:, None, None], axis=1)[:, 0]
    within_B = first_past(jnp.cumsum(share_BW, axis=-1), share_BW > 0, left_B)
    return (block_B * width + within_B).astype(jnp.int32), total_B


def first_past(
    until_BX: Float[Array, "B X"], possible_BX: Bool[Array, "B X"], reach_B: Float[Array, " B"]
) -> Int[Array, " B"]:
    """The first possible place whose cumulative mass passes `reach_B`.

    Parallel sums round differently at every place, so that none may pass it: then the last
    possible place.
    """
    place_X = jnp.arange(until_BX.shape[-1], dtype=jnp.int32)[None]
    past_BX = (until_BX > reach_B[:, None]) & possible_BX
    first_B = jnp.min(jnp.where(past_BX, place_X, until_BX.shape[-1]), axis=-1)
    last_B = jnp.max(jnp.where(possible_BX, place_X, 0), axis=-1)
    return jnp.minimum(first_B, last_B)


@struct.dataclass
class Distribution:
    """What each row draws from, and what its log-probs are taken from."""

    scaled: Any  # [B, V] float32, the policy's logits over the temperature
    most: Any  # [B] float32, their largest
    total: Any  # [B] float32, the sum of exp(scaled - most)
    kept: Any  # [B, V] float32, shares that may be drawn: shaped and truncated
    kept_total: Any  # [B] float32

    def entropy(self) -> Float[Array, " B"]:
        """Of the policy at the row's temperature, nats."""
        offset_BV = self.scaled - self.most[:, None]
        # Where the probability is 0 its logarithm may be infinite; the product is 0.
        terms_BV = jnp.where(jnp.isfinite(offset_BV), offset_BV, 0.0) * jnp.exp(offset_BV)
        return jnp.log(self.total) - jnp.sum(terms_BV, axis=-1) / self.total


@dataclasses.dataclass(frozen=True)
class Shape:
    """A change to the logits that are drawn from; a token's log-prob does not know of it."""

    apply: Callable[[Array], Array]  # [B, V] to [B, V]
    wanted: Bool[Array, ""]  # False where it would change nothing, and is not computed

    def __call__(self, logits_BV: Float[Array, "B V"]) -> Float[Array, "B V"]:
        return jax.lax.cond(self.wanted, self.apply, lambda same: same, logits_BV)


def distribution(
    logits_BV: Float[Array, "B V"], draw: Draw, shape: Shape | None = None
) -> Distribution:
    """The distribution of each row's next token."""
    divisor_B1 = jnp.where(draw.temperature <= 0, 1.0, draw.temperature)[:, None]
    scaled_BV = logits_BV / divisor_B1
    most_B = jnp.max(scaled_BV, axis=-1)
    kept_BV = share_BV = jnp.exp(scaled_BV - most_B[:, None])
    if shape is not None:

        def shaped_share(logits_BV):
            shaped_BV = shape.apply(logits_BV) / divisor_B1
            return jnp.exp(shaped_BV - jnp.max(shaped_BV, axis=-1, keepdims=True))

        kept_BV = jax.lax.cond(shape.wanted, shaped_share, lambda _: share_BV, logits_BV)
    cut_B = (draw.top_k > 0) | (draw.top_p < 1) | (draw.min_p > 0)
    kept_BV = jax.lax.cond(
        jnp.any(cut_B), lambda share: truncate(share, draw), lambda share: share, kept_BV
    )
    return Distribution(
        scaled=scaled_BV,
        most=most_B,
        total=jnp.sum(share_BV, axis=-1),
        kept=kept_BV,
        kept_total=jnp.sum(kept_BV, axis=-1),
    )


def pick(
    key_B: Key[Array, " B"],
    dist: Distribution,
    forced_B: Int[Array, " B"],
    draw: Draw,
    shape: Shape | None = None,
) -> Int[Array, " B"]:
    """The token that enters each row: a draw, or `forced_B` where that is not FREE."""
    greedy_B = draw.temperature <= 0
    drawn_B, _ = invert(dist.kept, jax.vmap(jax.random.uniform)(key_B))

    def greedy():  # by the logits: shares may round to a tie
        return best(dist.scaled if shape is None else shape(dist.scaled))

    best_B = jax.lax.cond(jnp.any(greedy_B), greedy, lambda: jnp.zeros_like(drawn_B))
    drawn_B = jnp.where(greedy_B, best_B, drawn_B)
    return jnp.where(forced_B == FREE, drawn_B, forced_B).astype(jnp.int32)


def score(dist: Distribution, token_B: Int[Array, " B"], free_B: Bool[Array, " B"]) -> Chosen:
    """What is recorded of the token that entered each row, whoever chose it.

    Greedy rows (temperature 0) report the log-probs of temperature 1.
    """
    rows_B = jnp.arange(token_B.shape[0])
    kept_B = dist.kept[rows_B, token_B]
    possible_B = kept_B > 0
    kept_logp_B = jnp.log(jnp.where(possible_B, kept_B, 1.0)) - jnp.log(dist.kept_total)
    return Chosen(
        token=token_B,
        logp=dist.scaled[rows_B, token_B] - dist.most - jnp.log(dist.total),
        kept_logp=jnp.where(possible_B, kept_logp_B, -jnp.inf),
        free=free_B,
        finite=jnp.isfinite(dist.most) & jnp.isfinite(dist.total),
    )


def choose(
    key_B: Key[Array, " B"], logits_BV: Float[Array, "B V"], forced_B: Int[Array, " B"], draw: Draw
) -> Chosen:
    """The token that enters each row, and its log-probs, with nothing in between."""
    dist = distribution(logits_BV, draw)
    return score(dist, pick(key_B, dist, forced_B, draw), forced_B == FREE)
