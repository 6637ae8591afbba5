"""Attention over whole sequences in blocks, in plain XLA: memory grows with T, not with T * T.

Lives here: `attend_blocks`, its gradient, and which blocks of keys a block of queries can skip.
Not here: who sees whom (`model/seen.py`), the kernels of accelerators (`model/splash.py`,
`model/fused.py`), attention over a cache (`model/attention.py`).

A block of queries walks over blocks of keys with a softmax in the making; the backward pass makes
each block of probabilities again from the sum that the forward pass kept. Blocks in the future are
never read, nor earlier blocks that hold other segments or other branches alone.

Letters beyond `types.py`: I blocks of queries, J blocks of keys, W tokens of a block; R query
heads of a key-value head (H = K * R), Q queries of a key-value head in a block (R * W).
Sources: online softmax (arXiv 1805.02867); FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from l2s_jax.model.seen import Places, Seen, sees

BLOCK = 64  # tokens; the fastest of 64, 128 and 256 at 512 tokens on two CPU cores (LOG.md)
T = TypeVar("T")
HIDDEN = -1e30  # finite, so that a block in which a query sees nothing yields numbers and no nan


def attend_blocks(
    q_BTHE: Float[Array, "B T H E"],
    k_BSKE: Float[Array, "B S K E"],
    v_BSKE: Float[Array, "B S K E"],
    seen: Seen,
) -> Float[Array, "B T H E"]:
    """Attention of the last T tokens over all S of the same pass."""
    queries, keys = q_BTHE.shape[1], k_BSKE.shape[1]
    # The first query begins a block.
    width = math.gcd(keys - queries, BLOCK) if keys > queries else min(BLOCK, queries)

    def fill(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, -keys % width), *[(0, 0)] * (x.ndim - 2)])

    branches = None if seen.branches is None else fill(seen.branches)
    seen = Seen(fill(seen.segment_ids), branches)
    out_BTHE: Any = _attend(width, fill(q_BTHE), fill(k_BSKE), fill(v_BSKE), seen)
    return out_BTHE[:, :queries]


@struct.dataclass
class _Keys:
    """Keys and values by block, each as the product that reads it wants it."""

    k_JBKEW: Any
    v_JBKWE: Any
    segment_ids: Any  # [J, B, W]
    branches: Any  # [J, B, W], or None
    order_IJ: Any  # for each block of queries the blocks of keys, those first that it sees any of
    num_I: Any  # how many those are


def _cut_queries(x_BTHE: Float[Array, "B T H E"], num_kv: int, width: int) -> Array:
    """[I, B, K, Q, E]"""
    batch, length, heads, size = x_BTHE.shape
    x = x_BTHE.reshape(batch, length // width, width, num_kv, heads // num_kv, size)
    return x.transpose(1, 0, 3, 4, 2, 5).reshape(length // width, batch, num_kv, -1, size)


def _join_queries(x_IBKQE: Float[Array, "I B K Q E"], width: int) -> Array:
    """[B, T, H, E]"""
    blocks, batch, num_kv, queries, size = x_IBKQE.shape
    x = x_IBKQE.reshape(blocks, batch, num_kv, queries // width, width, size)
    return x.transpose(1, 0, 4, 2, 3, 5).reshape(batch, blocks * width, -1, size)


def _cut_keys(x_BTKE: Float[Array, "B T K E"], width: int) -> Array:
    """[J, B, K, W, E]"""
    batch, length, num_kv, size = x_BTKE.shape
    return x_BTKE.reshape(batch, length // width, width, num_kv, size).transpose(1, 0, 3, 2, 4)


def _join_keys(x_JBKWE: Float[Array, "J B K W E"]) -> Array:
    """[B, T, K, E]"""
    blocks, batch, num_kv, width, size = x_JBKWE.shape
    return x_JBKWE.transpose(1, 0, 3, 2, 4).reshape(batch, blocks * width, num_kv, size)


def _cut_ids(x_BT: Int[Array, "B T"], width: int) -> Int[Array, "J B W"]:
    return x_BT.reshape(x_BT.shape[0], -1, width).swapaxes(0, 1)


def live_blocks(
    segment_ids: Int[Array, "J B W"], branches: Int[Array, "J B W"] | None
) -> Bool[Array, "I J"]:
    """True where a block of keys holds something that a block of queries sees, in any row.

    Judged by the ranges of the ids, which is exact where ids rise along the row and takes in
    too much, never too little, where they do not.
    """
    real_JBW = segment_ids > 0
    live_IJB = _ranges_meet(segment_ids, real_JBW)
    if branches is not None:
        trunk_JB = jnp.any(real_JBW & (branches == 0), axis=-1)
        live_IJB &= _ranges_meet(branches, real_JBW) | trunk_JB[None]
    return live_IJB.any(-1) | jnp.eye(len(segment_ids), dtype=bool)


def _ranges_meet(ids_JBW: Int[Array, "J B W"], real_JBW: Bool[Array, "J B W"]) -> Array:
    """[I, J, B], True where the ranges of two blocks' real ids have a number in common."""
    most = jnp.iinfo(jnp.int32).max
    low_JB = jnp.min(jnp.where(real_JBW, ids_JBW, most), axis=-1)
    high_JB = jnp.max(jnp.where(real_JBW, ids_JBW, -1), axis=-1)
    return (low_JB[:, None] <= high_JB[None]) & (low_JB[None] <= high_JB[:, None])


