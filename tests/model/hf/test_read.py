"""Weights of a folder in our tree: every value in its place, on any mesh, in any type."""

import json
import os
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l2s_jax.model.decoder import abstract_params
from l2s_jax.model.hf.blocks import BLOCK_BYTES
from l2s_jax.model.hf.config import to_hf_config
from l2s_jax.model.hf.files import SINGLE
from l2s_jax.model.hf.names import expected_tensors, flatten, unflatten
from l2s_jax.model.hf.read import load_hf
from l2s_jax.sharding import MeshConfig, make_mesh, shardings
from tests.model.test_config import TINY
from tests.tiny_models import FAMILIES, make_folder

MESHES = ({"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2})


def tensors_of(folder):
    return {
        name: array
        for file in folder.glob("*.safetensors")
        for name, array in load_file(file).items()
    }


def by_definition(cfg, tensors, dtype):
    """Our leaves, stacked and transposed by numpy from whole tensors."""
    leaves = {}
    for tensor in expected_tensors(cfg):
        array = tensors[tensor.name].astype(jnp.dtype(dtype))
        array = array.T if tensor.transposed else array
        leaves.setdefault(tensor.leaf, {})[tensor.layer] = array
    return unflatten(
        {
            path: layers[None] if None in layers else np.stack([layers[i] for i in sorted(layers)])
            for path, layers in leaves.items()
        }
    )


def edit(folder, change):
    """Applies `change` to the dict of tensors in a folder's single file."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


def mesh_of(axes):
    return make_mesh(MeshConfig(**{"data": 1, **axes}))


@pytest.fixture
def folder(tmp_path):
    """A tiny untied model in one float32 file."""
    make_folder(tmp_path, tie_word_embeddings=False)
    return tmp_path


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_every_value_in_its_place(tmp_path, family, tied, size):
    make_folder(tmp_path, family=family, tie_word_embeddings=tied, max_shard_size=size)
    cfg, params = load_hf(tmp_path)
    want = by_definition(cfg, tensors_of(tmp_path), "float32")
    jax.tree.map(np.testing.assert_array_equal, params, want)
    assert ("lm_head" in params) is not tied
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("on_disk", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", None])
def test_any_type_on_disk_and_in_memory(tmp_path, on_disk, dtype):
    make_folder(tmp_path, dtype=on_disk, tie_word_embeddings=True)
    cfg, params = load_hf(tmp_path, dtype=dtype)
    want = by_definition(cfg, tensors_of(tmp_path), dtype or on_disk)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype or on_disk)}
    jax.tree.map(np.testing.assert_array_equal, params, want)


def test_a_folder_of_several_types(tmp_path):
    """Each leaf keeps its own; where its layers differ, the one that holds them all."""
    make_folder(tmp_path, dtype="bfloat16", tie_word_embeddings=True)

    def widen(tensors):
        for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
            tensors[name] = tensors[name].astype(np.float32)

    edit(tmp_path, widen)
    cfg, params = load_hf(tmp_path, dtype=None)
    wide = {path for path, leaf in flatten(params).items() if leaf.dtype == np.float32}
    assert wide == {"final_norm.scale", "layers.mlp.up_proj.kernel"}
    want = by_definition(cfg, tensors_of(tmp_path), "float32")
    jax.tree.map(lambda leaf, w: np.testing.assert_array_equal(leaf.astype("f4"), w), params, want)


@pytest.mark.parametrize("axes", MESHES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", None])
def test_straight_onto_a_mesh(tmp_path, axes, dtype):
    make_folder(tmp_path, dtype="bfloat16", tie_word_embeddings=False, max_shard_size="20KB")
    mesh = mesh_of(axes)
    cfg, params = load_hf(tmp_path, mesh=mesh, dtype=dtype)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings(abstract_params(cfg), mesh)
    jax.tree.map(np.testing.assert_array_equal, params, load_hf(tmp_path, dtype=dtype)[1])


def test_what_does_not_divide_is_refused(folder):
    with pytest.raises(ValueError, match="divi"):
        load_hf(folder, mesh=make_mesh(MeshConfig(data=1, fsdp=7), jax.devices()[:7]))


def test_donated_parameters_are_not_written_over(folder):
    """Devices that hold the same part may share memory: no program may work in it."""
    cfg, params = load_hf(folder, mesh=mesh_of({"data": 8}))
    double = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree), donate_argnums=0)
    want = by_definition(cfg, tensors_of(folder), "float32")
    for leaf, whole in zip(jax.tree.leaves(double(params)), jax.tree.leaves(want), strict=True):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, 2 * whole)


# ---- what values are refused ----


@pytest.mark.parametrize("axes", [None, {"fsdp": 8}])
def test_values_that_are_not_finite(folder, axes):
    """All such tensors are named, with their file; or they are taken if that is asked for."""
    names = ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]

    def spoil(tensors):
        tensors[names[0]][3, 4] = np.nan
        tensors[names[1]][5] = -np.inf

    edit(folder, spoil)
    mesh = None if axes is None else mesh_of(axes)
    with pytest.raises(ValueError, match="--allow-non-finite") as error:
        load_hf(folder, mesh=mesh)
    for name in names:
        assert f"{folder / SINGLE}: tensor {name!r} holds values that are not finite" in str(
            error.value
        )
    cfg, params = load_hf(folder, mesh=mesh, allow_non_finite=True)
    want = by_definition(cfg, tensors_of(folder), "float32")
    jax.tree.map(np.testing.assert_array_equal, params, want)


def test_values_that_the_asked_type_cannot_hold(folder):
    edit(folder, lambda tensors: tensors["model.norm.weight"].__setitem__(0, 1e6))
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' holds values that float16 cannot"):
        load_hf(folder, dtype="float16")
    assert load_hf(folder, dtype="bfloat16")[1]["final_norm"]["scale"][0] > 9e5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_file_may_carry_the_head_if_it_is_the_same(tmp_path, dtype):
    make_folder(tmp_path, tie_word_embeddings=True, dtype="bfloat16")
    _, before = load_hf(tmp_path)
    embedding = load_file(tmp_path / SINGLE)["model.embed_tokens.weight"].astype(jnp.dtype(dtype))
    edit(tmp_path, lambda tensors: tensors.update({"lm_head.weight": embedding}))
    _, params = load_hf(tmp_path)
    assert "lm_head" not in params
    jax.tree.map(np.testing.assert_array_equal, params, before)
    for other in (embedding + 1, embedding[:-1]):
        edit(tmp_path, lambda tensors, other=other: tensors.update({"lm_head.weight": other}))
        with pytest.raises(ValueError, match=r"=true, but lm_head\.weight differs from"):
            load_hf(tmp_path)


# ---- how much memory it takes ----


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A decoder of some 30 MB in bfloat16, and its bytes."""
    from l2s_jax.model.config import ModelConfig

    folder = tmp_path_factory.mktemp("larger")
    sizes = {"vocab_size": 4096, "width": 256, "num_layers": 16, "ffn_width": 768, "head_dim": 32}
    cfg = ModelConfig(**TINY | sizes | {"num_heads": 8, "num_kv_heads": 2, "tied": True})
    rng = np.random.default_rng(0)
    tensors = {
        tensor.name: rng.standard_normal(tensor.shape, np.float32).astype(jnp.bfloat16)
        for tensor in expected_tensors(cfg)
    }
    save_file(tensors, folder / SINGLE)
    config = to_hf_config(cfg, stop_id=None, pad_id=None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder, sum(array.nbytes for array in tensors.values())


@pytest.mark.parametrize("axes", [None, *MESHES], ids=str)
@pytest.mark.parametrize("dtype", ["float32", None])
def test_nothing_is_held_but_the_result(larger, axes, dtype):
    """Memory that numpy has at any time: the model once, and a few blocks per thread."""
    folder, size = larger
    mesh = None if axes is None else mesh_of(axes)
    load_hf(folder, mesh=mesh, dtype=dtype)  # tracing, caches
    tracemalloc.start()
    _, params = load_hf(folder, mesh=mesh, dtype=dtype)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size *= 2 if dtype == "float32" else 1
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(params)) == size
    assert now > 0.95 * size  # the devices use numpy's memory, so it is counted
    blocks = 6 * min(16, os.cpu_count() or 1)  # as many threads, each with its copies of a block
    assert peak < 1.05 * size + blocks * BLOCK_BYTES
