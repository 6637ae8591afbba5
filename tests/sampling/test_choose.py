"""One token from logits, against numpy and against the frequencies it should have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from l2s_jax.sampling.choose import FREE, choose, draw, nucleus, row_keys


def random_logits(seed, rows, words):
    return np.random.default_rng(seed).normal(size=(rows, words)).astype(np.float32) * 2


def softmax(logits):
    p = np.exp(np.float64(logits - logits.max(axis=-1, keepdims=True)))
    return p / p.sum(axis=-1, keepdims=True)


def nucleus_by_definition(p, top_p):
    """Words in falling order of probability until their mass reaches top_p."""
    kept, mass = np.zeros_like(p), 0.0
    for word in sorted(range(len(p)), key=lambda w: (-p[w], w)):
        kept[word] = p[word]
        mass += p[word]
        if mass >= top_p:
            break
    return kept


def keys(rows, seed=0):
    row_id_B = jnp.arange(rows, dtype=jnp.uint32)
    return row_keys(jax.random.key(seed), row_id_B, jnp.zeros(rows, jnp.int32))


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.7, 0.95, 1.0])
def test_nucleus_by_definition(top_p):
    p_BV = softmax(random_logits(0, 6, 13))
    got = nucleus(jnp.log(p_BV), jnp.full(6, top_p))
    want = np.stack([nucleus_by_definition(p, top_p) for p in p_BV])
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_nucleus_is_per_row():
    p_BV = softmax(np.repeat(random_logits(1, 1, 9), 2, axis=0))
    got = nucleus(jnp.log(p_BV), jnp.array([0.2, 1.0]))
    assert np.count_nonzero(got[0]) < np.count_nonzero(got[1]) == 9


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.5, 0.8)])
def test_frequencies(temperature, top_p):
    logits_V, rows = random_logits(2, 1, 8)[0], 20_000
    token_B, _, free_B = choose(
        keys(rows),
        jnp.broadcast_to(jnp.asarray(logits_V), (rows, 8)),
        jnp.full(rows, FREE),
        jnp.full(rows, temperature),
        jnp.full(rows, top_p),
    )
    assert free_B.all()
    expected = nucleus_by_definition(softmax(logits_V / temperature), top_p)
    expected *= rows / expected.sum()
    counts = np.bincount(token_B, minlength=8)
    assert counts[expected == 0].sum() == 0
    held = expected > 0
    assert stats.chisquare(counts[held], expected[held]).pvalue > 1e-3


def test_what_has_no_mass_is_never_drawn():
    """Half of a large vocabulary is outside the nucleus, in places that rounding would reach."""
    rows, words = 300, 4_096
    logits_BV = jnp.where(jnp.arange(words)[None] % 2 == 0, 0.0, -1e9) * jnp.ones((rows, 1))
    token_B = draw(keys(rows), jax.nn.log_softmax(logits_BV), jnp.full(rows, 0.999))
    assert (token_B % 2 == 0).all()
    assert len(np.unique(token_B)) > 200


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.7])
def test_log_prob_is_that_of_the_token_that_entered(temperature):
    logits_BV = random_logits(3, 16, 11)
    forced_B = np.where(np.arange(16) % 2, FREE, np.arange(16) % 11)
    token_B, logp_B, free_B = choose(
        keys(16),
        jnp.asarray(logits_BV),
        jnp.asarray(forced_B),
        jnp.full(16, temperature),
        jnp.full(16, 0.9),  # the log-prob does not know of it
    )
    np.testing.assert_array_equal(free_B, forced_B == FREE)
    np.testing.assert_array_equal(token_B[~free_B], forced_B[~np.asarray(free_B)])
    p_BV = softmax(logits_BV / (temperature or 1.0))
    np.testing.assert_allclose(logp_B, np.log(p_BV[np.arange(16), token_B]), atol=1e-5)
    if temperature == 0:
        np.testing.assert_array_equal(token_B[free_B], logits_BV.argmax(-1)[np.asarray(free_B)])


def test_forced_log_prob_carries_no_choice():
    """A forced token that the policy would hardly have written keeps its own low log-prob."""
    logits_BV = jnp.array([[10.0, -10.0, 0.0]])
    _, logp_B, free_B = choose(keys(1), logits_BV, jnp.array([1]), jnp.ones(1), jnp.ones(1))
    assert not free_B[0] and logp_B[0] < -19


def test_keys_are_named_by_row_and_position():
    def bits(row_ids, positions):
        named = row_keys(
            jax.random.key(0), jnp.asarray(row_ids, jnp.uint32), jnp.asarray(positions)
        )
        return [tuple(row) for row in jax.random.key_data(named).tolist()]

    all_of = bits([7, 7, 9, 2**32 - 1], [0, 1, 0, 0])
    assert len(set(all_of)) == 4
    assert bits([9, 7], [0, 1]) == [all_of[2], all_of[1]]
