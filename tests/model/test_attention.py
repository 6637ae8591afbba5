import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.attention import attend_cached, merge, partial_softmax
from l2s_jax.model.cache import Cache, Pages, Shared, Stored, Tail, chunk_sizes, segment_sizes

attend = jax.jit(attend_cached, static_argnums=5)


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


def stored(seed, layers, rows, kv_heads, capacity, size, lengths):
    k, v = normal(seed, 2, layers, rows, kv_heads, capacity, size)
    cuts = np.cumsum(segment_sizes(capacity))[:-1]

    def layers_of(arrays, axis):
        return tuple(tuple(map(jnp.asarray, np.split(a, cuts, axis))) for a in arrays)

    k, v = layers_of(k.swapaxes(3, 4), 3), layers_of(v, 2)
    return Stored(k, v, jnp.asarray(lengths, jnp.int32))


def tail_of(seed, layers, kv_heads, page, each, size, place, lengths):
    """A tail with other rows' keys, and free pages, between those of each row.

    Every page is owned by anybody in any order; rows hold them whole but for the first.
    """
    rng, rows = np.random.default_rng(seed), len(lengths)
    open_pages = stored(seed, layers, rows, kv_heads, page, size, lengths)
    chunks = chunk_sizes(rows, each)
    pool = [
        stored(seed + 9 + n, layers, c, kv_heads, page, size, [0] * c) for n, c in enumerate(chunks)
    ]
    owner, start = np.full(sum(chunks), rows), np.zeros(sum(chunks), int)
    free = list(rng.permutation(sum(chunks)))
    for row, length in enumerate(lengths):
        before = max(length - place, 0)
        while before > 0:
            number = free.pop()
            owner[number], start[number] = row, max(page - before, 0)
            before -= page
    cuts = np.cumsum(chunks)[:-1]

    def cut(values):
        return tuple(jnp.asarray(v, jnp.int32) for v in np.split(values, cuts))

    return Tail(
        k=open_pages.k,
        v=open_pages.v,
        place=jnp.asarray([place], jnp.int32),
        lengths=open_pages.lengths,
        pages=Pages(
            k=tuple(tuple(part.k[layer][0] for part in pool) for layer in range(layers)),
            v=tuple(tuple(part.v[layer][0] for part in pool) for layer in range(layers)),
            owner=cut(owner),
            start=cut(start),
        ),
    )


def behind(part, layer, row, own):
    """Keys and values of one row, and `own` behind them; softmax knows no order of pages."""
    first, last = (
        (int(part.start[row]), int(part.place[0]))
        if isinstance(part, Tail)
        else (
            0,
            int(part.lengths[row]),
        )
    )
    found = [own]
    k = np.asarray(np.concatenate(part.k[layer], axis=3)[row, :, :, first:last])
    v = np.asarray(np.concatenate(part.v[layer], axis=2)[row, :, first:last])
    found.append((k.transpose(2, 0, 1), v.swapaxes(0, 1)))
    for k, v, owner, start in part.chunks(layer) if isinstance(part, Tail) else ():
        for page in np.flatnonzero(np.asarray(owner) == row):
            here = slice(int(start[page]), None)
            k_SKE = np.asarray(k)[page, :, :, here].transpose(2, 0, 1)
            found.append((k_SKE, np.asarray(v)[page, :, here].swapaxes(0, 1)))
    return tuple(np.concatenate(parts) for parts in zip(*reversed(found), strict=True))


def owned(chunks):
    return tuple(jnp.asarray(owner, jnp.int32) for owner in chunks)


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


