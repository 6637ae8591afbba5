import itertools
import json
import os
import pathlib
import struct
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l2s_jax.model.hf.files import INDEX, SINGLE
from l2s_jax.model.hf.names import expected_tensors, flatten
from l2s_jax.model.hf.read import load_hf
from l2s_jax.model.hf.write import (
    SHARD_BYTES,
    by_layer,
    fingerprint,
    from_memory,
    hf_tensors,
    plan_files,
    plan_shards,
    save_hf_weights,
    write_weights,
)
from l2s_jax.sharding import MeshConfig, make_mesh
from tests.tiny_models import FAMILIES, make_folder

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


@pytest.fixture(params=FAMILIES)
def folder(tmp_path, request):
    """A tiny untied model in one float32 file, by transformers."""
    make_folder(tmp_path / "theirs", family=request.param, tie_word_embeddings=False)
    return tmp_path / "theirs"


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("shard_bytes", [SHARD_BYTES, 20_000])
def test_a_file_is_what_safetensors_would_write(folder, tmp_path, dtype, shard_bytes):
    cfg, params = load_hf(folder)
    tensors = dict(hf_tensors(cfg, from_memory(params), dtype))
    out, reference = tmp_path / "out", tmp_path / "reference.safetensors"
    out.mkdir()
    save_hf_weights(out, cfg, params, dtype=dtype, shard_bytes=shard_bytes)
    files = plan_files(cfg, dtype, shard_bytes)
    assert (len(files) > 1) == (shard_bytes == 20_000)
    for file in files:
        save_file({name: tensors[name] for name in file.starts}, reference, {"format": "pt"})
        written = (out / file.name).read_bytes()
        assert written == reference.read_bytes()
        assert len(written) == file.size and len(file.head) % 8 == 0


def test_the_file_by_hand(folder, tmp_path):
    """The documented format, read with struct and json."""
    cfg, params = load_hf(folder)
    save_hf_weights(tmp_path, cfg, params, dtype="bfloat16")
    content = (tmp_path / SINGLE).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    assert size % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
    ends = 0
    for name, want in hf_tensors(cfg, from_memory(params), "bfloat16"):
        entry = header.pop(name)
        begin, end = entry["data_offsets"]
        assert (entry["dtype"], tuple(entry["shape"])) == ("BF16", want.shape)
        got = np.frombuffer(content[8 + size + begin : 8 + size + end], ml_dtypes.bfloat16)
        np.testing.assert_array_equal(got.reshape(want.shape), want)
        ends = max(ends, end)
    assert not header and len(content) == 8 + size + ends


def test_what_is_written_is_ours_turned(folder):
    """The table's promise, leaf by leaf: theirs is [out, in], one tensor per layer."""
    cfg, params = load_hf(folder)
    leaves = flatten(params)
    got = dict(hf_tensors(cfg, leaves.__getitem__, "float32"))
    assert list(got) == [tensor.name for tensor in expected_tensors(cfg)]
    q_LDO = np.asarray(leaves["layers.attention.q_proj.kernel"])
    for layer in range(cfg.num_layers):
        weight_OD = got[f"model.layers.{layer}.self_attn.q_proj.weight"]
        for o in range(weight_OD.shape[0]):
            for d in range(0, weight_OD.shape[1], 7):
                assert weight_OD[o, d] == q_LDO[layer, d, o]
    np.testing.assert_array_equal(got["lm_head.weight"], np.asarray(leaves["lm_head"]).T)


def test_shards_stay_under_the_limit(folder):
    cfg, _ = load_hf(folder)
    expected = expected_tensors(cfg)
    for dtype, itemsize in SIZES.items():
        shards = plan_shards(expected, dtype, 15_000)
        assert [tensor for shard in shards for tensor in shard] == by_layer(expected)
        sizes = [[itemsize * int(np.prod(tensor.shape)) for tensor in shard] for shard in shards]
        assert all(sum(shard) <= 15_000 for shard in sizes) and len(shards) > 3
        # The next tensor would not have fitted.
        assert all(sum(a) + b[0] > 15_000 for a, b in itertools.pairwise(sizes))


