"""Digests of arrays, computed where they lie.

Lives here: one 64-bit number per array that follows from its values, type and shape alone. Not
here: digests of files (`training/manifest.py`), who compares them (`training/checkpoint.py`).

Every word of an array is mixed with its logical index, and the results are added up modulo 2^32:
each device sums its own part, whatever the mesh, and no array is gathered. A change of one word
always changes the sum, as the mixing is one to one. Source of the mixing: MurmurHash3's finalizer,
by Austin Appleby, public domain.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio; spreads neighbouring indices


def digests(tree: Any) -> list[Any]:
    """Two words per leaf, in the tree's order; pure, for a caller's `jit`."""
    return [digest(leaf) for leaf in jax.tree.leaves(tree)]


def digest(x: Array) -> UInt32[Array, "2"]:
    """The sum of the mixed words, and the same weighted by place."""
    words = as_words(x)
    index = linear_index(words.shape)
    mixed = _mix(words ^ _mix(index * jnp.uint32(GOLDEN)))
    weighted = mixed * (2 * index + 1)
    return jnp.stack([jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(weighted, dtype=jnp.uint32)])


def as_words(x: Array) -> UInt32[Array, "..."]:
    """The array's bits, one unsigned word per value (two where a value has 64 bits)."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(x).astype(jnp.uint32)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    bits = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)


def linear_index(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Each place's row-major index modulo 2^32; made by parts, so that it is cut as its array."""
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        step = jnp.uint32(stride % 2**32)
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * step
        stride *= shape[axis]
    return index


def _mix(h: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def as_text(x: Any, words: Any) -> str:
    """Digest, type and shape as one text, for a file of digests."""
    first, second = (int(word) for word in words)
    return f"{x.dtype}{list(x.shape)} {first:08x}{second:08x}"