@pytest.mark.parametrize("capacity", [16, 192])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("num_shared", [1, 2])
def test_own_tail_and_beginnings_make_one_softmax(capacity, queries, num_shared):
    """Rows sit anywhere behind their prompts, filled to any length, over several blocks."""
    rows, heads, kv_heads, size, layers = 4, 4, 2, 8, 2
    q = normal(0, rows, queries, heads, size)
    k, v = normal(1, 2, rows, queries, kv_heads, size)
    rng = np.random.default_rng(2)
    page = min(capacity, 64)
    lengths = [0, capacity, 1, capacity // 2 + 1]
    tail = tail_of(3, layers, kv_heads, page, capacity // page, size, page - 3, lengths)
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
        got = attend(*map(jnp.asarray, (q, k, v, mask)), cache, layer)
        want = attend_row_by_row(q, k, v, mask, cache, layer)
        np.testing.assert_allclose(got, want, atol=3e-6)


def test_a_row_without_prompts_sees_its_tail():
    q, (k, v) = normal(0, 2, 3, 4, 8), normal(1, 2, 2, 3, 2, 8)
    cache = Cache(stored(2, 1, 2, 2, 16, 8, [7, 0]))
    mask = np.broadcast_to(np.tril(np.ones((3, 3), bool)), (2, 3, 3))
    got = attend(*map(jnp.asarray, (q, k, v, mask)), cache, 0)
    want = attend_row_by_row(q, k, v, mask, cache, 0)
    np.testing.assert_allclose(got, want, atol=3e-6)


def test_what_is_allocated_but_not_filled_is_not_read():
    """Not a number in a chunk without owners: reading it, even under a mask, would show."""
    q, (k, v) = normal(0, 2, 1, 4, 8), normal(1, 2, 2, 1, 2, 8)
    tail = tail_of(2, 1, 2, 16, 4, 8, 5, [5, 3])
    tail = dataclasses.replace(
        tail, pages=dataclasses.replace(tail.pages, owner=owned([[0, 2], [2, 2], [2, 1, 2, 2]]))
    )
    (k_chunks,), (v_chunks,) = tail.pages.k, tail.pages.v
    bad = [jnp.full_like(x[1], jnp.nan) for x in (k_chunks, v_chunks)]
    spoiled = dataclasses.replace(
        tail,
        pages=dataclasses.replace(
            tail.pages,
            k=((k_chunks[0], bad[0], k_chunks[2]),),
            v=((v_chunks[0], bad[1], v_chunks[2]),),
        ),
    )
    arrays = (*map(jnp.asarray, (q, k, v)), jnp.ones((2, 1, 1), bool))
    np.testing.assert_array_equal(
        attend(*arrays, Cache(spoiled), 0),
        attend(*arrays, Cache(tail), 0),
    )


def test_segments_that_no_prompt_has_reached_are_not_read():
    q, (k, v) = normal(0, 2, 1, 4, 8), normal(1, 2, 2, 1, 2, 8)
    prompts = stored(2, 1, 2, 2, 512, 8, [100, 128])

    def beyond_the_first(segments):
        return tuple((one, *(jnp.full_like(a, jnp.nan) for a in rest)) for one, *rest in segments)

    spoiled = Stored(beyond_the_first(prompts.k), beyond_the_first(prompts.v), prompts.lengths)
    assert len(prompts.k[0]) > 1
    arrays = (*map(jnp.asarray, (q, k, v)), jnp.ones((2, 1, 1), bool))
    np.testing.assert_array_equal(
        attend(*arrays, Cache(spoiled), 0),
        attend(*arrays, Cache(prompts), 0),
    )


def test_a_row_that_is_no_number_stays_alone():
    """Its pages lie beside those of others, and are added up in one product."""
    q, (k, v) = normal(0, 2, 1, 4, 8), normal(1, 2, 2, 1, 2, 8)
    cache = Cache(tail_of(2, 1, 2, 16, 4, 8, 5, [60, 50]))
    rest = (*map(jnp.asarray, (k, v)), jnp.ones((2, 1, 1), bool))
    whole = attend(jnp.asarray(q), *rest, cache, 0)
    q[1, 0, 2] = np.nan
    got = attend(jnp.asarray(q), *rest, cache, 0)
    np.testing.assert_array_equal(got[0], whole[0])
    assert np.isnan(got[1, 0, 2]).all() and np.isfinite(got[1, 0, :2]).all()


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_two_partial_softmaxes_merge_into_the_whole(cut):
    scores, values = normal(0, 1, 1, 2, 9) * 30, normal(1, 1, 1, 9, 4)

    def of(keys):
        return partial_softmax(jnp.asarray(scores[..., keys]), jnp.asarray(values[:, :, keys]))

    _, total, mixed = merge(of(slice(None, cut)), of(slice(cut, None)))
    probs = np.exp(np.float64(scores) - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    np.testing.assert_allclose(mixed / total[..., None], probs @ values, rtol=2e-5, atol=1e-6)
