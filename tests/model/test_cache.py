import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.cache import (
    BLOCK,
    LONGEST,
    PART,
    append,
    chunk_sizes,
    close,
    emptied,
    empty,
    empty_tail,
    extend,
    most_pages,
    on_rows,
    room,
    segment_sizes,
)

LAYERS, ROWS, KV, SIZE, PAGE, LIMIT = 2, 6, 1, 2, 4, 15
MOST = most_pages(PAGE, LIMIT)
ALL = jnp.ones(ROWS, bool)


def nothing(page=PAGE, pages=MOST):
    return empty_tail((LAYERS, ROWS, KV, page, SIZE), pages, jnp.float32)


def both(value_B):
    """A token's keys in every layer, and its values: the keys negated."""
    value_B = jnp.broadcast_to(jnp.asarray(value_B, jnp.float32), (ROWS,))
    k = jnp.broadcast_to(value_B[:, None, None, None], (ROWS, 1, KV, SIZE))
    return [(k, -k)] * LAYERS


def held(tail, layer, row):
    """What attention finds on a row, page by page."""
    start, place = int(tail.start[row]), int(tail.place[0])
    found = [np.concatenate(tail.k[layer], axis=3)[row, 0, 0, start:place]]
    other = [np.concatenate(tail.v[layer], axis=2)[row, 0, start:place, 1]]
    for k, v, owner, start in tail.chunks(layer):
        for page in np.flatnonzero(np.asarray(owner) == row):
            found.append(np.asarray(k)[page, 0, 0, int(start[page]) :])
            other.append(np.asarray(v)[page, 0, int(start[page]) :, 1])
    np.testing.assert_array_equal(np.concatenate(found), -np.concatenate(other))
    return sorted(np.concatenate(found).tolist())


def num_owned(tail):
    rows = tail.lengths.shape[0]
    return sum(int((np.asarray(owner) < rows).sum()) for owner in tail.pages.owner)


step = jax.jit(lambda tail, new, active_B: append(close(tail), new, active_B, ALL))


@pytest.mark.parametrize("seed", range(3))
def test_every_row_holds_what_it_wrote_and_nothing_else(seed):
    """Rows begin, write and end at any time; at the worst all of them reach the limit."""
    rng, tail, written = np.random.default_rng(seed), nothing(), [[] for _ in range(ROWS)]
    active_B, most = np.zeros(ROWS, bool), 0
    for number in range(1, 90):
        ends_B = active_B & (
            (rng.random(ROWS) < 0.04) | (np.array(list(map(len, written))) >= LIMIT)
        )
        begins_B = ~active_B & (rng.random(ROWS) < 0.5)
        tail = emptied(tail, jnp.asarray(ends_B))
        active_B = active_B & ~ends_B | begins_B
        value_B = np.where(active_B, number + 100 * np.arange(ROWS), -1)
        tail = step(tail, both(value_B), jnp.asarray(active_B))
        for row in range(ROWS):
            if ends_B[row]:
                written[row] = []
            if active_B[row]:
                written[row].append(float(value_B[row]))
        for row in range(ROWS):
            assert held(tail, number % LAYERS, row) == written[row]
        assert tail.lengths.tolist() == [len(tokens) for tokens in written]
        most = max(most, num_owned(tail))
    pages = sum(owner.shape[0] for owner in tail.pages.owner)
    assert pages // 2 < most <= pages == ROWS * MOST


def test_a_pool_that_is_full_to_the_last_page():
    """All rows began on the last place of a page, and write their last token."""
    tail = nothing()
    for number in range(PAGE - 1 + LIMIT):
        tail = step(tail, both(number), ALL & (number >= PAGE - 1))
    assert num_owned(tail) == ROWS * MOST
    assert held(tail, 1, 3) == list(range(PAGE - 1, PAGE - 1 + LIMIT))


def test_the_lowest_free_pages_are_lent():
    tail = nothing()
    for number in range(PAGE + 1):
        tail = step(tail, both(number), ALL)
    assert [owner.tolist() for owner in tail.pages.owner][:2] == [[0, 1, 2, 3, 4, 5], [6] * 6]
    tail = emptied(tail, jnp.asarray([False, True, False, True, False, False]))
    for number in range(PAGE):
        tail = step(tail, both(number), ALL.at[1].set(False).at[3].set(False))
    assert [owner.tolist() for owner in tail.pages.owner][:2] == [
        [0, 0, 2, 2, 4, 5],
        [4, 5, 6, 6, 6, 6],
    ]


