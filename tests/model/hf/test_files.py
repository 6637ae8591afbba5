"""What is refused before a value is read, and what the message says."""

import json
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l2s_jax.model.hf.files import INDEX, SINGLE, find_tensors
from l2s_jax.model.hf.read import load_hf
from tests.tiny_models import make_folder


@pytest.fixture
def folder(tmp_path):
    """A tiny untied model in one float32 file."""
    make_folder(tmp_path, tie_word_embeddings=False)
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    make_folder(tmp_path, max_shard_size="20KB", tie_word_embeddings=False)
    return tmp_path


def edit(folder, change):
    """Applies `change` to the dict of tensors in a folder's single file."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def shards(folder):
    return sorted(file for file in folder.iterdir() if "-of-" in file.name)


@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_every_tensor_where_its_bytes_are(tmp_path, size):
    make_folder(tmp_path, max_shard_size=size, dtype="bfloat16", tie_word_embeddings=False)
    found = find_tensors(tmp_path)
    want = {
        name: (f, a) for f in tmp_path.glob("*.safetensors") for name, a in load_file(f).items()
    }
    assert set(found) == set(want)
    for name, here in found.items():
        file, array = want[name]
        assert (here.file, here.shape, here.dtype) == (file, array.shape, "BF16")
        data = array.tobytes()
        assert file.read_bytes()[here.start : here.start + len(data)] == data


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 2**40}, f"num_hidden_layers={2**40}, but the files hold 39"),
        ({"num_hidden_layers": 40}, "num_hidden_layers=40, but the files hold 39"),
        ({"vocab_size": 10**400}, "vocab_size=1000"),
        ({"head_dim": 2**31}, f"num_attention_heads . head_dim={2**33}"),
        ({"hidden_size": 2**40, "head_dim": 8}, f"hidden_size={2**40}, but"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps=1000.* must be a number above 0"),
    ],
)
def test_sizes_that_no_file_can_hold(folder, change, message):
    """Refused before the decoder is traced, which would take all memory."""
    config = json.loads((folder / "config.json").read_text()) | {"layer_types": None}
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message) as error:
        load_hf(folder)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, r"num_heads=4 is no multiple of num_kv_heads=3"),
        ({"model_type": "qwen2_moe"}, "qwen2_moe"),
        ({"hidden_size": "32"}, "hidden_size='32' must be a whole number"),
    ],
)
def test_faults_of_the_config_name_its_file(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message) as error:
        load_hf(folder)
    assert str(error.value).startswith(f"{folder / 'config.json'}: ")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated_file(folder, keep):
    whole = (folder / SINGLE).read_bytes()
    size = int(keep * len(whole)) if isinstance(keep, float) else keep
    (folder / SINGLE).write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
        load_hf(folder)


def test_a_tensor_twice_in_one_header(folder):
    data = (folder / SINGLE).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    first = f'{{"model.norm.weight": {json.dumps(header["model.norm.weight"])}, '
    text = first.encode() + data[9 : 8 + size]
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(ValueError, match=r"model\.safetensors.*'?model\.norm\.weight"):
        load_hf(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../elsewhere.safetensors", "leaves the folder"),
        ("/etc/elsewhere.safetensors", "leaves the folder"),
        ("a/../../b.safetensors", "leaves the folder"),
        ("..\\b.safetensors", "leaves the folder"),
        (7, "leaves the folder"),
        (None, "leaves the folder"),
        ("pytorch_model.bin", "no safetensors file"),
    ],
)
def test_index_that_leaves_the_folder(sharded, file, message):
    edit_index(sharded, lambda names: names.update({"model.norm.weight": file}))
    with pytest.raises(ValueError, match=message) as error:
        load_hf(sharded)
    assert "weight_map['model.norm.weight']" in str(error.value)


def test_index_that_disagrees_with_the_files(sharded):
    """All of it is listed: a wrong file, a tensor that is nowhere, one that is not in the index."""
    one, other = shards(sharded)[:2]
    moved, left_out = sorted(load_file(one))[0], sorted(load_file(other))[0]

    def spoil(names):
        names[moved] = other.name
        names["model.layers.9.more"] = one.name
        del names[left_out]

    edit_index(sharded, spoil)
    with pytest.raises(ValueError, match="does not fit the files beside it") as error:
        load_hf(sharded)
    for line in (
        f"{moved!r} is in {one.name}, weight_map says {other.name}",
        f"{left_out!r} is in {other.name}, weight_map says None",
        f"'model.layers.9.more' is not in {one.name}",
    ):
        assert line in str(error.value)


def test_shards_that_are_missing_are_all_named(sharded):
    gone = shards(sharded)[:2]
    for file in gone:
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"is missing, though model\.safetensors\.index"):
        load_hf(sharded)
    with pytest.raises(FileNotFoundError, match=f"'{gone[0].name}', '{gone[1].name}'"):
        load_hf(sharded)


def test_a_name_that_no_file_can_have(sharded):
    edit_index(sharded, lambda names: names.update(more="x" * 5000 + ".safetensors"))
    with pytest.raises(FileNotFoundError, match=r"'xxx.* is missing"):
        load_hf(sharded)


def test_tensor_in_two_shards(sharded):
    first, second = shards(sharded)[:2]
    name, array = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: array}, second)
    with pytest.raises(ValueError, match=f"{name!r} is in {first.name} and {second.name}"):
        load_hf(sharded)


def test_the_hub_cache_links_to_its_store(sharded, tmp_path_factory):
    """Links may lead anywhere; what is refused is a path in the index that does."""
    _, want = load_hf(sharded)
    store = tmp_path_factory.mktemp("store")
    for i, file in enumerate(shards(sharded)):
        file.rename(store / str(i))
        file.symlink_to(store / str(i))
    jax.tree.map(np.testing.assert_array_equal, load_hf(sharded)[1], want)


def test_pickles_are_refused(folder):
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled weights only \(pytorch_model\.bin\)"):
        load_hf(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no valid JSON"),
        ("{", "no valid JSON"),
        ("[1]", "holds list"),
        ("\xff", "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "no valid JSON"),
        ('{"vocab_size": 96, "vocab_size": 97}', "twice in one object: 'vocab_size'"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_malformed_json(sharded, name, text, message):
    (sharded / name).write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=message) as error:
        load_hf(sharded)
    assert str(sharded / name) in str(error.value)


def test_what_is_not_there(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_hf(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is a file"):
        load_hf(folder / SINGLE)
    (folder / SINGLE).unlink()
    with pytest.raises(FileNotFoundError, match=f"neither {SINGLE} nor {INDEX}"):
        load_hf(folder)
    os.unlink(folder / "config.json")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_hf(folder)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_index_without_a_map(sharded, weight_map):
    (sharded / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(ValueError, match="has no weight_map"):
        load_hf(sharded)


def test_nothing_of_the_folder_is_run(folder):
    """A config that names code to run, and the code: neither is looked at."""
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Model: pass\n")
    try:
        load_hf(folder)
    except ValueError as error:
        assert "auto_map" in str(error)
    assert not (folder / "ran").exists()
