import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.attention import attend, attend_cached, merge, partial_softmax, visible
from l2s_jax.model.cache import Cache, Shared, Stored


def attend_by_loops(q, k, v, mask):
    out = np.zeros_like(q)
    shared = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(mask[b, t])
        dots = np.array([q[b, t, h] @ k[b, s, h // shared] for s in seen]) / np.sqrt(q.shape[3])
        probs = np.exp(dots - dots.max())
        probs /= probs.sum()
        out[b, t, h] = sum(p * v[b, s, h // shared] for p, s in zip(probs, seen, strict=True))
    return out


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_visible_by_loops(seed):
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(0, 4, (2, 12)), axis=1)
    if seed % 2:
        segments = segments[:, ::-1]  # padding on the right
    branches = rng.integers(0, 3, (2, 12))
    got = visible(jnp.asarray(segments), jnp.asarray(branches))
    for b, t, s in np.ndindex(2, 12, 12):
        same = segments[b, t] == segments[b, s] and segments[b, s] > 0
        path = branches[b, s] in (0, branches[b, t])
        assert bool(got[b, t, s]) == (t == s or (s < t and same and path)), (b, t, s)


def test_a_branch_sees_the_trunk_and_itself_only():
    seen = visible(jnp.ones((1, 5), int), jnp.array([[0, 1, 1, 2, 2]]))[0]
    assert np.flatnonzero(seen[2]).tolist() == [0, 1, 2]
    assert np.flatnonzero(seen[4]).tolist() == [0, 3, 4]


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_attend_by_loops(heads, kv_heads):
    q, k, v = normal(0, 2, 7, heads, 8), normal(1, 2, 7, kv_heads, 8), normal(2, 2, 7, kv_heads, 8)
    segments = jnp.array([[0, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]])
    mask = visible(segments, jnp.zeros_like(segments))
    got = attend(*map(jnp.asarray, (q, k, v)), mask)
    np.testing.assert_allclose(got, attend_by_loops(q, k, v, mask), atol=2e-6)


def stored(seed, layers, rows, kv_heads, capacity, size, lengths):
    k, v = normal(seed, 2, layers, rows, kv_heads, capacity, size)
    return Stored(jnp.asarray(k.swapaxes(3, 4)), jnp.asarray(v), jnp.asarray(lengths, jnp.int32))


def behind(part, layer, place, own):
    """Keys and values of one stored row, and `own` behind them."""
    length = int(part.lengths[place])
    k = np.asarray(part.k[layer, place, :, :, :length]).transpose(2, 0, 1)
    v = np.asarray(part.v[layer, place, :, :length]).swapaxes(0, 1)
    return np.concatenate([k, own[0]]), np.concatenate([v, own[1]])


def attend_row_by_row(q, k, v, mask, cache, layer):
    """The definition: every row's keys side by side, one softmax."""
    out = []
    for row in range(q.shape[0]):
        own = behind(cache.tail, layer, row, (k[row], v[row]))
        for shared in cache.shared:
            own = behind(shared.stored, layer, int(shared.seat[row]) // shared.places, own)
        before = own[0].shape[0] - k.shape[1]
        seen = np.concatenate([np.ones((q.shape[1], before), bool), mask[row]], axis=1)
        out.append(attend_by_loops(q[row : row + 1], own[0][None], own[1][None], seen[None])[0])
    return np.stack(out)


@pytest.mark.parametrize("capacity", [16, 128, 384])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("num_shared", [1, 2])
def test_own_tail_and_beginnings_make_one_softmax(capacity, queries, num_shared):
    """Rows sit anywhere behind their prompts, filled to any length, over several blocks."""
    rows, heads, kv_heads, size, layers = 4, 4, 2, 8, 2
    q = normal(0, rows, queries, heads, size)
    k, v = normal(1, 2, rows, queries, kv_heads, size)
    rng = np.random.default_rng(2)
    tail = stored(3, layers, rows, kv_heads, capacity, size, [0, capacity, 1, capacity // 2 + 1])
    levels = []
    for level in range(num_shared):  # three beginnings, two places each
        seat = rng.permutation(6)[:rows]
        row_at = np.full(6, rows)
        row_at[seat] = np.arange(rows)
        prompts = stored(4 + level, layers, 3, kv_heads, capacity, size, [capacity, 5, 1])
        levels.append(Shared(prompts, jnp.asarray(row_at.reshape(3, 2)), jnp.asarray(seat)))
    cache = Cache(tail, tuple(levels))
    mask = np.broadcast_to(np.tril(np.ones((queries, queries), bool)), (rows, queries, queries))
    for layer in range(layers):
        got = attend_cached(*map(jnp.asarray, (q, k, v, mask)), cache, jnp.int32(layer))
        want = attend_row_by_row(q, k, v, mask, cache, layer)
        np.testing.assert_allclose(got, want, atol=3e-6)


def test_a_row_without_prompts_sees_its_tail():
    q, (k, v) = normal(0, 2, 3, 4, 8), normal(1, 2, 2, 3, 2, 8)
    cache = Cache(stored(2, 1, 2, 2, 16, 8, [7, 0]))
    mask = np.broadcast_to(np.tril(np.ones((3, 3), bool)), (2, 3, 3))
    got = attend_cached(*map(jnp.asarray, (q, k, v, mask)), cache, jnp.int32(0))
    want = attend_row_by_row(q, k, v, mask, cache, 0)
    np.testing.assert_allclose(got, want, atol=3e-6)


def test_what_is_allocated_but_not_filled_is_not_read():
    """Not a number beyond the longest row: reading it, even under a mask, would show."""
    q, (k, v) = normal(0, 2, 1, 4, 8), normal(1, 2, 2, 1, 2, 8)
    tail = stored(2, 1, 2, 2, 512, 8, [100, 128])
    spoiled = Stored(
        tail.k.at[..., 128:].set(jnp.nan), tail.v.at[..., 128:, :].set(jnp.nan), tail.lengths
    )
    mask = jnp.ones((2, 1, 1), bool)
    arrays = (*map(jnp.asarray, (q, k, v)), mask)
    np.testing.assert_array_equal(
        attend_cached(*arrays, Cache(spoiled), jnp.int32(0)),
        attend_cached(*arrays, Cache(tail), jnp.int32(0)),
    )


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_two_partial_softmaxes_merge_into_the_whole(cut):
    scores, values = normal(0, 1, 1, 2, 9) * 30, normal(1, 1, 1, 9, 4)

    def of(keys):
        return partial_softmax(jnp.asarray(scores[..., keys]), jnp.asarray(values[:, :, keys]))

    _, total, mixed = merge(of(slice(None, cut)), of(slice(cut, None)))
    probs = np.exp(np.float64(scores) - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    np.testing.assert_allclose(mixed / total[..., None], probs @ values, rtol=2e-5, atol=1e-6)
