"""Weights as the sampler reads them.

Lives here: the programs that bring weights from the training layout to the sampler's. Not here:
the rules from logical axes to mesh axes (`sharding.py`).

Training cuts weights over fsdp and gathers each layer when it is used; a decode step would gather
all of them for one token. The sampler keeps a copy on every data shard, cut over heads,
feed-forward and vocabulary alone, in the type that it computes in, every layer on its own.

Where the axis does not divide the key heads, they lie whole on all of it, as the cache does. Cut
within a head they would be exchanged in the loop, among devices whose rows end at different times:
on a CPU those wait for each other for ever.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params, abstract_params, of_layer, unstacked
from l2s_jax.sharding import settled, shardings


def sampling_weights(cfg: ModelConfig, mesh: Mesh, params: Params) -> Params:
    """`params` on every data shard of `mesh`, cut over its tensor axis, in the computing type.

    Norm scales stay as they are: they multiply in float32.
    """
    source = mesh_of(params)
    if source is None or source.shape["tensor"] != mesh.shape["tensor"]:
        source, places = mesh, _of_structure(jax.tree.structure(params), _places(cfg, mesh))
        params = jax.device_put(params, places)
    prepared = resharded(cfg, source, params)
    return prepared if source == mesh else jax.tree.map(functools.partial(_onto, mesh), prepared)


def resharded(cfg: ModelConfig, mesh: Mesh, params: Params) -> Params:
    """`params` of `mesh` in the sampler's layout, on that mesh.

    Beside what comes out there is never more than one layer. One program for all layers would hold
    each of them twice: a TPU's compiler copies what it has gathered, and does so at the end.
    """

    def take(stacked: Params, layer: int) -> Params:
        program = reshard_layer(cfg, mesh, jax.tree.structure(stacked))
        return settled(program(stacked, layer), mesh)

    def rest(others: Params) -> Params:
        return settled(reshard_rest(cfg, mesh, jax.tree.structure(others))(others), mesh)

    return unstacked(cfg, params, take, rest)


@functools.lru_cache(maxsize=8)
def reshard_layer(cfg: ModelConfig, mesh: Mesh, structure: Any) -> jax.stages.Wrapped:
    """`program(stacked, layer)`: a layer's weights, cast where they lie and then gathered.

    Args:
      structure: of what is stacked; made once for all steps of a run.
    """

    def without_layers(place: NamedSharding) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*place.spec[1:]))

    def prepare(stacked: Params, layer: Array) -> Params:
        return _cast(cfg.compute_dtype, of_layer(stacked, layer))

    places = jax.tree.map(without_layers, _places(cfg, mesh)["layers"])
    return jax.jit(prepare, out_shardings=_if_it_is(places, structure, mesh))


@functools.lru_cache(maxsize=8)
def reshard_rest(cfg: ModelConfig, mesh: Mesh, structure: Any) -> jax.stages.Wrapped:
    """`program(others)`: the same for what is not stacked over layers."""
    places = {name: place for name, place in _places(cfg, mesh).items() if name != "layers"}
    cast = functools.partial(_cast, cfg.compute_dtype)
    return jax.jit(cast, out_shardings=_if_it_is(places, structure, mesh))


def _if_it_is(places: Any, structure: Any, mesh: Mesh) -> Any:
    """Where a part of the model goes; an adapter's lies whole."""
    whole = NamedSharding(mesh, PartitionSpec())
    return places if jax.tree.structure(places) == structure else whole


def mesh_of(params: Params) -> Mesh | None:
    """The mesh that all of `params` lie on; None where they lie otherwise."""
    places = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params)]
    meshes = {place.mesh if isinstance(place, NamedSharding) else None for place in places}
    found = meshes.pop() if len(meshes) == 1 else None
    return found if isinstance(found, Mesh) else None


def _onto(mesh: Mesh, leaf: jax.Array) -> jax.Array:
    """An array of a mesh with the same tensor axis as one of `mesh`: no byte is moved."""
    parts = {shard.device: shard.data for shard in leaf.addressable_shards}
    here = [parts[device] for device in mesh.devices.flat]
    assert isinstance(leaf.sharding, NamedSharding)
    place = NamedSharding(mesh, leaf.sharding.spec)
    return jax.make_array_from_single_device_arrays(leaf.shape, place, here)


def _of_structure(structure: Any, model: Any) -> Any:
    """Where every part of `params` goes; an adapter's lies whole."""
    [first, *_] = jax.tree.leaves(model)
    whole = NamedSharding(first.mesh, PartitionSpec())
    parts = jax.tree.unflatten(structure, range(structure.num_leaves))
    return {
        name: model.get(name, jax.tree.map(lambda _: whole, part)) for name, part in parts.items()
    }


def _places(cfg: ModelConfig, mesh: Mesh) -> Any:
    whole_keys = cfg.num_kv_heads % mesh.shape["tensor"] != 0

    def gathered(path: Any, sharding: NamedSharding) -> NamedSharding:
        is_key = whole_keys and any(part.key in ("k_proj", "v_proj") for part in path)
        away = ("fsdp", "tensor") if is_key else ("fsdp",)
        axes = [None if axis in away else axis for axis in sharding.spec]
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(gathered, shardings(abstract_params(cfg), mesh))


def _cast(dtype: Any, params: Params) -> Params:
    def cast(path: Any, leaf: jax.Array) -> jax.Array:
        kept = path[-1].key == "scale" or not jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf if kept else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)
