"""Advantages against their definitions by loops; groups that hold no signal."""

import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.objectives.advantages import (
    group_centred,
    group_standardised,
    leave_one_out,
    length_harmonising,
    whiten,
)

G = 7


def rewards(seed, prompts=5):
    reward = np.random.default_rng(seed).normal(size=prompts * G).astype(np.float32)
    reward[:G] = 0.1  # whose float32 mean of seven is not 0.1
    reward[G : 2 * G] = 1.0
    return reward


def by_definition(reward, score):
    adv = np.zeros(len(reward))
    for start in range(0, len(reward), G):
        group = reward[start : start + G].astype(np.float64)
        for g in range(G):
            adv[start + g] = score(group, g)
    return adv


ESTIMATORS = {
    group_standardised: lambda r, g: (r[g] - r.mean()) / (r.std(ddof=1) + 1e-6),
    group_centred: lambda r, g: r[g] - r.mean(),
    leave_one_out: lambda r, g: r[g] - np.delete(r, g).mean(),
}
every_estimator = pytest.mark.parametrize("estimate", ESTIMATORS, ids=lambda fn: fn.__name__)


@every_estimator
@pytest.mark.parametrize("seed", range(4))
def test_equals_definition(estimate, seed):
    reward = rewards(seed)
    adv, _ = estimate(jnp.asarray(reward), group_size=G)
    np.testing.assert_allclose(adv, by_definition(reward, ESTIMATORS[estimate]), atol=2e-6)


def test_population_deviation_on_demand():
    reward = rewards(0)
    adv, _ = group_standardised(jnp.asarray(reward), group_size=G, ddof=0, epsilon=1e-4)
    want = by_definition(reward, lambda r, g: (r[g] - r.mean()) / (r.std() + 1e-4))
    np.testing.assert_allclose(adv, want, atol=2e-6)


@every_estimator
def test_flat_groups_get_exactly_zero_and_are_counted(estimate):
    adv, metrics = estimate(jnp.asarray(rewards(1)), group_size=G)
    np.testing.assert_array_equal(adv[: 2 * G], 0)
    assert np.all(np.asarray(adv[2 * G :]) != 0)
    assert metrics["flat_groups"] == 2


@every_estimator
def test_order_of_groups_does_not_matter(estimate):
    reward = rewards(2)
    adv, _ = estimate(jnp.asarray(reward), group_size=G)
    back, _ = estimate(jnp.asarray(reward.reshape(-1, G)[::-1].reshape(-1)), group_size=G)
    np.testing.assert_allclose(back.reshape(-1, G)[::-1].reshape(-1), adv, atol=1e-6)


def test_groups_too_small_are_an_error():
    with pytest.raises(ValueError, match="group_size=1 with ddof=1"):
        group_standardised(jnp.ones(4), group_size=1)
    with pytest.raises(ValueError, match="group_size=1"):
        leave_one_out(jnp.ones(4), group_size=1)


def rollouts(seed, prompts=5):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 200, prompts * G).astype(np.int32)
    correct = rng.uniform(size=prompts * G) < 0.5
    return correct, tokens, rng.uniform(20, 100, prompts), rng.uniform(size=prompts)


def harmonise(correct, tokens, ref_tokens, ref_accuracy, **more):
    return length_harmonising(
        jnp.asarray(correct),
        jnp.asarray(tokens),
        ref_tokens_N=jnp.asarray(ref_tokens, jnp.float32),
        ref_accuracy_N=jnp.asarray(ref_accuracy, jnp.float32),
        group_size=G,
        **more,
    )


@pytest.mark.parametrize("seed", range(4))
def test_length_harmonising_equals_definition(seed):
    correct, tokens, ref_tokens, ref_accuracy = rollouts(seed)
    adv, metrics = harmonise(correct, tokens, ref_tokens, ref_accuracy, accuracy_weight=5.0)
    raw = np.array(
        [
            ref_tokens[b // G] / tokens[b] - 1 + 5.0 * (correct[b] - ref_accuracy[b // G])
            for b in range(len(tokens))
        ]
    )
    np.testing.assert_allclose(adv, np.clip(raw, -2, 4), rtol=1e-4, atol=1e-5)
    clipped = np.mean((raw < -2) | (raw > 4))
    np.testing.assert_allclose(metrics["adv/clip_fraction"], clipped, rtol=1e-6)


def test_length_harmonising_prefers_short_among_right_and_right_among_equals():
    correct, tokens = np.ones(G, bool), np.arange(10, 10 + G).astype(np.int32)
    adv, metrics = harmonise(correct, tokens, [13.0], [1.0])  # always right: signal all the same
    assert np.all(np.diff(adv) < 0)
    assert metrics["flat_groups"] == 0
    correct[1::2], tokens[:] = False, 13
    adv, _ = harmonise(correct, tokens, [13.0], [0.5])
    np.testing.assert_allclose(adv, np.where(correct, 1.0, -1.0), atol=1e-6)


def test_row_that_fills_the_batch_stays_finite():
    adv, _ = harmonise(np.zeros(G, bool), np.zeros(G, np.int32), [50.0], [0.0])
    assert np.isfinite(adv).all()


def test_whiten_equals_definition_and_leaves_equal_rows_at_zero():
    adv = rewards(3)
    want = (adv - adv.mean()) / (adv.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(whiten(jnp.asarray(adv)), want, atol=1e-5)
    np.testing.assert_array_equal(whiten(jnp.full(7, 0.1)), 0)
    np.testing.assert_array_equal(whiten(jnp.full(1, 0.1)), 0)
