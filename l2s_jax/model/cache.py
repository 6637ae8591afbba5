"""Keys and values of tokens already read. How much is filled is kept here and only here.

Lives here: the records and the ways to fill them. Not here: attention over them
(`model/attention.py`), when to grow a row (`sampling/loop.py`).

A row's own tokens are its tail [B, S]. A prompt that several rows continue is held once [N, P]; a
seat n * C + c is place c behind prompt n, and a row that works on it reads that prompt. Rows take
seats in any order, so that a row which ends makes room for any other.

Heads stand before positions, so that what attention reads at once lies side by side; keys lie with
their positions last, since products over a last axis that is also the other's are slow on a CPU.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

BLOCK = 128  # positions that attention reads at once; rooms are whole multiples of it
PART = 64  # of a block that is not full


@struct.dataclass
class Stored:
    """Keys and values of `lengths` tokens each, for all layers."""

    k: Any  # [L, B, K, E, S]
    v: Any  # [L, B, K, S, E]
    lengths: Any  # [B] int32


@struct.dataclass
class Shared:
    """Beginnings that several rows continue, each held once."""

    stored: Stored  # [L, N, K, P, E]
    row_at: Any  # [N, C] int32, the row on each seat; B on a free one
    seat: Any  # [B] int32, each row's seat; N * C for an idle row

    @property
    def places(self) -> int:
        """Seats behind each beginning."""
        return self.row_at.shape[1]


@struct.dataclass
class Cache:
    """What the rows of one pass can see beside their own tokens of that pass."""

    tail: Stored
    shared: tuple[Shared, ...] = ()  # what stands before the tail; none where that is all


def room(num_tokens: int) -> int:
    """Positions to hold `num_tokens`: whole blocks, or a power of two below one."""
    if num_tokens >= BLOCK:
        return -(-num_tokens // BLOCK) * BLOCK
    return max(16, 1 << (num_tokens - 1).bit_length())


def empty(shape: tuple[int, int, int, int, int], dtype: Any) -> Stored:
    """Room for [L, B, K, S, E] with nothing in it."""
    layers, rows, heads, places, size = shape
    return Stored(
        jnp.zeros((layers, rows, heads, size, places), dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros(rows, jnp.int32),
    )


def append(
    tail: Stored,
    k: Float[Array, "L B 1 K E"],
    v: Float[Array, "L B 1 K E"],
    active_B: Bool[Array, " B"],
) -> Stored:
    """`tail` with one more token on each active row.

    Inactive rows are written too, past their filled part, where nobody looks: a write that
    depends on the row would cost more than it saves.
    """
    rows_B = jnp.arange(tail.lengths.shape[0])
    return Stored(
        tail.k.at[:, rows_B, :, :, tail.lengths].set(jnp.moveaxis(k[:, :, 0], 0, 1), mode="drop"),
        tail.v.at[:, rows_B, :, tail.lengths].set(jnp.moveaxis(v[:, :, 0], 0, 1), mode="drop"),
        tail.lengths + active_B.astype(jnp.int32),
    )


def extend(
    tail: Stored, k: Float[Array, "L B T K E"], v: Float[Array, "L B T K E"], place: Int[Array, ""]
) -> Stored:
    """`tail` with the same T places from `place` on written for every row; lengths stay."""
    return dataclasses.replace(
        tail,
        k=jax.lax.dynamic_update_slice(tail.k, jnp.moveaxis(k, 2, 4), (0, 0, 0, 0, place)),
        v=jax.lax.dynamic_update_slice(tail.v, jnp.swapaxes(v, 2, 3), (0, 0, 0, place, 0)),
    )


def rewind(tail: Stored, tokens_B: Int[Array, " B"]) -> Stored:
    """`tail` without the last `tokens_B` tokens of each row; they will be overwritten."""
    return dataclasses.replace(tail, lengths=tail.lengths - tokens_B)
