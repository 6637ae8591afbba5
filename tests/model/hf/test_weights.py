import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from l2s_jax.model.decoder import abstract_params
from l2s_jax.model.hf.config import to_hf_config
from l2s_jax.model.hf.files import INDEX, SINGLE
from l2s_jax.model.hf.names import expected_tensors, flatten, unflatten
from l2s_jax.model.hf.read import load_hf
from l2s_jax.model.hf.write import plan_shards, save_hf_weights
from l2s_jax.sharding import MeshConfig, make_mesh, shardings
from tests.tiny_models import make_folder


def tensors_of(folder):
    """Every tensor of a folder as (dtype, shape, bytes)."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as handle:
            for name in handle.keys():  # noqa: SIM118
                array = handle.get_tensor(name)
                found[name] = (str(array.dtype), array.shape, array.tobytes())
    return found


@pytest.fixture
def folder(tmp_path):
    """A tiny untied model in one float32 file."""
    make_folder(tmp_path, tie_word_embeddings=False)
    return tmp_path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sharded", [False, True])
def test_round_trip_is_exact(tmp_path, tied, dtype, sharded):
    source, back = tmp_path / "source", tmp_path / "back"
    size = {"max_shard_size": "20KB"} if sharded else {}
    make_folder(source, dtype=dtype, tie_word_embeddings=tied, **size)
    assert (source / INDEX).exists() == sharded
    cfg, params = load_hf(source)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    back.mkdir()
    files = save_hf_weights(back, cfg, params, dtype=dtype, shard_bytes=20e3 if sharded else 5e9)
    assert sorted(files) == sorted(os.listdir(back)) and (INDEX in files) == sharded
    assert tensors_of(back) == tensors_of(source)


def test_what_we_write_transformers_reads(tmp_path):
    from transformers import Qwen2ForCausalLM

    model = make_folder(tmp_path / "source", tie_word_embeddings=True)
    cfg, params = load_hf(tmp_path / "source")
    (tmp_path / "ours").mkdir()
    save_hf_weights(tmp_path / "ours", cfg, params, shard_bytes=20e3)
    config = to_hf_config(cfg, stop_id=1, pad_id=0)
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    again = Qwen2ForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    for name, weight in model.state_dict().items():
        np.testing.assert_array_equal(again[name].numpy(), weight.numpy(), err_msg=name)


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}])
def test_straight_onto_a_mesh_and_back(folder, tmp_path, axes):
    mesh = make_mesh(MeshConfig(data=1, **axes))
    cfg, params = load_hf(folder, mesh=mesh)
    want = shardings(abstract_params(cfg), mesh)
    jax.tree.map(
        lambda leaf, s: leaf.sharding.is_equivalent_to(s, leaf.ndim) or 1 / 0, params, want
    )
    (tmp_path / "back").mkdir()
    save_hf_weights(tmp_path / "back", cfg, params)
    assert tensors_of(tmp_path / "back") == tensors_of(folder)


def test_parameters_in_bfloat16(folder):
    _, params = load_hf(folder, dtype="bfloat16")
    _, exact = load_hf(folder)
    for got, want in zip(jax.tree.leaves(params), jax.tree.leaves(exact), strict=True):
        assert got.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(got, want.astype("bfloat16"))


def test_tree_by_paths_and_back(folder):
    _, params = load_hf(folder)
    assert unflatten(flatten(params)).keys() == params.keys()
    assert jax.tree.structure(unflatten(flatten(params))) == jax.tree.structure(params)


def test_shards_stay_under_the_limit(folder):
    cfg, _ = load_hf(folder)
    expected = expected_tensors(cfg)
    shards = plan_shards(expected, itemsize=4, shard_bytes=15e3)
    assert [name for shard in shards for name in shard] == [tensor.name for tensor in expected]
    size = {tensor.name: 4 * int(np.prod(tensor.shape)) for tensor in expected}
    assert all(sum(map(size.get, shard)) <= 15e3 for shard in shards) and len(shards) > 3


def edit(folder, change):
    """Applies `change` to the dict of tensors in a folder's single file."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


