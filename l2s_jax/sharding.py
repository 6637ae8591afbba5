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

# Rows of a batch are cut over both data axes, its time over context, parameters over fsdp and
# tensor.
RULES = (
    ("vocab", "tensor"),
    ("width", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("ffn", "tensor"),
    ("layers", None),
)
BATCH = PartitionSpec(("data", "fsdp"))
TIMED = PartitionSpec(*BATCH, "context")
AXES = ("data", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices per axis; one of them may be -1: all that are left."""

    data: int = -1  # whole copies of the parameters
    fsdp: int = 1  # parameters cut, gathered when used
    tensor: int = 1  # heads, feed-forward and vocabulary cut
    context: int = 1  # rows cut along time, in training; keys and values gathered when used

    def __post_init__(self):
        if any(size == 0 or size < -1 for size in self.sizes) or self.sizes.count(-1) > 1:
            raise ValueError(
                f"{self}: sizes are at least 1, and at most one is -1 (all devices that are left)."
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the mesh's axes."""
        return self.data, self.fsdp, self.context, self.tensor


def make_mesh(cfg: MeshConfig, devices: Any = None) -> Mesh:
    """A mesh of the four axes over `devices` (default: all).

    Those of a host stand side by side, so that tensor, the fastest axis, is the last to leave one.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=_by_host)
    sizes, needed = list(cfg.sizes), abs(math.prod(cfg.sizes))
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // needed
    if math.prod(sizes) != len(devices):
        raise ValueError(
            f"{cfg} needs {needed} devices or a multiple of them, but there are {len(devices)}."
            " Set one axis to -1."
        )
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def _by_host(device: Any) -> tuple[int, int, int]:
    # On a slice, device numbers follow the coordinates of the chips, and hosts interleave in them.
    return getattr(device, "slice_index", 0) or 0, device.process_index, device.id


def host_mesh(mesh: Mesh) -> Mesh:
    """This host's part of a mesh, all on the data axis but for what `tensor` cuts.

    A device has the same place on the tensor axis in both.
    """
    mine = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    tensor = mesh.shape["tensor"]
    if len(mine) % tensor:
        raise ValueError(
            f"MeshConfig.tensor={tensor} cuts the weights over several hosts of {len(mine)}"
            f" devices, but each host samples by itself. Set tensor to a divisor of {len(mine)}."
        )
    return Mesh(np.asarray(mine).reshape(-1, 1, 1, tensor), mesh.axis_names)


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


def num_row_shards(mesh: Mesh) -> int:
    """Equal parts into which the rows of a batch are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def settled(made: Any, mesh: Mesh) -> Any:
    """`made`, waited for where the mesh is several devices of one CPU.

    There a program holds a thread for each device until all have met in its collectives, and the
    threads are as many as the devices: two programs in flight can wait for each other's for ever.
    """
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(made)
    return made


def timed_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data axes, their time over the context axis, everything else whole."""
    return NamedSharding(mesh, TIMED)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data axes, everything else whole."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
