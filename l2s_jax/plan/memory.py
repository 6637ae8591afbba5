"""How much memory a program takes on one device, and whether it is there.

Lives here: bytes of arrays as they are cut, a program's peak, and what the compiler says where that
is too much. Not here: what lies beside a program (`plan/programs.py` lists it).
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GIB = 2**30
TOO_MUCH = re.compile(r"([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm|\(([\d.]+)([KMGT])\) exceeds")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device while a program runs."""

    arguments: int  # exactly what the arrays take that it is called with
    padding: int  # that the device's layouts add to them
    temporaries: int
    results: int  # that do not lie where arguments did
    beside: int  # arrays of the run that it does not touch

    @property
    def peak(self) -> int:
        return self.arguments + self.padding + self.temporaries + self.results + self.beside


def shard_bytes(leaf: Any) -> int:
    """Of the part of an array that a device holds; without a sharding, of all of it."""
    shape, sharding = leaf.shape, getattr(leaf, "sharding", None)
    if sharding is not None:
        shape = sharding.shard_shape(shape)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 8 * math.prod(shape)  # two words of 32 bits
    return math.prod(shape) * np.dtype(leaf.dtype).itemsize


def tree_bytes(tree: Any) -> int:
    """Of all arrays of a tree, on one device."""
    return sum(shard_bytes(leaf) for leaf in jax.tree.leaves(tree))


def memory_of(
    compiled: jax.stages.Compiled, arguments: Any, beside: Any, *, platform: str = "cpu"
) -> Memory:
    """What a program takes that was compiled for a platform."""
    found = compiled.memory_analysis()
    assert found is not None
    known = tree_bytes(arguments)
    results = max(0, found.output_size_in_bytes - found.alias_size_in_bytes)
    temporaries = found.temp_size_in_bytes
    if platform == "tpu":
        # By its peak the compiler refuses a program; its temporaries count more than lie there at
        # a time (7B, stage 1, v6e:2x4: 24.4 GiB beside 10.6 of arguments, at a peak of 25.3). A
        # CPU's peak has no temporaries at all.
        rest = found.peak_memory_in_bytes - found.argument_size_in_bytes - results
        temporaries = min(temporaries, max(0, rest))
    return Memory(
        arguments=known,
        # Less where the program has no use for some of them: they lie there all the same.
        padding=max(0, found.argument_size_in_bytes - known),
        temporaries=temporaries,
        results=results,
        beside=tree_bytes(beside),
    )


def refused_bytes(message: str) -> int | None:
    """What a program would need, from the compiler's words when it is too much; else None."""
    found = TOO_MUCH.search(message)
    if found is None or "memory" not in message:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * UNITS[unit])
