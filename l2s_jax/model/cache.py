"""Keys and values of tokens already read. How much is filled is kept here and only here.

Lives here: the records and the two ways to fill them. Not here: attention over them
(`model/attention.py`), when to grow a row (`sampling/loop.py`).

The prompt part is held once per prompt [N, P], the tail once per row [B, S], B = N * G with the
rows of one prompt side by side: a group of samples never copies its prompt.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class LayerCache:
    """One layer's view: `Cache` without its leading layer axis."""

    prompt_k: Any  # [N, P, K, E]
    prompt_v: Any  # [N, P, K, E]
    prompt_mask: Any  # [N, P] bool, True on real prompt tokens
    tail_k: Any  # [B, S, K, E]
    tail_v: Any  # [B, S, K, E]
    tail_mask: Any  # [B, S] bool, True on filled places


@struct.dataclass
class Cache:
    """All layers' keys and values of one sampling batch."""

    prompt_k: Any  # [L, N, P, K, E]
    prompt_v: Any  # [L, N, P, K, E]
    prompt_mask: Any  # [N, P] bool
    tail_k: Any  # [L, B, S, K, E]
    tail_v: Any  # [L, B, S, K, E]
    lengths: Any  # [B] int32, filled places of the tail

    @property
    def tail_mask(self) -> Bool[Array, "B S"]:
        return jnp.arange(self.tail_k.shape[2])[None, :] < self.lengths[:, None]


def begin(
    prompt_k: Float[Array, "L N P K E"],
    prompt_v: Float[Array, "L N P K E"],
    prompt_mask_NP: Bool[Array, "N P"],
    *,
    group: int,
    tail: int,
) -> Cache:
    """A cache that holds the prompts and room for `tail` tokens of each of N * `group` rows."""
    layers, num_prompts, _, num_kv, size = prompt_k.shape
    room = jnp.zeros((layers, num_prompts * group, tail, num_kv, size), prompt_k.dtype)
    lengths_B = jnp.zeros(num_prompts * group, jnp.int32)
    return Cache(prompt_k, prompt_v, prompt_mask_NP, room, room, lengths_B)


def append(
    cache: Cache,
    k: Float[Array, "L B 1 K E"],
    v: Float[Array, "L B 1 K E"],
    active_B: Bool[Array, " B"],
) -> Cache:
    """`cache` with one more token on each active row.

    Inactive rows are written too, past their filled part, where nobody looks: a write that
    depends on the row would cost more than it saves.
    """
    rows_B = jnp.arange(cache.lengths.shape[0])
    tail_k = cache.tail_k.at[:, rows_B, cache.lengths].set(k[:, :, 0], mode="drop")
    tail_v = cache.tail_v.at[:, rows_B, cache.lengths].set(v[:, :, 0], mode="drop")
    return dataclasses.replace(
        cache, tail_k=tail_k, tail_v=tail_v, lengths=cache.lengths + active_B.astype(jnp.int32)
    )


def rewind(cache: Cache, tokens_B: Int[Array, " B"]) -> Cache:
    """`cache` without the last `tokens_B` tokens of each row; they will be overwritten."""
    return dataclasses.replace(cache, lengths=cache.lengths - tokens_B)
