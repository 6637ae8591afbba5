"""A program that is to be compiled: its record, and arrays that are known by shape alone.

Lives here: `Planned`, `place`. Not here: which programs a run has (`plan/programs.py`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

Trees = dict[str, Any]  # what lies in memory, by its name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A program and what it is called with."""

    name: str
    trace: Callable[[], jax.stages.Traced]
    arguments: Trees
    beside: Trees  # what else lies on the devices while it runs
    mesh: Mesh
    trips: tuple[int, ...] = ()  # of a loop that data ends, at the most; then of one in it
    model_flops: float | None = None  # work that the model asks for, whoever does it


def place(tree: Any, places: Any) -> Any:
    """Shapes with shardings."""
    return jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, places
    )
