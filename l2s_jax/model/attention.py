"""Grouped-query attention over a token's own pass and over what is cached before it.

Lives here: attention behind a cache, and the linen module. Not here: attention over whole
sequences (`model/routes.py` has the choice), the cache record (`model/cache.py`), rotary angles
(`model/layers.py`).

Letters beyond `types.py`: R query heads per key-value head (H = K * R); Q queries of a key-value
head (R * T); C rows behind one prompt, or pages of a chunk; P places of a page.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from l2s_jax.model.cache import Cache, Shared, Stored, Tail
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.layers import Linear, RMSNorm, rotate
from l2s_jax.model.seen import Attend, Seen

HIDDEN = -1e30  # finite, so that a row that sees nothing yields numbers and no nan


def scores(
    q_BTHE: Float[Array, "B T H E"], k_BSKE: Float[Array, "B S K E"], mask_BTS: Bool[Array, "B T S"]
) -> Float[Array, "B K R T S"]:
    """Scaled dot products in float32, `HIDDEN` where the mask is False."""
    batch, queries, num_heads, size = q_BTHE.shape
    num_kv = k_BSKE.shape[2]
    q_BTKRE = q_BTHE.reshape(batch, queries, num_kv, num_heads // num_kv, size)
    dots = jnp.einsum("BTKRE,BSKE->BKRTS", q_BTKRE, k_BSKE, preferred_element_type=jnp.float32)
    return jnp.where(mask_BTS[:, None, None], dots * size**-0.5, HIDDEN)


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


def of_one_token(
    q_BKQE: Float[Array, "B K Q E"], k_BKE: Float[Array, "B K E"], v_BKE: Float[Array, "B K E"]
) -> Partial:
    """The partial softmax over a single key: its value itself."""
    products = q_BKQE.astype(jnp.float32) * k_BKE[:, :, None].astype(jnp.float32)
    dots_BKQ = jnp.sum(products, axis=-1) * q_BKQE.shape[3] ** -0.5
    mixed_BKQE = jnp.broadcast_to(v_BKE[:, :, None].astype(jnp.float32), q_BKQE.shape)
    return dots_BKQ, jnp.ones_like(dots_BKQ), mixed_BKQE


def over(
    q_BKQE: Float[Array, "B K Q E"], held: Stored | Tail, layer: int, begin: Partial
) -> Partial:
    """`begin` merged with one layer's keys of each row; what nobody has reached is skipped."""
    if isinstance(held, Tail):
        return over_tail(q_BKQE, held, layer, begin)
    start_B = jnp.zeros_like(held.lengths)
    return _over_segments(q_BKQE, held.segments(layer), start_B, held.lengths, begin)


def over_tail(q_BKQE: Float[Array, "B K Q E"], tail: Tail, layer: int, begin: Partial) -> Partial:
    """`begin` merged with one layer's keys that each row has written itself."""
    place_B = jnp.broadcast_to(tail.place, tail.lengths.shape)
    partial = _over_segments(q_BKQE, tail.segments(layer), tail.start, place_B, begin)
    for k_CKEP, v_CKPE, owner_C, start_C in tail.chunks(layer):

        def merged(partial, k_CKEP, v_CKPE, owner_C=owner_C, start_C=start_C):
            return over_pages(q_BKQE, k_CKEP, v_CKPE, owner_C, start_C, partial)

        owned = jnp.any(owner_C < tail.lengths.shape[0])
        partial = jax.lax.cond(owned, merged, _same, partial, k_CKEP, v_CKPE)
    return partial


def _over_segments(
    q_BKQE: Float[Array, "B K Q E"],
    segments: list[tuple[int, Array, Array]],
    start_B: Int[Array, " B"],
    end_B: Int[Array, " B"],
    begin: Partial,
) -> Partial:
    """`begin` merged with the places from each row's start to its end.

    The first segment is always read: there is hardly a step for which it holds nothing, and a
    branch costs a compiler as much as what it leaves out.
    """
    partial = begin
    for first, k_BKES, v_BKSE in segments:

        def merged(partial, k_BKES, v_BKSE, first=first):
            place_1S = first + jnp.arange(k_BKES.shape[3])[None]
            seen_BS = (place_1S >= start_B[:, None]) & (place_1S < end_B[:, None])
            return merge(partial, partial_softmax(_dots(q_BKQE, k_BKES, seen_BS), v_BKSE))

        if first == 0:
            partial = merged(partial, k_BKES, v_BKSE)
        else:
            reached = jnp.max(end_B) > first
            partial = jax.lax.cond(reached, merged, _same, partial, k_BKES, v_BKSE)
    return partial


def _same(partial: Partial, *_: Array) -> Partial:
    return partial


def _dots(
    q_BKQE: Float[Array, "B K Q E"], k_BKES: Float[Array, "B K E S"], seen_BS: Bool[Array, "B S"]
) -> Float[Array, "B K Q S"]:
    """Scaled dot products in float32, `HIDDEN` where a place is not seen."""
    dots = jnp.einsum("BKQE,BKES->BKQS", q_BKQE, k_BKES, preferred_element_type=jnp.float32)
    return jnp.where(seen_BS[:, None, None], dots * q_BKQE.shape[3] ** -0.5, HIDDEN)