@pytest.mark.parametrize("kept", [[4, 1, 3], [5]])
def test_fewer_rows_keep_their_pages(kept):
    tail, values = nothing(), 100 * np.arange(ROWS)
    gone = np.isin(np.arange(ROWS), kept, invert=True)
    for number in range(LIMIT):
        tail = step(tail, both(values + number), ALL)
    fewer = on_rows(emptied(tail, jnp.asarray(gone)), jnp.asarray(kept))
    for row, before in enumerate(kept):
        for layer in range(LAYERS):
            assert held(fewer, layer, row) == held(tail, layer, before)
    want = empty_tail((LAYERS, len(kept), KV, PAGE, SIZE), MOST, jnp.float32)
    assert jax.tree.map(jnp.shape, fewer) == jax.tree.map(jnp.shape, want)


def test_what_is_no_number_is_not_kept():
    bad, nan = ALL.at[2].set(False), [(jnp.full_like(k, jnp.nan), v) for k, v in both(2)]
    tail = append(nothing(), both(1), ALL, ALL)
    tail = append(append(tail, nan, ALL, ~ALL), both(3), ALL, bad)
    assert tail.lengths.tolist() == [3] * ROWS
    assert tail.k[1][0][1, 0, 0].tolist() == [1.0, 0.0, 3.0, 0.0]
    assert tail.k[1][0][2, 0, 0].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_open_pages_of_several_segments_are_written_as_one_array_would_be():
    tail, tokens = nothing(page=300, pages=0), np.arange(1.0, 301)
    tail = jax.lax.fori_loop(0, 300, lambda n, tail: append(tail, both(n + 1.0), ALL, ALL), tail)
    assert [part.shape[3] for part in tail.k[0]] == segment_sizes(300, PART)
    np.testing.assert_array_equal(held(tail, 1, 4), tokens)


@pytest.mark.parametrize(("page", "tokens", "pages"), [(4, 1, 0), (4, 2, 1), (4, 5, 1), (4, 6, 2)])
def test_the_most_pages_that_a_row_can_have(page, tokens, pages):
    assert most_pages(page, tokens) == pages


@pytest.mark.parametrize("each", [0, 1, 2, 3, 8, 127])
def test_chunks_hold_all_pages(each):
    sizes = chunk_sizes(5, each)
    assert sum(sizes) == 5 * each and len(sizes) <= 1 + np.ceil(np.log2(max(each, 1)))


@pytest.mark.parametrize(
    ("num_tokens", "places"),
    [(1, 16), (17, 32), (127, 128), (128, 128), (129, 256), (300, 3 * BLOCK)],
)
def test_room_is_whole_blocks(num_tokens, places):
    assert room(num_tokens) == places


@pytest.mark.parametrize("capacity", [16, 128, 384, 2048, 8192])
def test_segments_fill_the_room_and_are_read_for_little_in_vain(capacity):
    sizes = segment_sizes(capacity)
    assert sum(sizes) == capacity
    for place, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        assert size <= max(BLOCK, min(place / 2, LONGEST))


def test_a_chunk_of_a_prompt_is_written_as_one_array_would_be():
    """Over three segments."""
    kv = np.random.default_rng(0).normal(size=(2, 3, 200, KV, SIZE)).astype(np.float32)
    stored = jax.jit(extend)(
        empty((1, 3, KV, 384, SIZE), jnp.float32),
        [(jnp.asarray(kv[0]), jnp.asarray(kv[1]))],
        jnp.int32(100),
    )
    want = np.zeros((2, 3, 384, KV, SIZE), np.float32)
    want[:, :, 100:300] = kv
    np.testing.assert_array_equal(np.concatenate(stored.k[0], 3), want[0].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(np.concatenate(stored.v[0], 2), want[1].swapaxes(1, 2))
    assert stored.lengths.tolist() == [0] * 3
