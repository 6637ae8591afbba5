"""Which attention a program uses, decided by the devices of its mesh.

Lives here: `attend_on`, and the cut of a kernel over a mesh. Not here: the routes themselves
(`model/blockwise.py`, `model/splash.py`, `model/fused.py`), all of which compute the same.

| devices | route                                                             |
|---------|-------------------------------------------------------------------|
| TPU     | splash kernel                                                     |
| GPU     | cuDNN's flash kernels in half precision, blocks in float32        |
| others  | blocks in plain XLA                                               |
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from l2s_jax.model.blockwise import attend_blocks
from l2s_jax.model.fused import attend_gpu
from l2s_jax.model.seen import Attend, Seen
from l2s_jax.model.splash import attend_splash
from l2s_jax.sharding import BATCH, TIMED


def attend_on(mesh: Mesh) -> Attend:
    """The fastest route that the mesh's devices have."""
    platform = mesh.devices.flat[0].platform
    if platform == "tpu":
        return cut(attend_splash, mesh)
    if platform == "gpu":
        return cut(attend_gpu, mesh)
    if mesh.shape["context"] > 1:
        return cut(attend_blocks, mesh)
    return attend_blocks  # XLA cuts its own arithmetic


def heads_are_shared(num_heads: int, num_kv: int, tensor: int) -> bool:
    """True where devices have equal parts of the heads, or copies of the key head they read."""
    return num_heads % tensor == 0 and (num_kv % tensor == 0 or tensor % num_kv == 0)


def cut(attend: Attend, mesh: Mesh) -> Attend:
    """`attend` on every device's own rows, heads and time: XLA cannot cut a kernel by itself.

    Where time is cut, every device has the queries of its own part, and gathers the keys and values
    of the parts before.
    """
    tensor, parts = mesh.shape["tensor"], mesh.shape["context"]
    by_head, whole = PartitionSpec(*TIMED, "tensor"), PartitionSpec(*BATCH, None, "tensor")

    def of_part(q_BTHE: Array, k_BSKE: Array, v_BSKE: Array, seen: Seen) -> Array:
        def at(part: int) -> Callable[..., Array]:
            until = (part + 1) * q_BTHE.shape[1]

            def run(q_BTHE: Array, *to_all: Any) -> Array:
                return attend(q_BTHE, *jax.tree.map(lambda array: array[:, :until], to_all))

            return run

        # The kernels must know where the queries stand when they are compiled.
        here = jax.lax.axis_index("context")
        return jax.lax.switch(here, [at(n) for n in range(parts)], q_BTHE, k_BSKE, v_BSKE, seen)

    by_device = jax.shard_map(
        attend if parts == 1 else of_part,
        mesh=mesh,
        in_specs=(by_head, whole, whole, BATCH),
        out_specs=by_head,
        check_vma=False,
    )

    def attend_cut(q_BTHE: Array, k_BTKE: Array, v_BTKE: Array, seen: Seen) -> Array:
        num_heads, num_kv = q_BTHE.shape[2], k_BTKE.shape[2]
        if not heads_are_shared(num_heads, num_kv, tensor):
            raise ValueError(
                f"MeshConfig.tensor={tensor} cannot share {num_heads} query and {num_kv} key-value"
                " heads evenly. Set it to a divisor of both, or to a divisor of the first and a"
                " multiple of the second."
            )
        if num_kv % tensor:  # fewer than devices: each has a copy of the one it needs
            copies = tensor // num_kv
            k_BTKE, v_BTKE = (jnp.repeat(x, copies, axis=2) for x in (k_BTKE, v_BTKE))
        return by_device(q_BTHE, k_BTKE, v_BTKE, seen)

    return attend_cut
