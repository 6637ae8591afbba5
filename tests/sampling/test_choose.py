"""One token from logits, against numpy and against the frequencies it should have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from l2s_jax.sampling.choose import (
    FREE,
    Draw,
    best,
    choose,
    distribution,
    invert,
    row_keys,
    truncate,
)


def random_logits(seed, rows, words):
    return np.random.default_rng(seed).normal(size=(rows, words)).astype(np.float32) * 2


def softmax(logits):
    p = np.exp(np.float64(logits - logits.max(axis=-1, keepdims=True)))
    return p / p.sum(axis=-1, keepdims=True)


def kept_by_definition(p, top_k=0, top_p=1.0, min_p=0.0):
    """True for the words that are left; a word that ties with the last one kept is kept too."""
    order = sorted(range(len(p)), key=lambda w: -p[w])
    limit = p[order[min(top_k, len(p)) - 1]] if top_k else 0.0
    kept = [w for w in order if p[w] >= limit]
    mass, total, enough = 0.0, sum(p[w] for w in kept), []
    for word in kept:
        if mass >= top_p * total and p[word] < p[enough[-1]]:
            break
        enough.append(word)
        mass += p[word]
    chosen = enough if top_p < 1 else kept
    return np.isin(np.arange(len(p)), [w for w in chosen if p[w] >= min_p * max(p)])


def asked(rows, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    return Draw(
        temperature=jnp.full(rows, temperature, jnp.float32),
        top_k=jnp.full(rows, top_k, jnp.int32),
        top_p=jnp.full(rows, top_p, jnp.float32),
        min_p=jnp.full(rows, min_p, jnp.float32),
    )


def keys(rows, seed=0):
    row_id_B = jnp.arange(rows, dtype=jnp.uint32)
    return row_keys(jax.random.key(seed), row_id_B, jnp.zeros(rows, jnp.int32))


CUTS = [
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 99},
    *({"top_p": p} for p in (1e-6, 0.3, 0.7, 0.95)),
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 6, "top_p": 0.8, "min_p": 0.05},
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("words", [13, 600])
def test_what_is_kept_by_definition(cut, words):
    p_BV = softmax(random_logits(0, 6, words))
    share_BV = jnp.asarray(p_BV / p_BV.max(axis=-1, keepdims=True), jnp.float32)
    got = truncate(share_BV, asked(6, **cut))
    want = np.stack([kept_by_definition(p, **cut) for p in p_BV])
    np.testing.assert_array_equal(np.asarray(got) > 0, want)
    np.testing.assert_array_equal(np.asarray(got)[want], np.asarray(share_BV)[want])


def test_words_that_tie_stand_or_fall_together():
    share_BV = jnp.array([[1.0, 0.5, 0.5, 0.5, 0.25]])
    assert (truncate(share_BV, asked(1, top_k=2))[0] > 0).tolist() == [1, 1, 1, 1, 0]
    assert (truncate(share_BV, asked(1, top_p=0.5))[0] > 0).tolist() == [1, 1, 1, 1, 0]


def test_each_row_is_cut_by_its_own_knobs():
    p_BV = np.repeat(random_logits(1, 1, 9), 3, axis=0)
    share_BV = jnp.exp(jnp.asarray(p_BV - p_BV.max()))
    draw = Draw(jnp.ones(3), jnp.array([0, 2, 0]), jnp.array([0.2, 1.0, 1.0]), jnp.zeros(3))
    kept = np.count_nonzero(np.asarray(truncate(share_BV, draw)), axis=-1)
    assert kept[0] < 9 and kept[1] == 2 and kept[2] == 9


FREQUENCIES = [
    (1.0, {}),
    (0.6, {}),
    (1.5, {"top_p": 0.8}),
    (1.0, {"top_k": 3}),
    (1.0, {"min_p": 0.2}),
]


@pytest.mark.parametrize(("temperature", "cut"), FREQUENCIES, ids=str)
@pytest.mark.parametrize("words", [8, 700])
def test_frequencies(temperature, cut, words):
    logits_V, rows = random_logits(2, 1, words)[0], 20_000
    chosen = choose(
        keys(rows),
        jnp.broadcast_to(jnp.asarray(logits_V), (rows, words)),
        jnp.full(rows, FREE),
        asked(rows, temperature, **cut),
    )
    assert chosen.free.all()
    p_V = softmax(logits_V / temperature)
    expected = np.where(kept_by_definition(p_V, **cut), p_V, 0.0)
    counts = np.bincount(chosen.token, minlength=words)
    assert counts[expected == 0].sum() == 0
    np.testing.assert_allclose(
        chosen.kept_logp, np.log((expected / expected.sum())[chosen.token]), atol=2e-5
    )
    # Rare words together, so that every cell expects enough for the test.
    common = np.argsort(-expected)[:8]
    rest = counts.sum() - counts[common].sum(), expected.sum() - expected[common].sum()
    seen = np.append(counts[common], rest[0])
    wanted = np.append(expected[common], rest[1]) * rows / expected.sum()
    held = wanted > 1e-6
    assert stats.chisquare(seen[held], wanted[held]).pvalue > 1e-3


def test_what_has_no_mass_is_never_drawn():
    """Half of a large vocabulary is impossible, in places that rounding would reach."""
    rows, words = 300, 4_096
    logits_BV = jnp.where(jnp.arange(words)[None] % 2 == 0, 0.0, -1e9) * jnp.ones((rows, 1))
    token_B, _ = invert(jnp.exp(logits_BV), jax.vmap(jax.random.uniform)(keys(rows)))
    assert (token_B % 2 == 0).all()
    assert len(np.unique(token_B)) > 200


@pytest.mark.parametrize("uniform", [0.0, 0.3, 0.5, 0.999, 1 - 2**-24])
def test_the_inverse_of_the_cumulative_sum(uniform):
    share_BV = np.abs(random_logits(5, 4, 1_000)).astype(np.float32) * (np.arange(1_000) % 3 > 0)
    got, total = invert(jnp.asarray(share_BV), jnp.full(4, uniform))
    np.testing.assert_allclose(total, share_BV.sum(-1), rtol=1e-5)
    for share_V, token in zip(share_BV.astype(np.float64), np.asarray(got), strict=True):
        until, reach = np.cumsum(share_V), uniform * share_V.sum()
        assert share_V[token] > 0
        slack = 1e-5 * until[-1]  # float32 sums
        assert until[token] >= reach - slack and until[token] - share_V[token] <= reach + slack


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.7])
def test_log_prob_is_that_of_the_token_that_entered(temperature):
    logits_BV = random_logits(3, 16, 11)
    forced_B = np.where(np.arange(16) % 2, FREE, np.arange(16) % 11)
    # The policy's log-prob does not know of top-p.
    chosen = choose(
        keys(16), jnp.asarray(logits_BV), jnp.asarray(forced_B), asked(16, temperature, top_p=0.9)
    )
    free_B = np.asarray(chosen.free)
    np.testing.assert_array_equal(free_B, forced_B == FREE)
    np.testing.assert_array_equal(chosen.token[~free_B], forced_B[~free_B])
    p_BV = softmax(logits_BV / (temperature or 1.0))
    rows = np.arange(16)
    np.testing.assert_allclose(chosen.logp, np.log(p_BV[rows, chosen.token]), atol=1e-5)
    if temperature == 0:
        np.testing.assert_array_equal(chosen.token[free_B], logits_BV.argmax(-1)[free_B])
    kept_BV = np.stack([kept_by_definition(p, top_p=0.9) for p in p_BV])
    with np.errstate(divide="ignore"):
        want = np.log(np.where(kept_BV, p_BV, 0) / (p_BV * kept_BV).sum(-1, keepdims=True))
    np.testing.assert_allclose(chosen.kept_logp, want[rows, chosen.token], atol=1e-5)


def test_forced_log_prob_carries_no_choice():
    """A forced token that the policy would hardly have written keeps its own low log-prob."""
    chosen = choose(keys(1), jnp.array([[10.0, -10.0, 0.0]]), jnp.array([1]), asked(1))
    assert not chosen.free[0] and chosen.logp[0] < -19


def test_logits_that_are_no_numbers_are_marked():
    logits_BV = jnp.array([[0.0, 1.0], [jnp.nan, 1.0], [jnp.inf, 1.0], [-jnp.inf, 1.0]])
    chosen = choose(keys(4), logits_BV, jnp.full(4, FREE), asked(4))
    assert chosen.finite.tolist() == [True, False, False, True]


def test_entropy_by_definition():
    logits_BV = random_logits(7, 5, 40)
    logits_BV[0, :7] = -np.inf
    dist = distribution(jnp.asarray(logits_BV), asked(5, 0.7))
    for got, logits_V in zip(dist.entropy(), logits_BV, strict=True):
        p = softmax(logits_V / 0.7)
        np.testing.assert_allclose(got, -sum(x * np.log(x) for x in p if x > 0), rtol=1e-5)


def test_best_is_the_first_of_the_largest():
    scores_BV = np.round(random_logits(6, 50, 40))  # many ties
    np.testing.assert_array_equal(best(jnp.asarray(scores_BV)), scores_BV.argmax(-1))


def test_keys_are_named_by_row_and_position():
    def bits(row_ids, positions):
        named = row_keys(
            jax.random.key(0), jnp.asarray(row_ids, jnp.uint32), jnp.asarray(positions)
        )
        return [tuple(row) for row in jax.random.key_data(named).tolist()]

    all_of = bits([7, 7, 9, 2**32 - 1], [0, 1, 0, 0])
    assert len(set(all_of)) == 4
    assert bits([9, 7], [0, 1]) == [all_of[2], all_of[1]]