def _keys(width: int, k_BTKE: Array, v_BTKE: Array, seen: Seen) -> _Keys:
    ids_JBW = _cut_ids(seen.segment_ids, width)
    branches_JBW = None if seen.branches is None else _cut_ids(seen.branches, width)
    live_IJ = jnp.tril(live_blocks(ids_JBW, branches_JBW))
    return _Keys(
        k_JBKEW=_cut_keys(k_BTKE, width).swapaxes(3, 4),
        v_JBKWE=_cut_keys(v_BTKE, width),
        segment_ids=ids_JBW,
        branches=branches_JBW,
        order_IJ=jnp.argsort(~live_IJ, axis=1, stable=True),
        num_I=jnp.sum(live_IJ, axis=1),
    )


def _num_before(q_IBKQE: Array, keys: _Keys) -> int:
    """Blocks of keys before the first query."""
    return len(keys.k_JBKEW) - len(q_IBKQE)


def _over_live(keys: _Keys, i: Array, read: Callable[[Array, T], T], begin: T) -> T:
    """`begin` after `read` of every block of keys up to `i` that the queries see anything of."""
    order_J = keys.order_IJ[i]

    def read_next(n: Array, made: T) -> T:
        return read(order_J[n], made)

    return jax.lax.fori_loop(0, keys.num_I[i], read_next, begin)