def over_pages(
    q_BKQE: Float[Array, "B K Q E"],
    k_CKEP: Float[Array, "C K E P"],
    v_CKPE: Float[Array, "C K P E"],
    owner_C: Int[Array, " C"],
    start_C: Int[Array, " C"],
    begin: Partial,
) -> Partial:
    """`begin` merged with pages, each of which one row sees from its start on.

    Every page has the queries of its owner; what pages give is added up by row in a product with
    the matrix that says who owns which. Nothing is scattered.
    """
    owns_BC = jnp.arange(q_BKQE.shape[0])[:, None] == owner_C[None]

    def of_owner(x: Array) -> Array:
        return jnp.take(x, owner_C, axis=0, mode="fill", fill_value=0)

    seen_CP = jnp.arange(k_CKEP.shape[3])[None] >= start_C[:, None]
    dots_CKQP = _dots(of_owner(q_BKQE), k_CKEP, seen_CP)
    # Pages last, so that the processor takes many at a time.
    most_KQC = jnp.moveaxis(jnp.max(dots_CKQP, axis=-1), 0, -1)
    most_KQB = jnp.max(jnp.where(owns_BC[None, None], most_KQC[:, :, None], HIDDEN), axis=-1)
    most = jnp.maximum(begin[0], jnp.moveaxis(most_KQB, -1, 0))
    weights_CKQP = jnp.exp(dots_CKQP - of_owner(most)[..., None])
    mixed_CKQE = jnp.einsum(
        "CKQP,CKPE->CKQE",
        weights_CKQP.astype(v_CKPE.dtype),
        v_CKPE,
        preferred_element_type=jnp.float32,
    )
    given_CKQX = jnp.concatenate([mixed_CKQE, jnp.sum(weights_CKQP, -1, keepdims=True)], axis=-1)
    # What is no number stays with its row: times 0 it would reach all others.
    given_CKQX = jnp.where(jnp.isfinite(given_CKQX), given_CKQX, 0)
    found_BKQX = jnp.einsum(
        "BC,CKQX->BKQX",
        owns_BC.astype(jnp.float32),
        given_CKQX,
        precision=jax.lax.Precision.HIGHEST,
    )
    scale = jnp.exp(begin[0] - most)
    total = begin[1] * scale + found_BKQX[..., -1]
    return most, total, begin[2] * scale[..., None] + found_BKQX[..., :-1]


def over_shared(q_BKQE: Float[Array, "B K Q E"], shared: Shared, layer: int) -> Partial:
    """Each row's partial softmax over its beginning, which is read once for all its rows.

    The queries of the rows behind a beginning become one query axis of attention over [N, P].
    """
    num_prompts, places = shared.row_at.shape
    _, num_kv, queries, size = q_BKQE.shape
    q_NCKQE = jnp.take(q_BKQE, shared.row_at, axis=0, mode="fill", fill_value=0)
    q_NKXE = jnp.moveaxis(q_NCKQE, 2, 1).reshape(num_prompts, num_kv, places * queries, size)
    nothing = jnp.zeros(q_NKXE.shape[:-1], jnp.float32)
    begin = (nothing + HIDDEN, nothing, jnp.zeros(q_NKXE.shape, jnp.float32))
    by_prompt = over(q_NKXE, shared.stored, layer, begin)

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
    layer: int,
) -> Float[Array, "B T H E"]:
    """Attention over the tokens of the same pass, the row's tail and beginning: one softmax."""
    batch, queries, num_heads, size = q_BTHE.shape
    num_kv = k_BTKE.shape[2]
    q_BTKRE = q_BTHE.reshape(batch, queries, num_kv, num_heads // num_kv, size)
    q_BKQE = jnp.moveaxis(q_BTKRE, 1, 3).reshape(batch, num_kv, -1, size)
    if queries == 1:
        partial = of_one_token(q_BKQE, k_BTKE[:, 0], v_BTKE[:, 0])
    else:
        own = scores(q_BTHE, k_BTKE, mask_BTT).reshape(batch, num_kv, -1, queries)
        partial = partial_softmax(own, jnp.swapaxes(v_BTKE, 1, 2))
    partial = over(q_BKQE, cache.tail, layer, partial)
    for shared in cache.shared:
        partial = merge(partial, over_shared(q_BKQE, shared, layer))
    _, total, mixed = partial
    out_BKRTE = (mixed / total[..., None]).reshape(batch, num_kv, -1, queries, size)
    out_BTHE = jnp.moveaxis(out_BKRTE, 3, 1).reshape(batch, queries, num_heads, size)
    return out_BTHE.astype(v_BTKE.dtype)


class Attention(nn.Module):
    """Projections around attention; returns its output and the new keys and values."""

    cfg: ModelConfig
    attend: Attend  # over whole sequences; behind a cache there is one way

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        angles: tuple[Float[Array, "B T half"], Float[Array, "B T half"]],
        seen: Seen | Bool[Array, "B T T"],
        cache: Cache | None,
        layer: int,
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
            assert isinstance(seen, Seen)
            out_BTHE = self.attend(q_BTHE, k_BTKE, v_BTKE, seen)
        else:
            assert not isinstance(seen, Seen)
            out_BTHE = attend_cached(q_BTHE, k_BTKE, v_BTKE, seen, cache, layer)
        back = linear("o_proj", cfg.width, ("heads", "width"), cfg.o_bias)
        return back(out_BTHE.reshape(batch, queries, -1)), (k_BTKE, v_BTKE)
