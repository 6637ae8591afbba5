"""Log-probabilities of tokens, from hidden states, in blocks of the vocabulary.

Lives here: the one way from the last hidden states and the head matrix to what the losses read.
Not here: the model that makes the hidden states (`model`), the losses (`sft`, `losses`), the
sampler's own log-probs of a single position (`sampling.choose`), which these must agree with.

Shape letters: B rows, T time, D width, V vocabulary, P parts of a row, S the positions of a part, C
one block of the vocabulary, R rows of the head that an adapter has of its own.

The head is one row per token, `head_VD`, as a tied embedding is stored; an untied kernel [D, V]
is passed transposed. [B, T, V] is never held: the running maximum and sum are those of online
softmax (Milakov & Gimelshein, arXiv 1805.02867), and the gradient makes each block's logits again
from the saved maximum and sum, as cut cross-entropy does (arXiv 2411.09009). The two are kept
apart: their sum in logarithms is rounded to the last place of the largest logit, and every
probability would be off by as much.

Positions that no loss reads never meet the head. In each row those that are wanted move to the
front, rows are cut into parts, and within a block of the vocabulary a loop runs over as many parts
as the fullest row needs: its body is compiled once. The loop over blocks is the outer one, so that
a block of the head is gathered from other devices once. Rows stay on their devices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

Temperature = Float[Array, ""] | Float[Array, " B"] | float

MAX_PARTS, SHORTEST = 4, 128


@dataclasses.dataclass(frozen=True)
class Places:
    """Where a block of the head lies, [C, D], on several devices. Default: as the compiler likes.

    Without `gather` it is gathered for each part of the rows, without `scatter` every device holds
    the gradient of the whole head.
    """

    gather: Callable[[Array], Array] = lambda head_CD: head_CD  # to where all rows can read it
    scatter: Callable[[Array], Array] = lambda grad_CD: grad_CD  # its gradient, cut as the head is


ANYWHERE = Places()


@struct.dataclass
class OwnRows:
    """Rows of the head that stand in place of the table's; they are trained, and it is frozen."""

    ids: Any  # [R] int32, each once
    rows: Any  # [R, D]


def token_logp(
    hidden_BTD: Float[Array, "B T D"],
    head_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    *,
    wanted_BT: Bool[Array, "B T"] | None = None,
    own: OwnRows | None = None,
    temperature: Temperature = 1.0,
    block: int = 8192,
    places: Places = ANYWHERE,
) -> Float[Array, "B T"]:
    """Returns the log-prob of each target in nats, float32, with gradients to hidden and head.

    Args:
      targets_BT: ids; one outside the vocabulary, which padding may hold, is read as the nearest
        inside, so that its log-prob is finite. The loss must mask it.
      wanted_BT: True where the log-prob is read; elsewhere it is 0, has no gradient and costs
        nothing. None: everywhere.
      own: an adapter's rows of the head. With them the table gets no gradient.
      temperature: above 0, for all rows or one per row; it divides the logits and gets no
        gradient.
      block: the most vocabulary rows whose logits are held at a time.
      places: of blocks of the head, on a mesh.
    """
    if block < 1:
        raise ValueError(f"block={block}: no logits at a time. Give 1 or more; 8192 is usual.")
    if isinstance(temperature, float | int) and not temperature > 0:
        raise ValueError(
            f"temperature={temperature}: log-probs need one above 0. For tokens that were"
            " chosen greedily pass 1.0."
        )
    num_rows, num_words = hidden_BTD.shape[0], head_VD.shape[0]
    inverse_B = jnp.broadcast_to(1.0 / jnp.asarray(temperature, jnp.float32), (num_rows,))
    targets_BT = jnp.clip(targets_BT, 0, num_words - 1)
    if wanted_BT is None:
        wanted_BT = jnp.ones(targets_BT.shape, bool)
    block = even_block(num_words, block)
    return _blocked(block, places, hidden_BTD, head_VD, own, targets_BT, wanted_BT, inverse_B)


