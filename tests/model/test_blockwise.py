"""Attention in blocks at its edges; against the definition it stands in `test_routes.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.blockwise import attend_blocks, live_blocks
from l2s_jax.model.seen import Seen
from tests.model.attention_cases import attend_by_loops, sees_by_loops


def random_rows(seed, rows, length):
    """Segment ids in any order and branches without a trunk: more than any batch holds."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 4, (rows, length)), rng.integers(0, 3, (rows, length))


@pytest.mark.parametrize("length", [1, 2, 64, 65, 129])
def test_any_length_and_any_ids(length):
    rng = np.random.default_rng(length)
    q, k, v, grad = (
        jnp.asarray(rng.normal(size=(2, length, heads, 8)), jnp.float32) for heads in (2, 1, 1, 2)
    )
    ids = random_rows(length, 2, length)
    seen = Seen(*(jnp.asarray(x, jnp.int32) for x in ids))
    out, back = jax.vjp(lambda q, k, v: attend_blocks(q, k, v, seen), q, k, v)
    for ours, theirs in zip((out, *back(grad)), attend_by_loops(q, k, v, grad, *ids), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_no_block_is_skipped_that_somebody_sees():
    width, blocks = 4, 6
    for seed in range(20):
        segments, branches = random_rows(seed, 2, width * blocks)
        if seed % 2:
            segments, branches = np.sort(segments), np.zeros_like(branches)
        ids, own = (
            jnp.asarray(x, jnp.int32).reshape(2, blocks, width).swapaxes(0, 1)
            for x in (segments, branches)
        )
        live = np.asarray(live_blocks(ids, own))
        for b, t, s in np.ndindex(2, width * blocks, width * blocks):
            if sees_by_loops(segments[b], branches[b], t, s):
                assert live[t // width, s // width], (seed, b, t, s)


def test_blocks_of_other_segments_are_skipped():
    ids = jnp.asarray(np.repeat([1, 2, 3, 0], [8, 6, 2, 8]), jnp.int32).reshape(6, 1, 4)
    live = np.tril(live_blocks(ids, None))
    np.testing.assert_array_equal(live.argmax(axis=1), [0, 0, 2, 2, 4, 5])


def test_blocks_of_other_branches_are_skipped():
    """A trunk of five, branches of seven, eight and four: the trunk's two blocks, and their own."""
    ids = jnp.ones((6, 1, 4), jnp.int32)
    own = jnp.asarray(np.repeat([0, 1, 2, 3], [5, 7, 8, 4]), jnp.int32).reshape(6, 1, 4)
    seen = [np.flatnonzero(row).tolist() for row in np.tril(live_blocks(ids, own))]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4], [0, 1, 5]]


def gradient_memory(length, dtype):
    """Bytes that the compiled gradient holds beside its arguments and results."""
    size, heads, kv_heads = 64, 4, 1
    q, k = (jax.ShapeDtypeStruct((1, length, h, size), dtype) for h in (heads, kv_heads))
    seen = Seen(jax.ShapeDtypeStruct((1, length), jnp.int32))

    def loss(q, k, v, seen):
        return jnp.sum(attend_blocks(q, k, v, seen))

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, seen).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def test_memory_grows_with_the_length_and_not_with_its_square():
    small, large = gradient_memory(1024, jnp.float32), gradient_memory(4096, jnp.float32)
    assert large < 4.5 * small
    assert large < 4 * 4096 * 4096 * 4 / 8  # an eighth of the scores of four heads


def test_bfloat16_is_summed_in_float32():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 200, h, 64)), jnp.bfloat16) for h in (2, 1, 1))
    seen = Seen(jnp.ones((1, 200), jnp.int32))
    q32, k32, v32 = (x.astype(jnp.float32) for x in (q, k, v))
    want = attend_blocks(q32, k32, v32, seen)
    got = attend_blocks(q, k, v, seen)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.02)