def _at(tree: Any, index: Array) -> Any:
    """One block of every array."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False), tree)


def _scores(q_BKQE: Array, keys: _Keys, i: Array, j: Array) -> Float[Array, "B K Q W"]:
    """Scaled dot products of two blocks, `HIDDEN` where the query does not see the key."""
    batch, num_kv, queries, size = q_BKQE.shape
    width = keys.k_JBKEW.shape[-1]

    def block(index: Array) -> Places:
        ids, branches = _at((keys.segment_ids, keys.branches), index)
        return Places(ids, branches, index * width + jnp.arange(width))

    dots = jnp.einsum(
        "BKQE,BKEW->BKQW", q_BKQE, _at(keys.k_JBKEW, j), preferred_element_type=jnp.float32
    )
    dots = dots.reshape(batch, num_kv, queries // width, width, width) * size**-0.5
    dots = jnp.where(sees(block(i), block(j))[:, None, None], dots, HIDDEN)
    return dots.reshape(batch, num_kv, queries, width)


def _forward(q_IBKQE: Array, keys: _Keys) -> tuple[Array, Float[Array, "I B K Q"]]:
    """Every block's output, and the logarithm of each query's sum of exponentials."""

    before = _num_before(q_IBKQE, keys)

    def of_block(i: Array) -> tuple[Array, Array]:
        q_BKQE = _at(q_IBKQE, i)
        i = i + before

        def read(j: Array, partial: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            most, total, mixed = partial
            dots = _scores(q_BKQE, keys, i, j)
            new = jnp.maximum(most, jnp.max(dots, axis=-1))
            weights, scale = jnp.exp(dots - new[..., None]), jnp.exp(most - new)
            v_BKWE = _at(keys.v_JBKWE, j)
            more = _product("BKQW,BKWE->BKQE", weights.astype(v_BKWE.dtype), v_BKWE)
            total = total * scale + jnp.sum(weights, axis=-1)
            return new, total, mixed * scale[..., None] + more

        zeros = jnp.zeros(q_BKQE.shape, jnp.float32)
        begin = (zeros[..., 0] + HIDDEN, zeros[..., 0], zeros)
        most, total, mixed = _over_live(keys, i, read, begin)
        return (mixed / total[..., None]).astype(q_IBKQE.dtype), most + jnp.log(total)

    return jax.lax.map(of_block, jnp.arange(len(q_IBKQE)))


def _product(how: str, a: Array, b: Array) -> Array:
    return jnp.einsum(how, a, b, preferred_element_type=jnp.float32)


def _backward(
    q_IBKQE: Array, keys: _Keys, grad_IBKQE: Array, logsum_IBKQ: Array, inner_IBKQ: Array
) -> tuple[Array, Array, Array]:
    """Gradients of queries [I, B, K, Q, E], keys and values [J, B, K, W, E], in float32.

    Args:
      inner_IBKQ: each query's inner product of its output with the output's gradient.
    """
    dtype, size, before = q_IBKQE.dtype, q_IBKQE.shape[-1], _num_before(q_IBKQE, keys)

    def of_block(grads: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
        q_BKQE, grad_BKQE, logsum_BKQ, inner_BKQ = _at(
            (q_IBKQE, grad_IBKQE, logsum_IBKQ, inner_IBKQ), i
        )
        i = i + before

        def read(j: Array, grads: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq_BKQE, dk_JBKWE, dv_JBKWE = grads
            probs = jnp.exp(_scores(q_BKQE, keys, i, j) - logsum_BKQ[..., None])
            dprobs = _product("BKQE,BKWE->BKQW", grad_BKQE, _at(keys.v_JBKWE, j))
            dscores = (probs * (dprobs - inner_BKQ[..., None]) * size**-0.5).astype(dtype)
            dv_BKWE = _product("BKQW,BKQE->BKWE", probs.astype(dtype), grad_BKQE)
            dk_BKWE = _product("BKQW,BKQE->BKWE", dscores, q_BKQE)
            dq_BKQE += _product("BKQW,BKEW->BKQE", dscores, _at(keys.k_JBKEW, j))
            return dq_BKQE, dk_JBKWE.at[j].add(dk_BKWE), dv_JBKWE.at[j].add(dv_BKWE)

        begin = (jnp.zeros(q_BKQE.shape, jnp.float32), *grads)
        dq, dk, dv = _over_live(keys, i, read, begin)
        return (dk, dv), dq

    zeros = jnp.zeros(keys.v_JBKWE.shape, jnp.float32)
    (dk, dv), dq = jax.lax.scan(of_block, (zeros, zeros), jnp.arange(len(q_IBKQE)))
    return dq, dk, dv


def _with_logsum(width: int, q: Array, k: Array, v: Array, seen: Seen) -> tuple[Array, Array]:
    q_IBKQE = _cut_queries(q, k.shape[2], width)
    out_IBKQE, logsum_IBKQ = _forward(q_IBKQE, _keys(width, k, v, seen))
    return _join_queries(out_IBKQE, width), logsum_IBKQ


# A loop whose bounds are data has no gradient of its own.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(width: int, q_BTHE: Array, k_BTKE: Array, v_BTKE: Array, seen: Seen) -> Array:
    return _with_logsum(width, q_BTHE, k_BTKE, v_BTKE, seen)[0]


def _attend_forward(
    width: int, q_BTHE: Array, k_BTKE: Array, v_BTKE: Array, seen: Seen
) -> tuple[Array, tuple[Any, ...]]:
    out_BTHE, logsum_IBKQ = _with_logsum(width, q_BTHE, k_BTKE, v_BTKE, seen)
    return out_BTHE, (q_BTHE, k_BTKE, v_BTKE, seen, out_BTHE, logsum_IBKQ)


def _attend_backward(
    width: int, kept: tuple[Any, ...], grad_BTHE: Array
) -> tuple[Array, Array, Array, None]:
    q_BTHE, k_BTKE, v_BTKE, seen, out_BTHE, logsum_IBKQ = kept
    num_kv = k_BTKE.shape[2]
    q, grad, out = (_cut_queries(x, num_kv, width) for x in (q_BTHE, grad_BTHE, out_BTHE))
    inner_IBKQ = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    keys = _keys(width, k_BTKE, v_BTKE, seen)
    dq, dk, dv = _backward(q, keys, grad, logsum_IBKQ, inner_IBKQ)
    back = (_join_queries(dq, width), _join_keys(dk), _join_keys(dv))
    dq, dk, dv = (x.astype(q_BTHE.dtype) for x in back)
    return dq, dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)