def even_block(num_words: int, most: int) -> int:
    """Vocabulary rows of a block: as many blocks as `most` makes necessary, nearly alike."""
    if num_words <= most:
        return num_words
    even = -(-num_words // -(-num_words // most))
    return min(-(-even // 128) * 128, most)  # the width of a matrix unit


def _logits(hidden_BSD, head_CD, inverse_B):
    """Logits over some rows of the head: operands in the type of the hidden states, sums float32.

    As the sampler makes them, so that both see the same rounded head.
    """
    logits_BSC = jnp.einsum(
        "bsd,cd->bsc",
        hidden_BSD,
        head_CD.astype(hidden_BSD.dtype),
        preferred_element_type=jnp.float32,
    ).astype(jnp.float32)
    return logits_BSC * inverse_B[:, None, None]


def _block_of(index, block, head_VD, own):
    """Returns (start, head_CD, live_11C): the block's rows, and True on those that count.

    The last block is moved back to end with the vocabulary, so that the head is never padded
    (a copy of the largest matrix of the model); rows that it repeats do not count, nor do those
    that an adapter has of its own.
    """
    first = index * block
    start = jnp.minimum(first, head_VD.shape[0] - block)
    head_CD = jax.lax.dynamic_slice_in_dim(head_VD, start, block)
    word_C = start + jnp.arange(block)
    live_C = word_C >= first
    if own is not None:
        live_C &= ~jnp.any(word_C[:, None] == own.ids[None, :], axis=1)
    return start, head_CD, live_C[None, None]


def _num_blocks(block, head_VD):
    return -(-head_VD.shape[0] // block)


def num_parts(time: int) -> int:
    """Parts of a row of `time` positions, each of which is left out where no row needs it."""
    return max(1, min(-(-time // SHORTEST), MAX_PARTS))


def parts_needed(wanted_BT: Bool[Array, "B T"]) -> Int[Array, ""]:
    """Of `num_parts`, how many hold what the fullest row wants."""
    time = wanted_BT.shape[1]
    fullest = jnp.max(jnp.sum(wanted_BT, axis=1, dtype=jnp.int32))
    return -(-fullest // -(-time // num_parts(time)))


def _cut(wanted_BT, array):
    """[B, T, ...] as [P, B, S, ...]: each row's wanted positions first, then zeros."""
    rows, time = wanted_BT.shape
    order_BT = jnp.argsort(~wanted_BT, axis=1, stable=True)
    there_BT = jnp.arange(time)[None] < jnp.sum(wanted_BT, axis=1, keepdims=True)
    widen = (..., *[None] * (array.ndim - 2))
    moved = jnp.take_along_axis(array, order_BT[widen], axis=1)
    # Padding may hold anything, nan too, and 0 * nan would reach the head's gradient.
    moved = jnp.where(there_BT[widen], moved, 0)
    parts = num_parts(time)
    moved = jnp.pad(moved, [(0, 0), (0, -time % parts), *[(0, 0)] * (array.ndim - 2)])
    return jnp.moveaxis(moved.reshape(rows, parts, -1, *array.shape[2:]), 1, 0)


def _join(wanted_BT, array):
    """The inverse of `_cut`: zero where nothing is wanted."""
    rank_BT = jnp.maximum(jnp.cumsum(wanted_BT, axis=1) - 1, 0)
    array = jnp.moveaxis(array, 0, 1)
    array = array.reshape(array.shape[0], -1, *array.shape[3:])
    widen = (..., *[None] * (array.ndim - 2))
    back = jnp.take_along_axis(array, rank_BT[widen], axis=1)
    return jnp.where(wanted_BT[widen], back, 0)


def _over_parts(needed, of_part, body, state):
    """`state` after `body(part, state)` on each part that is needed; a lone part always is."""
    if of_part[0].shape[0] == 1:
        return body(0, state)
    return jax.lax.fori_loop(0, needed, body, state)


def _take(tree, part):
    """One part of arrays [P, ...]."""
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, part, keepdims=False), tree)


def _put(tree, part, values):
    def put(array, value):
        return jax.lax.dynamic_update_index_in_dim(array, value, part, 0)

    return jax.tree.map(put, tree, values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blocked(block, places, hidden_BTD, head_VD, own, targets_BT, wanted_BT, inverse_B):
    return _blocked_forward(
        block, places, hidden_BTD, head_VD, own, targets_BT, wanted_BT, inverse_B
    )[0]


def _blocked_forward(block, places, hidden_BTD, head_VD, own, targets_BT, wanted_BT, inverse_B):
    of_part = tuple(_cut(wanted_BT, array) for array in (hidden_BTD, targets_BT))
    made = _forward(block, places, of_part, parts_needed(wanted_BT), head_VD, own, inverse_B)
    logp_BT, *partition = (_join(wanted_BT, array) for array in made)
    saved = (hidden_BTD, head_VD, own, targets_BT, wanted_BT, inverse_B, *partition)
    return logp_BT, saved


def _forward(block, places, of_part, needed, head_VD, own, inverse_B):
    """Returns (logp, maximum, sum of exp above it) of each, [P, B, S]."""

    def absorb(state, hidden_BSD, head_CD, live_11C, at_BS, here_BS):
        max_BS, sum_BS, picked_BS = state
        logits_BSC = _logits(hidden_BSD, head_CD, inverse_B)
        new_max_BS = jnp.maximum(
            max_BS, jnp.max(logits_BSC, axis=-1, where=live_11C, initial=-jnp.inf)
        )
        weight_BSC = jnp.where(live_11C, jnp.exp(logits_BSC - new_max_BS[..., None]), 0.0)
        decay_BS = jnp.exp(max_BS - new_max_BS)  # 0 in the first block, whose old maximum is -inf
        sum_BS = sum_BS * decay_BS + weight_BSC.sum(axis=-1)
        at_BS1 = jnp.clip(at_BS, 0, logits_BSC.shape[-1] - 1)[..., None]
        logit_BS = jnp.take_along_axis(logits_BSC, at_BS1, axis=-1)[..., 0]
        return new_max_BS, sum_BS, jnp.where(here_BS, logit_BS, picked_BS)

    def owned(targets_BS):
        """(place among an adapter's words, True where it is one)."""
        hit_BSR = targets_BS[..., None] == own.ids[None, None]
        return jnp.argmax(hit_BSR, axis=-1), jnp.any(hit_BSR, axis=-1)

    def own_words(part, state_P):
        hidden_BSD, targets_BS = _take(of_part, part)
        live_11R = jnp.ones((1, 1, own.ids.shape[0]), bool)
        state = _take(state_P, part)
        return _put(
            state_P, part, absorb(state, hidden_BSD, own.rows, live_11R, *owned(targets_BS))
        )

    def body(index, state_P):
        start, head_CD, live_11C = _block_of(index, block, head_VD, own)
        head_CD = places.gather(head_CD.astype(of_part[0].dtype))

        def on_part(part, state_P):
            hidden_BSD, targets_BS = _take(of_part, part)
            at_BS = targets_BS - start
            here_BS = (at_BS >= 0) & (at_BS < block)
            if with_own:
                here_BS &= ~owned(targets_BS)[1]
            state = absorb(_take(state_P, part), hidden_BSD, head_CD, live_11C, at_BS, here_BS)
            return _put(state_P, part, state)

        return _over_parts(needed, of_part, on_part, state_P)

    zeros_PBS = jnp.zeros(of_part[1].shape, jnp.float32)
    state_P = (jnp.full_like(zeros_PBS, -jnp.inf), zeros_PBS, zeros_PBS)
    with_own = own is not None and own.ids.shape[0] > 0
    if with_own:  # first, so that a block of nothing but such words finds a maximum
        state_P = _over_parts(needed, of_part, own_words, state_P)
    max_PBS, sum_PBS, picked_PBS = jax.lax.fori_loop(0, _num_blocks(block, head_VD), body, state_P)
    logp_PBS = picked_PBS - max_PBS - jnp.log(sum_PBS)
    return logp_PBS, max_PBS, sum_PBS


def _blocked_backward(block, places, saved, cotangent_BT):
    hidden_BTD, head_VD, own, targets_BT, wanted_BT, inverse_B, max_BT, sum_BT = saved
    scale_BT = cotangent_BT * inverse_B[:, None]
    by_row = (hidden_BTD, targets_BT, scale_BT, max_BT, sum_BT)
    of_part = tuple(_cut(wanted_BT, array) for array in by_row)
    hidden_grad_PBSD, head_grad_VD, rows_grad_RD = _backward(
        block, places, of_part, parts_needed(wanted_BT), head_VD, own, inverse_B
    )
    own_grad = None if own is None else OwnRows(ids=None, rows=rows_grad_RD)
    return _join(wanted_BT, hidden_grad_PBSD), head_grad_VD, own_grad, None, None, None


def _backward(block, places, of_part, needed, head_VD, own, inverse_B):
    """Returns gradients of hidden states, of the head or None, and of an adapter's rows or None."""
    dtype = of_part[0].dtype
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def add_up(hidden_grad_PBSD, head_CD, live_11C, word_C, *, wants_own):
        """Adds to hidden states what these rows of the head give, and returns what they get."""

        def on_part(part, grads):
            hidden_grad_PBSD, rows_grad_CD = grads
            hidden_BSD, targets_BS, scale_BS, max_BS, sum_BS = _take(of_part, part)
            # A sum holds exp(0) of its maximum; past what a row wants it is 0.
            share_BS1 = 1 / jnp.maximum(sum_BS, 1.0)[..., None]
            hit_BSC = targets_BS[..., None] == word_C[None, None]
            weight_BSC = jnp.exp(_logits(hidden_BSD, head_CD, inverse_B) - max_BS[..., None])
            grad_BSC = (hit_BSC - weight_BSC * share_BS1) * scale_BS[..., None]
            grad_BSC = jnp.where(live_11C, grad_BSC, 0.0)
            grad_BSC = grad_BSC.astype(dtype)  # matrix units take one type
            to_hidden_BSD = dot("bsc,cd->bsd", grad_BSC, head_CD)
            before_BSD = _take(hidden_grad_PBSD, part)
            hidden_grad_PBSD = _put(hidden_grad_PBSD, part, before_BSD + to_hidden_BSD)
            if rows_grad_CD is not None:
                rows_grad_CD = rows_grad_CD + dot("bsc,bsd->cd", grad_BSC, hidden_BSD)
            return hidden_grad_PBSD, rows_grad_CD

        rows_grad_CD = jnp.zeros(head_CD.shape, jnp.float32) if wants_own else None
        return _over_parts(needed, of_part, on_part, (hidden_grad_PBSD, rows_grad_CD))

    def body(index, grads):
        hidden_grad_PBSD, head_grad_VD = grads
        start, head_CD, live_11C = _block_of(index, block, head_VD, own)
        head_CD = places.gather(head_CD.astype(of_part[0].dtype))
        word_C = start + jnp.arange(block)
        hidden_grad_PBSD, grad_CD = add_up(
            hidden_grad_PBSD, head_CD, live_11C, word_C, wants_own=own is None
        )
        if grad_CD is not None:
            # Added, not written: a repeated row keeps its gradient and is given exactly zero here.
            grad_CD = places.scatter(grad_CD.astype(head_VD.dtype))
            before_CD = jax.lax.dynamic_slice_in_dim(head_grad_VD, start, block)
            head_grad_VD = jax.lax.dynamic_update_slice_in_dim(
                head_grad_VD, before_CD + grad_CD, start, axis=0
            )
        return hidden_grad_PBSD, head_grad_VD

    hidden_grad_PBSD = jnp.zeros(of_part[0].shape, jnp.float32)
    head_grad_VD = places.scatter(jnp.zeros_like(head_VD)) if own is None else None
    rows_grad_RD = None if own is None else jnp.zeros_like(own.rows)
    if own is not None and own.ids.shape[0]:
        live_11R = jnp.ones((1, 1, 1), bool)
        hidden_grad_PBSD, rows_grad_RD = add_up(
            hidden_grad_PBSD, own.rows, live_11R, own.ids, wants_own=True
        )
        assert rows_grad_RD is not None
        rows_grad_RD = rows_grad_RD.astype(own.rows.dtype)
    hidden_grad_PBSD, head_grad_VD = jax.lax.fori_loop(
        0, _num_blocks(block, head_VD), body, (hidden_grad_PBSD, head_grad_VD)
    )
    return hidden_grad_PBSD.astype(dtype), head_grad_VD, rows_grad_RD


_blocked.defvjp(_blocked_forward, _blocked_backward)
