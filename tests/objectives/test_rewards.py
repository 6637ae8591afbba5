"""Rewards against their definitions by loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.objectives.rewards import correctness, length_scaled, sigmoid_length, weighted_sum

G = 4


def rollouts(seed, prompts=6):
    rng = np.random.default_rng(seed)
    correct = rng.uniform(size=prompts * G) < 0.5
    tokens = rng.integers(1, 100, prompts * G).astype(np.int32)
    correct[:G], correct[G : 2 * G], correct[2 * G : 3 * G] = True, False, [1, 0, 0, 0]
    tokens[:G] = 41  # 41 * (1 / 41) is not 1 in float32
    return correct, tokens


def sigmoid_by_definition(correct, tokens, alpha):
    reward = np.zeros(len(tokens))
    for start in range(0, len(tokens), G):
        rows = range(start, start + G)
        right = [float(tokens[b]) for b in rows if correct[b]]
        for b in rows:
            if correct[b]:
                z = (tokens[b] - np.mean(right)) / (np.std(right) + 1e-7)
                reward[b] = 1 - alpha / (1 + np.exp(-z))
    return reward


@pytest.mark.parametrize("seed", range(4))
def test_sigmoid_length_equals_definition(seed):
    correct, tokens = rollouts(seed)
    got = sigmoid_length(jnp.asarray(correct), jnp.asarray(tokens), group_size=G, alpha=0.3)
    np.testing.assert_allclose(got, sigmoid_by_definition(correct, tokens, 0.3), atol=1e-5)


def test_sigmoid_length_of_equal_and_of_lone_right_answers_is_the_middle():
    correct, tokens = rollouts(0)
    got = sigmoid_length(jnp.asarray(correct), jnp.asarray(tokens), group_size=G, alpha=0.3)
    np.testing.assert_array_equal(got[:G], np.float32(0.85))
    np.testing.assert_array_equal(got[G : 2 * G], 0)  # no right answer: nothing to measure by
    np.testing.assert_array_equal(got[2 * G : 3 * G], np.array([0.85, 0, 0, 0], np.float32))


def test_length_scaled_equals_definition_and_orders_right_answers_by_length():
    correct, tokens = rollouts(1)
    got = length_scaled(jnp.asarray(correct), jnp.asarray(tokens), alpha=0.4, max_tokens=100)
    want = [(1 - 0.4 * n / 100) if c else 0.0 for c, n in zip(correct, tokens, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert np.min(got[correct]) > 0  # the longest right answer beats every wrong one


def test_correctness_is_zero_and_one():
    np.testing.assert_array_equal(correctness(jnp.array([True, False])), [1.0, 0.0])


def test_weighted_sum_reports_every_term():
    terms = {"correctness": jnp.array([1.0, 0.0]), "length": jnp.array([0.5, 0.25])}
    reward, metrics = weighted_sum(terms, {"correctness": 1.0, "length": -2.0})
    np.testing.assert_allclose(reward, [0.0, -0.5])
    want = {"reward/correctness": 0.5, "reward/length": 0.375, "reward": -0.25}
    assert metrics.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value)


def test_weighted_sum_wants_one_weight_per_term():
    with pytest.raises(ValueError, match=r"\['length'\].*\['lenght'\]"):
        weighted_sum({"length": jnp.zeros(2)}, {"lenght": 1.0})
    with pytest.raises(ValueError, match="at least one term"):
        weighted_sum({}, {})


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan")])
def test_alpha_that_turns_the_order_around_is_an_error(alpha):
    arrays = jnp.ones(G, bool), jnp.ones(G, jnp.int32)
    with pytest.raises(ValueError, match="length_scaled: alpha="):
        length_scaled(*arrays, alpha=alpha, max_tokens=10)
    with pytest.raises(ValueError, match="sigmoid_length: alpha="):
        sigmoid_length(*arrays, group_size=G, alpha=alpha)


def test_limit_below_one_is_an_error():
    with pytest.raises(ValueError, match="max_tokens=0"):
        length_scaled(jnp.ones(G, bool), jnp.ones(G, jnp.int32), alpha=0.1, max_tokens=0)
