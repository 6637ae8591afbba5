"""Blocks of rows from files to arrays: against slices of the whole tensor, and what they refuse."""

import pathlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from l2s_jax.model.hf.blocks import (
    ALIGNMENT,
    BLOCK_BYTES,
    TILE,
    Scratch,
    Target,
    aligned_empty,
    all_finite,
    fill,
    row_tasks,
    rows_per_block,
    same_values,
)
from l2s_jax.model.hf.files import Found

NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
START = 13  # values may begin anywhere in a file


def write(path: pathlib.Path, array) -> Found:
    path.write_bytes(b"x" * START + array.tobytes() + b"y" * 5)
    return Found(path, array.shape, NAMES[array.dtype.name], START)


def random(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def run(found, targets, *, finite=True):
    """What `fill` says of every task, one after another."""
    scratch = Scratch()
    with found.file.open("rb") as file:
        tasks = row_tasks(found, targets)
        said = [fill(file.fileno(), found, targets, t, scratch, finite=finite) for t in tasks]
    return [text for text in said if text]


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("to", NAMES)
@pytest.mark.parametrize("shape", [(1, 7), (TILE - 1, 3), (TILE, 8), (2 * TILE + 5, 33)])
def test_parts_of_a_tensor(tmp_path, dtype, to, shape):
    """Four corners, straight and transposed, in every type; as slices of the whole are."""
    array = random(shape, dtype)
    found = write(tmp_path / "f", array)
    rows, columns = shape
    cuts = [slice(0, rows), slice(rows // 3, rows), slice(0, (rows + 1) // 2)]
    sides = [slice(0, columns), slice(columns // 2, columns), slice(1, 2)]
    targets = []
    for i, (cut, side) in enumerate((cut, side) for cut in cuts for side in sides):
        size = (cut.stop - cut.start, side.stop - side.start)
        empty = np.full(size if i % 2 else size[::-1], 7, jnp.dtype(to))
        targets.append(Target(empty if i % 2 else empty.T, cut, side))
    assert not run(found, targets)
    for target in targets:
        want = array[target.rows, target.columns].astype(jnp.dtype(to))
        assert target.array.dtype == jnp.dtype(to)
        np.testing.assert_array_equal(target.array, want)


def test_a_tensor_of_many_blocks_and_tasks(tmp_path):
    array = random((40_000, 150), "float32")
    found = write(tmp_path / "f", array)
    whole, turned = np.empty((40_000, 150), np.float32), np.empty((150, 39_000), np.float32)
    targets = [
        Target(whole, slice(0, 40_000), slice(0, 150)),
        Target(turned.T, slice(1000, 40_000), slice(0, 150)),
    ]
    assert len(list(row_tasks(found, targets))) > 1 and rows_per_block(found) * 600 <= BLOCK_BYTES
    assert not run(found, targets)
    np.testing.assert_array_equal(whole, array)
    np.testing.assert_array_equal(turned, array[1000:].T)


def test_a_row_longer_than_a_block(tmp_path):
    array = random((3, BLOCK_BYTES // 2), "bfloat16")
    found = write(tmp_path / "f", array)
    out = np.empty(array.shape, array.dtype)
    assert not run(found, [Target(out, slice(0, 3), slice(0, array.shape[1]))])
    np.testing.assert_array_equal(out, array)


def test_only_the_rows_that_are_wanted_are_read(tmp_path):
    """A host whose devices hold other rows is not troubled by these, nor by the file's end."""
    array = random((300, 10), "float32")
    array[:100] = np.nan
    found = write(tmp_path / "f", array)
    found.file.write_bytes(found.file.read_bytes()[: START + 200 * 40])
    out = np.empty((100, 10), np.float32)
    assert not run(found, [Target(out, slice(100, 200), slice(0, 10))])
    np.testing.assert_array_equal(out, array[100:200])


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path, dtype, value):
    array = random((150, 10), dtype)
    array[140, 9] = value
    found = write(tmp_path / "f", array)
    out = np.empty((150, 10), jnp.dtype(dtype))
    targets = [Target(out, slice(0, 150), slice(0, 10))]
    assert run(found, targets) == ["holds values that are not finite (NaN or infinity)"]
    assert not run(found, targets, finite=False)
    assert out.tobytes() == array.tobytes()  # numpy takes one bfloat16 NaN for unlike another


def test_values_that_a_type_cannot_hold(tmp_path):
    array = random((10, 10), "float32")
    array[3, 3] = 1e6
    found = write(tmp_path / "f", array)
    for to, said in (("float16", ["holds values that float16 cannot hold"]), ("bfloat16", [])):
        targets = [Target(np.empty((10, 10), jnp.dtype(to)), slice(0, 10), slice(0, 10))]
        assert run(found, targets) == said
        assert run(found, targets, finite=False) == said


def test_every_half_by_its_bits():
    """All 65,536 values of both 16-bit types, each against its definition."""
    for dtype in (np.float16, ml_dtypes.bfloat16):
        every = np.arange(2**16, dtype=np.uint16).view(dtype)
        want = np.isfinite(every.astype(np.float32))
        got = np.array([all_finite(every[i : i + 1]) for i in range(2**16)])
        np.testing.assert_array_equal(got, want)
    assert all_finite(np.float32([3.4e38, -3.4e38, 1e-45, 0, -0.0]))
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        assert not all_finite(np.float32([1, value]))


def test_a_file_that_shrinks(tmp_path):
    array = random((10, 10), "float32")
    found = write(tmp_path / "f", array)
    found.file.write_bytes(found.file.read_bytes()[:100])
    with pytest.raises(ValueError, match="was cut off while it was read"):
        run(found, [Target(np.empty((10, 10), np.float32), slice(0, 10), slice(0, 10))])


@pytest.mark.parametrize(("one", "other"), [("float32", "float32"), ("float32", "bfloat16")])
def test_same_values(tmp_path, one, other):
    array = random((5000, 70), "bfloat16")
    first, second = array.astype(one), array.astype(other)

    def same(second):
        both = write(tmp_path / "a", first), write(tmp_path / "b", second)
        with both[0].file.open("rb") as a, both[1].file.open("rb") as b:
            return same_values((a.fileno(), both[0]), (b.fileno(), both[1]))

    assert same(second)
    assert not same(second[:-1]) and not same(second.reshape(70, 5000))
    second[4999, 69] += 1
    assert not same(second)


def test_memory_is_aligned():
    for shape in ((), (1,), (3, 5), (1000, 1000)):
        array = aligned_empty(shape, jnp.dtype("bfloat16"))
        assert array.shape == shape and array.dtype == ml_dtypes.bfloat16
        assert array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous
