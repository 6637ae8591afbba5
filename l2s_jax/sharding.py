"""Which device holds what: the mesh, and the rules from an array's logical axes to mesh axes.

Lives here: `MeshConfig`, the rules, shardings of a whole tree. Not here: which axes a parameter
has (each layer says so where it makes it).
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# The rows of a batch are cut over both data axes; parameters over fsdp and tensor.
RULES = (
    ("vocab", "tensor"),
    ("width", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("ffn", "tensor"),
    ("layers", None),
)
BATCH = PartitionSpec(("data", "fsdp"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices per axis; one of them may be -1: all that are left."""

    data: int = -1  # whole copies of the parameters
    fsdp: int = 1  # parameters cut, gathered when used
    tensor: int = 1  # heads, feed-forward and vocabulary cut

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(
                f"MeshConfig(data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}): sizes are"
                " at least 1, and at most one is -1 (all devices that are left)."
            )


def make_mesh(cfg: MeshConfig, devices: Any = None) -> Mesh:
    """A mesh of axes data, fsdp, tensor over `devices` (default: all)."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = [cfg.data, cfg.fsdp, cfg.tensor]
    if -1 in sizes:
        known = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        raise ValueError(
            f"MeshConfig(data={cfg.data}, fsdp={cfg.fsdp}, tensor={cfg.tensor}) needs"
            f" {abs(int(np.prod([cfg.data, cfg.fsdp, cfg.tensor])))} devices or a multiple of"
            f" them, but there are {len(devices)}. Set one axis to -1."
        )
    return Mesh(np.asarray(devices).reshape(sizes), ("data", "fsdp", "tensor"))


def shardings(boxed: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a boxed (or abstract boxed) tree, unboxed."""
    specs = nn.get_partition_spec(boxed)

    def place(path: Any, spec: PartitionSpec, leaf: Any) -> NamedSharding:
        on_mesh = logical_to_mesh_axes(tuple(spec), RULES) or PartitionSpec()
        check_even(jax.tree_util.keystr(path, simple=True, separator="."), leaf, on_mesh, mesh)
        return NamedSharding(mesh, on_mesh)

    return jax.tree_util.tree_map_with_path(
        place, specs, nn.unbox(boxed), is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )


def check_even(name: str, leaf: Any, spec: PartitionSpec, mesh: Mesh) -> None:
    """Refuses an array that the mesh does not cut into equal parts."""
    for dim, axis in enumerate(spec):
        if axis is None:
            continue
        size, parts = leaf.shape[dim], mesh.shape[axis]
        if size % parts:
            raise ValueError(
                f"parameter {name} has shape {tuple(leaf.shape)}: its axis {dim} of {size} cannot"
                f" be cut into {parts} equal parts, the size of mesh axis {axis!r}. Set"
                f" MeshConfig.{axis} to a divisor of it, such as {math.gcd(size, parts)}."
            )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data axes, everything else whole."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