def test_every_wrong_tensor_is_listed(folder):
    def spoil(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_norm.weight"] = np.zeros(8, np.float32)
        tensors["lm_head.weight"] = np.zeros((95, 32), np.float32)
        tensors["model.layers.2.self_attn.k_proj.bias"] = np.zeros(16, np.int64)

    edit(folder, spoil)
    with pytest.raises(ValueError) as error:
        load_hf(folder)
    for line in (
        "missing: model.norm.weight (32,)",
        "missing: model.layers.1.mlp.up_proj.weight (48, 32)",
        "unknown: model.layers.0.self_attn.q_norm.weight (8,)",
        "shape: lm_head.weight is (95, 32), config.json asks for (96, 32)",
        "dtype: model.layers.2.self_attn.k_proj.bias is I64",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(folder, value):
    def spoil(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value

    edit(folder, spoil)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*not finite"):
        load_hf(folder)


def test_a_tied_file_may_carry_the_head_if_it_is_the_same(tmp_path):
    make_folder(tmp_path, tie_word_embeddings=True)
    _, before = load_hf(tmp_path)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    _, params = load_hf(tmp_path)
    assert "lm_head" not in params
    jax.tree.map(np.testing.assert_array_equal, params, before)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    with pytest.raises(ValueError, match=r"tie_word_embeddings=true, but lm_head\.weight differs"):
        load_hf(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated_file(folder, keep):
    whole = (folder / SINGLE).read_bytes()
    size = int(keep * len(whole)) if isinstance(keep, float) else keep
    (folder / SINGLE).write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
        load_hf(folder)


@pytest.fixture
def sharded(tmp_path):
    make_folder(tmp_path, max_shard_size="20KB", tie_word_embeddings=False)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../elsewhere.safetensors", "leaves the folder"),
        ("/etc/elsewhere.safetensors", "leaves the folder"),
        ("a/../../b.safetensors", "leaves the folder"),
        ("..\\b.safetensors", "leaves the folder"),
        (7, "leaves the folder"),
        ("pytorch_model.bin", "no safetensors file"),
    ],
)
def test_index_that_leaves_the_folder(sharded, file, message):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = file
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message) as error:
        load_hf(sharded)
    assert "weight_map['model.norm.weight']" in str(error.value)


def test_shard_that_is_missing(sharded):
    (sharded / next(iter(sorted(f for f in os.listdir(sharded) if "-of-" in f)))).unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00001-of-.* is missing"):
        load_hf(sharded)


def test_tensor_in_two_shards(sharded):
    files = sorted(f for f in sharded.iterdir() if "-of-" in f.name)
    first, second = load_file(files[0]), load_file(files[1])
    name = next(iter(first))
    save_file(second | {name: first[name]}, files[1])
    with pytest.raises(ValueError, match=f"{name!r} is in {files[0].name} and {files[1].name}"):
        load_hf(sharded)


def test_pickles_are_refused(folder):
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled weights only \(pytorch_model\.bin\)"):
        load_hf(folder)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "no valid JSON"), ("[1]", "holds list"), ("\xff", "no valid JSON")]
)
def test_malformed_config(folder, text, message):
    (folder / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=message):
        load_hf(folder)


def test_what_is_not_there(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_hf(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is a file"):
        load_hf(folder / SINGLE)
    (folder / SINGLE).unlink()
    with pytest.raises(FileNotFoundError, match=f"neither {SINGLE} nor {INDEX}"):
        load_hf(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_hf(folder)


def test_index_without_a_map(sharded):
    (sharded / INDEX).write_text('{"metadata": {}}')
    with pytest.raises(ValueError, match="has no weight_map"):
        load_hf(sharded)


def test_nothing_that_is_not_finite_is_written(folder, tmp_path):
    cfg, params = load_hf(folder)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[0].set(1e6)
    (tmp_path / "back").mkdir()
    with pytest.raises(ValueError, match=r"final_norm\.scale .* is not finite as float16"):
        save_hf_weights(tmp_path / "back", cfg, params, dtype="float16")