def test_a_tensor_beyond_the_limit_has_a_file_of_its_own(folder):
    cfg, _ = load_hf(folder)
    expected = expected_tensors(cfg)
    shards = plan_shards(expected, "float32", 1)
    assert [len(shard) for shard in shards] == [1] * len(expected)


def test_no_file_of_a_large_model_passes_five_gigabytes():
    """Qwen2.5-72B by its shapes alone; a whole file, header included."""
    from l2s_jax.model.config import ModelConfig

    cfg = ModelConfig(
        vocab_size=152_064,
        width=8192,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        ffn_width=29_568,
        tied=False,
    )
    files = plan_files(cfg, "bfloat16")
    assert max(file.size for file in files) <= 5e9
    assert sum(file.size - len(file.head) for file in files) == 2 * 72_706_203_648
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}])
def test_the_mesh_does_not_matter(folder, tmp_path, axes):
    cfg, params = load_hf(folder, mesh=make_mesh(MeshConfig(data=1, **axes)))
    assert any(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(params))
    save_hf_weights(tmp_path, cfg, params)
    assert (tmp_path / SINGLE).read_bytes() == (folder / SINGLE).read_bytes()


def test_prints_are_of_what_is_on_disk(folder, tmp_path):
    cfg, params = load_hf(folder)
    prints = write_weights(tmp_path, cfg, from_memory(params), dtype="float16", shard_bytes=20_000)
    found = {}
    for file in tmp_path.glob("*.safetensors"):
        found |= {name: fingerprint(array) for name, array in load_file(file).items()}
    assert found == prints and len(set(prints.values())) > 3
    index = json.loads((tmp_path / INDEX).read_text())
    assert set(index["weight_map"]) == set(prints)
    assert set(index["weight_map"].values()) == {p.name for p in tmp_path.glob("*.safetensors")}


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_nothing_that_is_not_finite_is_written(folder, tmp_path, value):
    """1e6 is a number, but none of float16."""
    cfg, params = load_hf(folder)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[0].set(value)
    with pytest.raises(ValueError, match=r"final_norm\.scale .* is not finite as float16"):
        save_hf_weights(tmp_path, cfg, params, dtype="float16")


def test_a_leaf_of_another_model(folder, tmp_path):
    cfg, params = load_hf(folder)
    leaves = flatten(params) | {"final_norm.scale": np.ones(7, np.float32)}
    with pytest.raises(ValueError, match=r"model\.norm\.weight would be \(7,\)"):
        write_weights(tmp_path, cfg, leaves.__getitem__, dtype="float32")


def test_an_adapter_is_never_dropped(folder):
    _, params = load_hf(folder)
    with pytest.raises(ValueError, match="merge it first"):
        from_memory({**params, "lora": {}})


PROC = pathlib.Path("/proc/self/status")
GROWTH = """
import sys, pathlib, numpy as np
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.hf.write import plan_files, write_weights
from l2s_jax.model.decoder import abstract_params
from l2s_jax.model.hf.names import flatten
import flax.linen as nn

def peak():
    # Not ru_maxrss: a child inherits that of the process that forked it.
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024

cfg = ModelConfig(vocab_size=8192, width=512, num_layers=int(sys.argv[2]), num_heads=8,
                  num_kv_heads=8, head_dim=64, ffn_width=2048)
shapes = {path: leaf.shape for path, leaf in flatten(nn.unbox(abstract_params(cfg))).items()}
before = peak()
rng = np.random.default_rng(0)
leaves = lambda path: rng.random(shapes[path], dtype=np.float32)
write_weights(pathlib.Path(sys.argv[1]), cfg, leaves, dtype="float32")
total = sum(file.size for file in plan_files(cfg, "float32"))
largest = 4 * max(int(np.prod(shape)) for shape in shapes.values())
print(peak() - before, total, largest)
"""


@pytest.mark.skipif(not PROC.exists(), reason="peak memory is read from /proc")
def test_one_leaf_at_a_time_is_held(tmp_path):
    """A fresh process that makes each leaf when it is asked for: its peak is not the model's."""
    command = [sys.executable, "-c", GROWTH, str(tmp_path), "12"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, total, largest = map(int, done.stdout.split())
    assert total > 200e6 and largest < 55e6
    assert largest < grown < 1.5 * largest + 40e6 < 0.6 * total
