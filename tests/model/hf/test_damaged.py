"""Five hundred damaged folders: each is refused in plain words, or loads as if nothing were.

Damage is drawn from a seed, on tiny models of every family, in one file and in several. What may
not happen: another exception, a message that names neither file nor tensor, other shapes, other
values.

What nobody can see is left out: a flipped bit in the values themselves (a safetensors file carries
no digest of them; only what is not finite shows), two tensors of one shape that changed places,
one 16-bit type written for the other, and a number of config.json that no tensor's shape depends
on, such as the rotary base.
"""

import collections
import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest

from l2s_jax.model.hf.files import INDEX
from l2s_jax.model.hf.read import load_hf
from tests.tiny_models import FAMILIES, make_folder

NUM_FOLDERS = 500
WITHOUT_SHAPE = ("rope_theta", "rope_scaling", "rms_eps", "max_positions")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders of every family, single and sharded, and what each holds."""
    found = []
    for family in FAMILIES:
        for size in ("5GB", "30KB"):
            folder = tmp_path_factory.mktemp(f"{family}_{size}")
            make_folder(folder, family=family, max_shard_size=size, tie_word_embeddings=False)
            (folder / "generation_config.json").unlink()
            found.append((folder, *load_hf(folder)))
    return found


# ---- parts of a folder ----


def pick(rng, values):
    return values[rng.integers(len(values))]


def weights(folder):
    return sorted(folder.glob("*.safetensors"))


def header_size(file):
    return int.from_bytes(file.read_bytes()[:8], "little")


def edit_header(file, change):
    """The file with `change` applied to its header's text, and the length in front put right."""
    whole = file.read_bytes()
    size = header_size(file)
    text = change(whole[8 : 8 + size].decode()).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + size :])


def edit_entry(rng, file, change):
    """The file with `change` applied to one tensor's entry."""

    def edit(text):
        header = json.loads(text)
        name = pick(rng, sorted(set(header) - {"__metadata__"}))
        header[name] = change(header[name])
        return json.dumps(header)

    edit_header(file, edit)


def edit_json(file, change):
    obj = json.loads(file.read_text())
    change(obj)
    file.write_text(json.dumps(obj))


def flip(rng, file, size):
    """The file with one bit of its first `size` bytes flipped."""
    data = bytearray(file.read_bytes())
    data[rng.integers(size)] ^= 1 << rng.integers(8)
    file.write_bytes(data)


# ---- kinds of damage ----


def flipped_in_header(rng, folder):
    file = pick(rng, weights(folder))
    flip(rng, file, 8 + header_size(file))


def flipped_in_index_or_config(rng, folder):
    file = pick(rng, sorted(folder.glob("*.json")))
    flip(rng, file, file.stat().st_size)


def cut_off(rng, folder):
    file = pick(rng, sorted(folder.iterdir()))
    os.truncate(file, rng.integers(file.stat().st_size))


def longer(rng, folder):
    file = pick(rng, weights(folder))
    file.write_bytes(file.read_bytes() + rng.bytes(pick(rng, [1, 2, 8, 4096])))


def other_length(rng, folder):
    file = pick(rng, weights(folder))
    size = header_size(file)
    lengths = [
        0,
        1,
        size - 1,
        size + 1,
        2 * size,
        2**31,
        2**63,
        2**64 - 1,
        int(rng.integers(2**40)),
    ]
    file.write_bytes(pick(rng, lengths).to_bytes(8, "little") + file.read_bytes()[8:])


def renamed_tensor(rng, folder):
    def rename(text):
        header = json.loads(text)
        name = pick(rng, sorted(set(header) - {"__metadata__"}))
        new = pick(rng, [name + "_", name.upper(), "", "lm_head", "model.layers.7.x", "\ud800"])
        return json.dumps({new if key == name else key: entry for key, entry in header.items()})

    edit_header(pick(rng, weights(folder)), rename)


def swapped_names(rng, folder):
    """Two tensors of different shapes take each other's names."""

    def swap(text):
        header = json.loads(text)
        names = sorted(set(header) - {"__metadata__"})
        one = pick(rng, names)
        others = [name for name in names if header[name]["shape"] != header[one]["shape"]]
        other = pick(rng, others or names)
        header[one], header[other] = header[other], header[one]
        return json.dumps(header)

    edit_header(pick(rng, weights(folder)), swap)


def other_shape(rng, folder):
    def change(entry):
        shape = entry["shape"]
        shapes = [shape[::-1], [*shape, 1], [1, *shape], [int(np.prod(shape))], [2 * shape[0]], []]
        shapes += [[0], [-shape[0]], [2**63, 2], [2**32, 2**32], [1.5], "12", None, [[1]], [str(3)]]
        return {**entry, "shape": pick(rng, shapes)}

    edit_entry(rng, pick(rng, weights(folder)), change)


def other_dtype(rng, folder):
    names = ["F64", "BF16", "F16", "F8_E4M3", "I8", "I32", "U32", "I64", "BOOL", "C64", "F4", "f32"]
    kind = pick(rng, [*names, "", None, 7])
    edit_entry(rng, pick(rng, weights(folder)), lambda entry: {**entry, "dtype": kind})


