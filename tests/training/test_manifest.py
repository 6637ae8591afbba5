"""Digests of a checkpoint's files: what is noticed, and what is not looked at."""

import json
import pathlib

import numpy as np
import pytest

from l2s_jax.training import manifest


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in {"params/d/a": 3000, "params/empty": 0, "record/metadata": 40}.items():
        path = tmp_path / "7" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(size))
    manifest.write(tmp_path / "7", {"params.w": "float32[2] 0123456789abcdef"})
    return tmp_path / "7"


def flip(path: pathlib.Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_as_written_there_is_no_fault(folder):
    assert manifest.faults(folder) == []
    assert manifest.read(folder)["arrays"] == {"params.w": "float32[2] 0123456789abcdef"}
    assert set(manifest.read(folder)["files"]) == {"params/d/a", "params/empty", "record/metadata"}


def test_a_moved_folder_stays_whole(folder, tmp_path):
    assert manifest.faults(folder.rename(tmp_path / "8")) == []


@pytest.mark.parametrize("name", ["params/d/a", "record/metadata"])
def test_every_flipped_bit_of_a_file_is_named(folder, name):
    size = (folder / name).stat().st_size
    for bit in np.random.default_rng(1).choice(8 * size, 50, replace=False):
        flip(folder / name, int(bit))
        assert manifest.faults(folder) == [f"{name} is not what was written"]
        flip(folder / name, int(bit))
    assert manifest.faults(folder) == []


def test_every_flipped_bit_of_the_digests_themselves(folder):
    for bit in range(8 * (folder / manifest.FILE).stat().st_size):
        flip(folder / manifest.FILE, bit)
        assert manifest.faults(folder) == ["digests.json is not what was written"], bit
        flip(folder / manifest.FILE, bit)


@pytest.mark.parametrize("cut", [0, 1, 2999])
def test_cut_and_lengthened_files(folder, cut):
    path = folder / "params/d/a"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    assert manifest.faults(folder) == ["params/d/a is not what was written"]
    path.write_bytes(whole + b"\0")
    assert manifest.faults(folder) == ["params/d/a is not what was written"]


def test_what_is_missing_is_named(folder):
    (folder / "params/empty").unlink()
    assert manifest.faults(folder) == ["params/empty is missing"]
    assert manifest.faults(folder, inside="record/") == []  # asked for a part alone
    (folder / manifest.FILE).unlink()
    assert manifest.faults(folder) == ["digests.json is missing"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {}, "arrays": {}}', "null"])
def test_a_file_of_another_kind(folder, text):
    (folder / manifest.FILE).write_text(text)
    assert manifest.faults(folder) == ["digests.json is not what was written"]


def test_the_same_values_written_otherwise_are_not_what_was_written(folder):
    path = folder / manifest.FILE
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert manifest.faults(folder) == ["digests.json is not what was written"]
