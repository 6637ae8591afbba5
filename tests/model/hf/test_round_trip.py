"""Hugging Face → ours → Hugging Face: what goes back is what came."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import safe_open

from l2s_jax.export.folder import Parts
from l2s_jax.export.hf import export_checkpoint, export_hf
from l2s_jax.export.import_hf import import_hf
from l2s_jax.model.hf.config import DROPPED, from_hf_config
from l2s_jax.model.hf.files import INDEX
from l2s_jax.model.hf.origin import read_origin
from l2s_jax.model.hf.read import load_hf
from l2s_jax.model.hf.write import SHARD_BYTES, save_hf_weights
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.tokens.tokenizer import load_tokenizer
from tests.tiny_models import FAMILIES, make_folder

DTYPES = ("float32", "bfloat16", "float16")
ROOT = str(pathlib.Path(__file__).parents[3])
TEXTS = (
    "What is 12 + 7?\n\nLet $x^2 = \\frac{1}{2}$. \\boxed{19}",
    "  leading,\ttabs \r\n and trailing  ",
    "naïve Ünïcode – “quotes” 好的。三个鸡蛋 🥚🥚 العربية עברית",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><think></think>",
    "def f(x):\n    return x ** 2  # code\n\n\n1234567890 0x7f",
    "<EASY><LONG><SHORT><ANSWER>",
    "",
)


def weights(folder):
    """File name → content of everything that holds weights."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.suffix == ".safetensors" or path.name == INDEX
    }


def tensors(folder):
    """Every tensor of a folder as (dtype, shape, bytes), whatever file it is in."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as handle:
            for name in handle.keys():  # noqa: SIM118
                array = handle.get_tensor(name)
                found[name] = (str(array.dtype), array.shape, array.tobytes())
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [SHARD_BYTES, 20_000])
def test_whole_files_are_identical(tmp_path, family, tied, dtype, limit):
    """Not the tensors alone: their order, the headers, the split and the index too."""
    source, back = tmp_path / "source", tmp_path / "back"
    size = f"{limit // 1000}KB" if limit == 20_000 else "5GB"
    make_folder(source, family=family, dtype=dtype, max_shard_size=size, tie_word_embeddings=tied)
    assert (source / INDEX).exists() == (limit == 20_000)
    # From one device as it is on disk, and from eight as float32, which holds the halves exactly.
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    for kept, where in ((None, None), ("float32", mesh)):
        cfg, params = load_hf(source, dtype=kept, mesh=where)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jax.numpy.dtype(kept or dtype)}
        shutil.rmtree(back, ignore_errors=True)
        back.mkdir()
        files = save_hf_weights(back, cfg, params, dtype=dtype, shard_bytes=limit)
        assert sorted(files) == sorted(os.listdir(back))
        assert weights(back) == weights(source)


def with_tokenizer(source, tokenizer):
    """Puts a real tokenizer and its generation config beside a tiny model's weights."""
    for path in tokenizer.iterdir():
        if path.name != "LICENSE":
            shutil.copyfile(path, source / path.name)
    generation = {
        "bos_token_id": 151643,
        "do_sample": True,
        "eos_token_id": [151645, 151643],
        "pad_token_id": 151643,
        "repetition_penalty": 1.1,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    }
    (source / "generation_config.json").write_text(json.dumps(generation))


def assert_same_model(back, source):
    """Tensors, configs, and the tokenizer by its ids, template and special tokens."""
    from transformers import AutoTokenizer

    assert tensors(back) == tensors(source)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((back / name).read_text()) == json.loads((source / name).read_text())
    mine, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (back, source))
    assert type(mine) is type(theirs) and len(mine) == len(theirs)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert mine.encode(text) == ids == load_tokenizer(back).encode(text)
        assert mine.decode(ids) == theirs.decode(ids)
    assert mine.get_vocab() == theirs.get_vocab()
    assert mine.chat_template == theirs.chat_template is not None
    assert mine.special_tokens_map == theirs.special_tokens_map
    assert mine.added_tokens_decoder == theirs.added_tokens_decoder
    for field in ("model_max_length", "padding_side", "truncation_side", "pad_token", "eos_token"):
        assert getattr(mine, field) == getattr(theirs, field), field
    for name in ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt"):
        if (source / name).exists():
            assert (back / name).read_bytes() == (source / name).read_bytes(), name


def l2s(devices, *arguments):
    """The program in a process of its own with a number of fake devices; its messages."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": ROOT}
    command = [sys.executable, "-m", "l2s_jax", *map(str, arguments)]
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("devices", "family", "dtype", "shard", "tokenizer"),
    [
        ((1, 1), "qwen2", "float32", "5GB", "qwen2.5"),
        ((8, 8), "qwen2", "bfloat16", "5MB", "qwen2.5"),
        ((8, 1), "qwen3", "bfloat16", "5GB", "qwen3"),
    ],
)
def test_through_the_command_line(shared_data, tmp_path, devices, family, dtype, shard, tokenizer):
    source = tmp_path / "source"
    make_folder(
        source,
        family=family,
        dtype=dtype,
        max_shard_size=shard,
        vocab_size=151_936,
        tie_word_embeddings=False,
        eos_token_id=151_645,
    )
    assert (source / INDEX).exists() == (shard == "5MB")
    with_tokenizer(source, shared_data / "tokenizers" / tokenizer)
    first, second = devices
    out, _ = l2s(first, "import", "--hf", source, "--out", tmp_path / "run")
    assert out == ""
    export = ["export", "--checkpoint", tmp_path / "run", "--out", tmp_path / "back"]
    listed, _ = l2s(second, *export, "--dry-run")
    assert not (tmp_path / "back").exists()
    out, _ = l2s(second, *export)
    assert out == ""
    assert_same_model(tmp_path / "back", source)
    sizes = {line["file"]: line["bytes"] for line in map(json.loads, listed.splitlines())}
    assert sizes == {path.name: path.stat().st_size for path in (tmp_path / "back").iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_a_model_made_here(tmp_path, family):
    """Without an origin config.json is ours alone."""
    from transformers import AutoModelForCausalLM

    model = make_folder(tmp_path / "source", family=family, tie_word_embeddings=True)
    cfg, params = load_hf(tmp_path / "source")
    parts = {"model": cfg, "params": params, "tokenizer": None, "triggers": None}
    export_hf(tmp_path / "ours", **parts, shard_bytes=20_000)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    assert again.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        np.testing.assert_array_equal(again[name].numpy(), weight.numpy(), err_msg=name)


def test_llama_in_process(tmp_path):
    """float16 and a scaled rotary base, without a tokenizer."""
    source = tmp_path / "source"
    make_folder(source, family="llama", dtype="float16", tie_word_embeddings=True)
    import_hf(source, tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "back")
    assert weights(tmp_path / "back") == weights(source)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads(
            (source / name).read_text()
        )


def test_configs_of_real_models(shared_data):
    folders = sorted((shared_data / "configs").iterdir())
    assert len(folders) >= 10
    for folder in folders:
        origin = read_origin(folder)
        assert origin is not None and origin.dtype in ("bfloat16", "float16"), folder
        parts = Parts(
            model=from_hf_config(origin.config),
            fetch={}.__getitem__,
            tokenizer=None,
            triggers=None,
            origin=origin,
            dtype=origin.dtype,
        )
        kept = {name: value for name, value in origin.config.items() if name not in DROPPED}
        assert parts.config() == kept, folder
        if origin.generation:
            assert parts.generation() == origin.generation, folder