def other_offsets(rng, folder):
    def change(entry):
        begin, end = entry["data_offsets"]
        offsets = [[begin + 4, end + 4], [begin, end + 4], [begin + 4, end], [end, begin], [begin]]
        offsets += [[-begin - 1, end], [0, end - begin], [begin, 2**63], [begin + 0.5, end], None]
        return {**entry, "data_offsets": pick(rng, [*offsets, [begin, end, end], [begin, 2**64]])}

    edit_entry(rng, pick(rng, weights(folder)), change)


def duplicated_tensor(rng, folder):
    """The same name twice in one header, or the same tensor in two files."""
    file = pick(rng, weights(folder))
    text = file.read_bytes()[8 : 8 + header_size(file)].decode()
    name = pick(rng, sorted(set(json.loads(text)) - {"__metadata__"}))
    entry = json.dumps(json.loads(text)[name])
    if rng.integers(2) or len(weights(folder)) == 1:
        first = f"{{{json.dumps(name)}: {entry}, "
        last = f", {json.dumps(name)}: {entry}}}"
        at_front = rng.integers(2)
        edit_header(file, lambda t: first + t.lstrip()[1:] if at_front else t.rstrip()[:-1] + last)
    else:
        shutil.copy(file, folder / pick(rng, [f for f in weights(folder) if f != file]).name)


def lost_file(rng, folder):
    file = pick(rng, sorted(folder.iterdir()))
    file.unlink()
    if rng.integers(2):
        file.mkdir()


def exchanged_files(rng, folder):
    one, other = rng.permutation(sorted(folder.iterdir()))[:2]
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def other_index(rng, folder):
    if not (folder / INDEX).exists():
        return lost_file(rng, folder)

    def change(index):
        names = index["weight_map"]
        name = pick(rng, sorted(names))
        files = sorted(set(names.values()) - {names[name]})
        kinds = ["../up.safetensors", "/etc/x.safetensors", "config.json", "x.bin", "", 5, None]
        kinds += [[names[name]], {}, "x" * 5000 + ".safetensors", "a\0b.safetensors", *files]
        what = rng.integers(5)
        if what == 0:
            del names[name]
        elif what == 1:
            names[pick(rng, ["more", "model.layers.9.mlp.up_proj.weight"])] = names[name]
        elif what == 2:
            index["weight_map"] = pick(rng, [{}, [], None, "x", 3])
        else:
            names[name] = pick(rng, kinds)

    edit_json(folder / INDEX, change)


def other_config(rng, folder):
    def change(config):
        fields = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
        name = pick(rng, [*fields.split(), "num_key_value_heads", "head_dim", "model_type"])
        values = [
            0,
            -1,
            1,
            1.5,
            2**40,
            "32",
            None,
            [],
            {},
            True,
            float("nan"),
            10**400,
            "qwen2_moe",
        ]
        config[name] = pick(rng, values)

    edit_json(folder / "config.json", change)


def other_text(rng, folder):
    file = pick(rng, sorted(folder.iterdir()))
    texts = [b"", b"{}", b"[]", b"null", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"\0" * 64]
    file.write_bytes(pick(rng, [*texts, b"9" * 5000, b'{"weight_map": {"a": NaN}}']))


def not_finite(rng, folder):
    """The last value of a file becomes NaN or infinite."""
    file = pick(rng, weights(folder))
    value = np.float32(pick(rng, [np.nan, np.inf, -np.inf]))
    file.write_bytes(file.read_bytes()[:-4] + value.tobytes())


DAMAGES = (
    flipped_in_header,
    flipped_in_header,
    flipped_in_header,
    flipped_in_index_or_config,
    flipped_in_index_or_config,
    cut_off,
    longer,
    other_length,
    renamed_tensor,
    swapped_names,
    other_shape,
    other_dtype,
    other_offsets,
    duplicated_tensor,
    lost_file,
    exchanged_files,
    other_index,
    other_config,
    other_text,
    not_finite,
)


# ---- what comes of it ----


def check(folder, names, cfg, params):
    """True if the folder was refused; asserts that the refusal is in order, or the load."""
    try:
        got_cfg, got = load_hf(folder)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        assert any(name in message for name in names), f"names no file and no tensor: {message}"
        assert len(message) < 20_000
        return True
    kept = {name: getattr(cfg, name) for name in WITHOUT_SHAPE}
    assert dataclasses.replace(got_cfg, **kept) == cfg
    jax.tree.map(np.testing.assert_array_equal, got, params)
    return False


def test_damaged_folders(whole, tmp_path):
    refused, harmless = collections.Counter(), collections.Counter()
    for seed in range(NUM_FOLDERS):
        rng = np.random.default_rng(seed)
        source, cfg, params = pick(rng, whole)
        damage = DAMAGES[seed % len(DAMAGES)]
        folder = tmp_path / str(seed)
        shutil.copytree(source, folder)
        damage(rng, folder)
        names = {file.name for file in source.iterdir()}
        for file in weights(source):
            names |= set(json.loads(file.read_bytes()[8 : 8 + header_size(file)]))
        try:
            result = check(folder, names, cfg, params)
        except Exception as error:
            error.add_note(f"seed {seed}: {damage.__name__} of {source.name}")
            raise
        (refused if result else harmless)[damage.__name__] += 1
        shutil.rmtree(folder)
    assert refused.total() + harmless.total() == NUM_FOLDERS
    # Harmless are flips in fields that nobody reads, and entries put back as they were.
    assert refused.total() > 0.9 * NUM_FOLDERS, (refused, harmless)
    for damage in DAMAGES:
        assert refused[damage.__name__], f"{damage.__name__} was never refused"
