"""Weights as the sampler reads them.

Lives here: the one program that brings weights from the training layout to the sampler's. Not here:
the rules from logical axes to mesh axes (`sharding.py`).

Training cuts weights over fsdp and gathers each layer when it is used; a decode step would gather
all of them for one token. The sampler keeps a copy on every data shard, cut over heads,
feed-forward and vocabulary alone, in the type that it computes in.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params, abstract_params
from l2s_jax.sharding import shardings


def sampling_weights(cfg: ModelConfig, mesh: Mesh, params: Params) -> Params:
    """`params` on every data shard of `mesh`, cut over its tensor axis, in the computing type.

    Norm scales stay as they are: they multiply in float32.
    """
    targets, program = _program(cfg, mesh, jax.tree.structure(params))
    return program(jax.device_put(params, targets))


@functools.lru_cache(maxsize=8)
def _program(cfg: ModelConfig, mesh: Mesh, structure: Any) -> tuple[Any, Any]:
    """(where the weights go, the program that casts them); made once for all steps of a run."""
    places, whole = _places(cfg, mesh), NamedSharding(mesh, PartitionSpec())
    parts = jax.tree.unflatten(structure, range(structure.num_leaves))
    targets = {
        name: places.get(name, jax.tree.map(lambda _: whole, part)) for name, part in parts.items()
    }
    cast = functools.partial(_cast, cfg.compute_dtype)
    return targets, jax.jit(cast, out_shardings=targets)


def _places(cfg: ModelConfig, mesh: Mesh) -> Any:
    def gathered(sharding: NamedSharding) -> NamedSharding:
        axes = [None if axis == "fsdp" else axis for axis in sharding.spec]
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(gathered, shardings(abstract_params(cfg), mesh))


def _cast(dtype: Any, params: Params) -> Params:
    def cast(path: Any, leaf: jax.Array) -> jax.Array:
        kept = path[-1].key == "scale" or not jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf if kept else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)
