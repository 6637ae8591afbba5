"""Grouped-query attention over a token's own pass and over what is cached before it.

Lives here: who sees whom (`visible`), the attention arithmetic, the linen module. Not here:
the cache record (`model/cache.py`), rotary angles (`model/layers.py`).

Letters beyond `types.py`: R query heads per key-value head (H = K * R); Q queries of a key-value
head (R * T); C rows behind one prompt.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from l2s_jax.model.cache import BLOCK, PART, Cache, Shared, Stored
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.layers import Linear, RMSNorm, rotate

HIDDEN = -1e30  # finite, so that a row that sees nothing yields numbers and no nan


def visible(
    segment_ids_BT: Int[Array, "B T"], branches_BT: Int[Array, "B T"]
) -> Bool[Array, "B T T"]:
    """True where the query (second axis) may look at the key (third axis).

    A token sees what stands before it, in its own segment, on the trunk (branch 0) or on its own
    branch. Segment 0 is padding: it sees itself alone.
    """
    same_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    real_B1T = (segment_ids_BT > 0)[:, None, :]
    trunk_B1T = (branches_BT == 0)[:, None, :]
    own_BTT = branches_BT[:, :, None] == branches_BT[:, None, :]
    index_T = jnp.arange(segment_ids_BT.shape[1])
    earlier_TT = index_T[:, None] >= index_T[None, :]
    itself_TT = index_T[:, None] == index_T[None, :]
    seen_BTT = earlier_TT[None] & same_BTT & real_B1T & (trunk_B1T | own_BTT)
    return seen_BTT | itself_TT[None]


def scores(
    q_BTHE: Float[Array, "B T H E"], k_BSKE: Float[Array, "B S K E"], mask_BTS: Bool[Array, "B T S"]
) -> Float[Array, "B K R T S"]:
    """Scaled dot products in float32, `HIDDEN` where the mask is False."""
    batch, queries, num_heads, size = q_BTHE.shape
    num_kv = k_BSKE.shape[2]
    q_BTKRE = q_BTHE.reshape(batch, queries, num_kv, num_heads // num_kv, size)
    dots = jnp.einsum("BTKRE,BSKE->BKRTS", q_BTKRE, k_BSKE, preferred_element_type=jnp.float32)
    return jnp.where(mask_BTS[:, None, None], dots * size**-0.5, HIDDEN)


def mix(
    probs_BKRTS: Float[Array, "B K R T S"], v_BSKE: Float[Array, "B S K E"]
) -> Float[Array, "B T H E"]:
    """Values averaged with the attention probabilities."""
    out = jnp.einsum("BKRTS,BSKE->BTKRE", probs_BKRTS.astype(v_BSKE.dtype), v_BSKE)
    batch, queries, num_kv, shared, size = out.shape
    return out.reshape(batch, queries, num_kv * shared, size)


def attend(
    q_BTHE: Float[Array, "B T H E"],
    k_BTKE: Float[Array, "B T K E"],
    v_BTKE: Float[Array, "B T K E"],
    mask_BTT: Bool[Array, "B T T"],
) -> Float[Array, "B T H E"]:
    """Attention of tokens over the tokens of the same pass."""
    return mix(nn.softmax(scores(q_BTHE, k_BTKE, mask_BTT), axis=-1), v_BTKE)


Partial = tuple[Float[Array, "B K Q"], Float[Array, "B K Q"], Float[Array, "B K Q E"]]
"""A softmax in the making: the largest score, the sum of exp(score - largest), and the values
weighted with those. Two of them merge into the one over both sets of keys, exactly."""


def merge(one: Partial, other: Partial) -> Partial:
    """The partial softmax over the keys of both."""
    most = jnp.maximum(one[0], other[0])
    scale_one, scale_other = jnp.exp(one[0] - most), jnp.exp(other[0] - most)
    total = one[1] * scale_one + other[1] * scale_other
    mixed = one[2] * scale_one[..., None] + other[2] * scale_other[..., None]
    return most, total, mixed


def partial_softmax(
    scores_BKQS: Float[Array, "B K Q S"], v_BKSE: Float[Array, "B K S E"]
) -> Partial:
    """The softmax over some keys, not yet divided."""
    most = jnp.max(scores_BKQS, axis=-1)
    weights = jnp.exp(scores_BKQS - most[..., None])
    mixed = jnp.einsum(
        "BKQS,BKSE->BKQE",
        weights.astype(v_BKSE.dtype),
        v_BKSE,
        preferred_element_type=jnp.float32,
    )
    return most, jnp.sum(weights, axis=-1), mixed


def over_stored(
    q_BKQE: Float[Array, "B K Q E"], stored: Stored, layer: Int[Array, ""], begin: Partial
) -> Partial:
    """`begin` merged with one layer's stored keys, block by block up to the longest row.

    What is allocated beyond the longest row costs nothing; its last block is read in parts.
    """
    capacity = stored.v.shape[3]
    longest = jnp.max(stored.lengths, initial=0)

    def read(width: int, start: Any, number: Any, partial: Partial) -> Partial:
        def block(index, partial):
            return merge(partial, _block(q_BKQE, stored, layer, start + index * width, width))

        return jax.lax.fori_loop(0, number, block, partial)

    whole, part = longest // BLOCK, min(PART, capacity)
    if capacity >= BLOCK:
        begin = read(BLOCK, 0, whole, begin)
    left = longest - whole * BLOCK
    return read(part, whole * BLOCK, (left + part - 1) // part, begin)


def _block(
    q_BKQE: Float[Array, "B K Q E"],
    stored: Stored,
    layer: Int[Array, ""],
    first: Int[Array, ""] | int,
    width: int,
) -> Partial:
    """The partial softmax over `width` stored places from `first` on."""
    _, batch, num_kv, _, size = stored.v.shape
    k_BKES = jax.lax.dynamic_slice(
        stored.k, (layer, 0, 0, 0, first), (1, batch, num_kv, size, width)
    )[0]
    v_BKSE = jax.lax.dynamic_slice(
        stored.v, (layer, 0, 0, first, 0), (1, batch, num_kv, width, size)
    )[0]
    dots = jnp.einsum("BKQE,BKES->BKQS", q_BKQE, k_BKES, preferred_element_type=jnp.float32)
    filled_BS = (first + jnp.arange(width))[None] < stored.lengths[:, None]
    dots = jnp.where(filled_BS[:, None, None], dots * size**-0.5, HIDDEN)
    return partial_softmax(dots, v_BKSE)


def over_shared(q_BKQE: Float[Array, "B K Q E"], shared: Shared, layer: Int[Array, ""]) -> Partial:
    """Each row's partial softmax over its beginning, which is read once for all its rows.

    The queries of the rows behind a beginning become one query axis of attention over [N, P].
    """
    num_prompts, places = shared.row_at.shape
    _, num_kv, queries, size = q_BKQE.shape
    q_NCKQE = jnp.take(q_BKQE, shared.row_at, axis=0, mode="fill", fill_value=0)
    q_NKXE = jnp.moveaxis(q_NCKQE, 2, 1).reshape(num_prompts, num_kv, places * queries, size)
    nothing = jnp.zeros(q_NKXE.shape[:-1], jnp.float32)
    begin = (nothing + HIDDEN, nothing, jnp.zeros(q_NKXE.shape, jnp.float32))
    by_prompt = over_stored(q_NKXE, shared.stored, layer, begin)

    def by_row(x: Array) -> Array:
        x = x.reshape(num_prompts, num_kv, places, queries, *x.shape[3:])
        x = jnp.moveaxis(x, 2, 1).reshape(num_prompts * places, num_kv, queries, *x.shape[4:])
        return jnp.take(x, shared.seat, axis=0, mode="clip")

    return by_row(by_prompt[0]), by_row(by_prompt[1]), by_row(by_prompt[2])


def attend_cached(
    q_BTHE: Float[Array, "B T H E"],
    k_BTKE: Float[Array, "B T K E"],
    v_BTKE: Float[Array, "B T K E"],
    mask_BTT: Bool[Array, "B T T"],
    cache: Cache,
    layer: Int[Array, ""],
) -> Float[Array, "B T H E"]:
    """Attention over the tokens of the same pass, the row's tail and beginning: one softmax."""
    batch, queries, num_heads, size = q_BTHE.shape
    num_kv = k_BTKE.shape[2]
    own = scores(q_BTHE, k_BTKE, mask_BTT).reshape(batch, num_kv, -1, queries)
    partial = partial_softmax(own, jnp.swapaxes(v_BTKE, 1, 2))
    q_BTKRE = q_BTHE.reshape(batch, queries, num_kv, num_heads // num_kv, size)
    q_BKQE = jnp.moveaxis(q_BTKRE, 1, 3).reshape(batch, num_kv, -1, size)
    partial = over_stored(q_BKQE, cache.tail, layer, partial)
    for shared in cache.shared:
        partial = merge(partial, over_shared(q_BKQE, shared, layer))
    _, total, mixed = partial
    out_BKRTE = (mixed / total[..., None]).reshape(batch, num_kv, -1, queries, size)
    out_BTHE = jnp.moveaxis(out_BKRTE, 3, 1).reshape(batch, queries, num_heads, size)
    return out_BTHE.astype(v_BTKE.dtype)


class Attention(nn.Module):
    """Projections around attention; returns its output and the new keys and values."""

    cfg: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        angles: tuple[Float[Array, "B T half"], Float[Array, "B T half"]],
        mask_BTT: Bool[Array, "B T T"],
        cache: Cache | None,
        layer: Int[Array, ""],
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T K E"], Float[Array, "B T K E"]]]:
        cfg = self.cfg
        batch, queries, _ = x_BTD.shape

        def linear(name: str, features: int, axes: tuple[str, str], bias: bool) -> Linear:
            return Linear(features, axes, cfg.compute_dtype, use_bias=bias, name=name)

        def project(name: str, heads: int, axis: str) -> Float[Array, "B T heads E"]:
            into = linear(name, heads * cfg.head_dim, ("width", axis), cfg.qkv_bias)
            return into(x_BTD).reshape(batch, queries, heads, cfg.head_dim)

        def place(x: Float[Array, "B T heads E"], norm: str) -> Float[Array, "B T heads E"]:
            if cfg.qk_norm:
                x = RMSNorm(cfg.rms_eps, axis=None, name=norm)(x)
            return rotate(x, *angles)

        q_BTHE = place(project("q_proj", cfg.num_heads, "heads"), "q_norm")
        k_BTKE = place(project("k_proj", cfg.num_kv_heads, "kv_heads"), "k_norm")
        v_BTKE = project("v_proj", cfg.num_kv_heads, "kv_heads")
        if cache is None:
            out_BTHE = attend(q_BTHE, k_BTKE, v_BTKE, mask_BTT)
        else:
            out_BTHE = attend_cached(q_BTHE, k_BTKE, v_BTKE, mask_BTT, cache, layer)
        back = linear("o_proj", cfg.width, ("heads", "width"), cfg.o_bias)
        return back(out_BTHE.reshape(batch, queries, -1)), (k_BTKE, v_BTKE)
