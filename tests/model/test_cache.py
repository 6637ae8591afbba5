import jax.numpy as jnp
import numpy as np

from l2s_jax.model.cache import append, begin, rewind

LAYERS, PROMPTS, GROUP, PROMPT, TAIL, KV, SIZE = 2, 2, 3, 4, 3, 1, 2


def empty():
    prompt = jnp.zeros((LAYERS, PROMPTS, PROMPT, KV, SIZE))
    return begin(prompt, prompt, jnp.ones((PROMPTS, PROMPT), bool), group=GROUP, tail=TAIL)


def token(value):
    rows = value * 10.0 + jnp.arange(PROMPTS * GROUP, dtype=jnp.float32)
    return jnp.broadcast_to(rows[None, :, None, None, None], (LAYERS, PROMPTS * GROUP, 1, KV, SIZE))


def test_rows_fill_at_their_own_pace():
    cache = empty()
    on = [[1, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 1], [1, 1, 0, 0, 1, 1], [1, 1, 0, 1, 1, 1]]
    held = [[] for _ in range(6)]
    for step, active in enumerate(on[:3], start=1):
        cache = append(cache, token(step), -token(step), jnp.array(active, bool))
        for row in np.flatnonzero(active):
            held[row].append(step * 10.0 + row)
    assert cache.lengths.tolist() == [len(row) for row in held]
    for row, values in enumerate(held):
        assert cache.tail_mask[row].tolist() == [i < len(values) for i in range(TAIL)]
        for layer in range(LAYERS):
            assert cache.tail_k[layer, row, : len(values), 0, 0].tolist() == values
            assert cache.tail_v[layer, row, : len(values), 0, 1].tolist() == [-v for v in values]


def test_a_full_inactive_row_keeps_what_it_holds():
    cache = empty()
    for step in range(1, TAIL + 1):
        cache = append(cache, token(step), token(step), jnp.ones(6, bool))
    again = append(cache, token(9), token(9), jnp.zeros(6, bool))
    np.testing.assert_array_equal(again.tail_k, cache.tail_k)
    assert again.lengths.tolist() == [TAIL] * 6


def test_rewound_tokens_are_hidden_and_overwritten():
    cache = append(empty(), token(1), token(1), jnp.ones(6, bool))
    cache = rewind(cache, jnp.array([1, 0, 0, 0, 0, 0]))
    assert cache.tail_mask[0].tolist() == [False] * TAIL
    cache = append(cache, token(2), token(2), jnp.ones(6, bool))
    assert cache.tail_k[0, 0, 0, 0, 0] == 20.0
    assert cache.tail_k[0, 1, :2, 0, 0].tolist() == [11.0, 21.0]
