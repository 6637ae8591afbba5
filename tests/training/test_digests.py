"""Digests of arrays: by definition, on any mesh, and what changes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from l2s_jax.sharding import make_mesh
from l2s_jax.training.digests import as_words, digest, linear_index
from tests.training.tiny import MESHES

compiled = jax.jit(digest)


def mix(h: int) -> int:
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) % 2**32
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) % 2**32
    return h ^ (h >> 16)


def by_definition(words: list[int]) -> list[int]:
    first = second = 0
    for i, word in enumerate(words):
        mixed = mix(word ^ mix((i * 0x9E3779B9) % 2**32))
        first += mixed
        second += mixed * (2 * i + 1)
    return [first % 2**32, second % 2**32]


def values(dtype, shape=(4, 6)):
    bits = np.random.default_rng(0).integers(0, 256, (*shape, jnp.dtype(dtype).itemsize))
    raw = np.ascontiguousarray(bits.astype(np.uint8)).view(jnp.dtype(dtype))[..., 0]
    return raw % 2 == 1 if dtype == "bool" else raw


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool", "float8_e4m3fn"]
)
def test_by_definition(dtype):
    x = np.zeros((4, 6), bool) if dtype == "bool" else values(dtype)
    if dtype == "bool":
        x[1:3] = True
    unsigned = {1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize]
    words = [int(word) for word in x.view(unsigned).reshape(-1)]
    assert [int(word) for word in compiled(jnp.asarray(x))] == by_definition(words)


def test_scalars_keys_and_nothing():
    assert compiled(jnp.float32(1)).tolist() == by_definition([0x3F800000])
    assert compiled(jnp.zeros((0, 3))).tolist() == [0, 0]
    key = jax.random.key(5)
    assert compiled(key).tolist() == compiled(jax.random.key_data(key)).tolist()


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_linear_index(shape):
    want = np.arange(np.prod(shape, dtype=int), dtype=np.uint32).reshape(shape)
    np.testing.assert_array_equal(linear_index(shape), want)


def test_an_index_beyond_32_bits_wraps():
    """Shapes alone: the constants that go into the index are those of 2^33 places."""
    assert jax.eval_shape(lambda: linear_index((2**17, 2**16))).shape == (2**17, 2**16)


def test_any_bit_of_any_value_changes_it():
    x = np.random.default_rng(0).standard_normal(8).astype(np.float32)
    seen = {tuple(compiled(jnp.asarray(x)).tolist())}
    for place in range(8):
        for bit in range(32):
            words = x.view(np.uint32).copy()
            words[place] ^= np.uint32(1 << bit)
            seen.add(tuple(compiled(jnp.asarray(words.view(np.float32))).tolist()))
    assert len(seen) == 1 + 8 * 32


def test_what_arithmetic_takes_for_equal_is_told_apart():
    def of(x):
        return tuple(compiled(jnp.asarray(x, jnp.float32)).tolist())

    assert of([0.0, 1.0]) != of([-0.0, 1.0])
    assert of([1.0, 2.0]) != of([2.0, 1.0])
    nan = np.asarray([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert of(nan[:1]) != of(nan[1:])


def test_cut_over_a_mesh_it_is_the_same_and_nothing_is_gathered():
    mesh = make_mesh(MESHES["all axes"])
    x = jnp.asarray(values("float32", (8, 16)))
    place = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor"))
    cut = jax.device_put(x, place)
    np.testing.assert_array_equal(compiled(cut), compiled(x))
    program = compiled.lower(cut).compile().as_text()
    assert program is not None and "all-gather" not in program and "all-reduce" in program


def test_words_keep_every_bit():
    x = jnp.asarray(values("bfloat16"))
    assert as_words(x).dtype == jnp.uint32 and int(as_words(x).max()) < 2**16
