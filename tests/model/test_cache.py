import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.cache import BLOCK, append, empty, extend, rewind, room

LAYERS, ROWS, TAIL, KV, SIZE = 2, 6, 3, 1, 2


def nothing():
    return empty((LAYERS, ROWS, KV, TAIL, SIZE), jnp.float32)


def token(value):
    rows = value * 10.0 + jnp.arange(ROWS, dtype=jnp.float32)
    return jnp.broadcast_to(rows[None, :, None, None, None], (LAYERS, ROWS, 1, KV, SIZE))


def test_rows_fill_at_their_own_pace():
    tail = nothing()
    on = [[1, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 1], [1, 1, 0, 0, 1, 1]]
    held = [[] for _ in range(ROWS)]
    for step, active in enumerate(on, start=1):
        tail = append(tail, token(step), -token(step), jnp.array(active, bool))
        for row in np.flatnonzero(active):
            held[row].append(step * 10.0 + row)
    assert tail.lengths.tolist() == [len(row) for row in held]
    for row, values in enumerate(held):
        for layer in range(LAYERS):
            assert tail.k[layer, row, 0, 0, : len(values)].tolist() == values
            assert tail.v[layer, row, 0, : len(values), 1].tolist() == [-v for v in values]


def test_a_full_inactive_row_keeps_what_it_holds():
    tail = nothing()
    for step in range(1, TAIL + 1):
        tail = append(tail, token(step), token(step), jnp.ones(ROWS, bool))
    again = append(tail, token(9), token(9), jnp.zeros(ROWS, bool))
    np.testing.assert_array_equal(again.k, tail.k)
    assert again.lengths.tolist() == [TAIL] * ROWS


def test_rewound_tokens_are_overwritten():
    tail = append(nothing(), token(1), token(1), jnp.ones(ROWS, bool))
    tail = rewind(tail, jnp.array([1, 0, 0, 0, 0, 0]))
    assert tail.lengths.tolist() == [0, 1, 1, 1, 1, 1]
    tail = append(tail, token(2), token(2), jnp.ones(ROWS, bool))
    assert tail.k[0, 0, 0, 0, 0] == 20.0
    assert tail.k[0, 1, 0, 0, :2].tolist() == [11.0, 21.0]


def test_a_chunk_is_written_for_every_row():
    two = jnp.concatenate([token(1), token(2)], axis=2)
    tail = extend(nothing(), two, -two, jnp.int32(1))
    assert tail.k[1, 3, 0, 0, :].tolist() == [0.0, 13.0, 23.0]
    assert tail.v[1, 3, 0, :, 0].tolist() == [0.0, -13.0, -23.0]
    assert tail.lengths.tolist() == [0] * ROWS


@pytest.mark.parametrize(
    ("num_tokens", "places"),
    [(1, 16), (17, 32), (127, 128), (128, 128), (129, 256), (300, 3 * BLOCK)],
)
def test_room_is_whole_blocks(num_tokens, places):
    assert room(num_tokens) == places
