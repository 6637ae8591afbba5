"""Advantages against their definitions by loops; groups that hold no signal."""

import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.objectives.advantages import (
    AgainstLong,
    Centred,
    CentredScaled,
    LeaveOneOut,
    Signed,
    Standardised,
    Whitened,
)
from tests.objectives.rollouts import G, by_rows, make_outcomes


def rewards(seed, prompts=8):
    reward = np.random.default_rng(seed).normal(size=prompts * G).astype(np.float32)
    reward[:G] = 0.1  # flat, and no binary fraction
    reward[G : 2 * G] = 1.0
    return reward


def of_group(reward, group):
    return np.asarray([reward[i] for i in group], np.float64)


def centred_scaled(reward, o, group, b):
    means = [np.mean(of_group(reward, range(s, s + G))) for s in range(0, len(reward), G)]
    centred = reward.astype(np.float64) - np.repeat(means, G)
    return centred[b] / (np.std(centred, ddof=1) + 1e-6) + 0.1 * o.correct[b]


def against_long(reward, o, group, b):
    long = [i for i in group if not o.short[i]] or list(group)
    return reward[b] - np.mean(of_group(reward, long))


def standardised(reward, o, group, b):
    values = of_group(reward, group)
    return (reward[b] - values.mean()) / (values.std(ddof=1) + 1e-6)


ADVANTAGES = {
    Standardised(): standardised,
    Standardised(ddof=0, epsilon=1e-4): lambda r, o, group, b: (
        (r[b] - of_group(r, group).mean()) / (of_group(r, group).std() + 1e-4)
    ),
    Centred(): lambda r, o, group, b: r[b] - of_group(r, group).mean(),
    LeaveOneOut(): lambda r, o, group, b: r[b] - np.mean([r[i] for i in group if i != b]),
    Whitened(): lambda r, o, group, b: (r[b] - r.mean()) / (r.std(ddof=1) + 1e-6),
    CentredScaled(): centred_scaled,
    AgainstLong(): against_long,
    Signed(): lambda r, o, group, b: 2 * r[b] - 1,
}
GROUP_RELATIVE = [Standardised(), Centred(), LeaveOneOut(), CentredScaled(bonus=0.0), AgainstLong()]
every_advantage = pytest.mark.parametrize("advantage", ADVANTAGES, ids=repr)
group_relative = pytest.mark.parametrize("advantage", GROUP_RELATIVE, ids=repr)


def of(advantage, reward, outcomes):
    return np.asarray(advantage(jnp.asarray(reward), outcomes, group_size=G))


@every_advantage
@pytest.mark.parametrize("seed", range(4))
def test_equals_definition(advantage, seed):
    reward, o = rewards(seed), make_outcomes(seed)
    want = by_rows(o, lambda group, b: ADVANTAGES[advantage](reward, o, group, b))
    np.testing.assert_allclose(of(advantage, reward, o), want, atol=3e-6)


@group_relative
def test_flat_groups_get_exactly_zero(advantage):
    adv = of(advantage, rewards(1), make_outcomes(1))
    np.testing.assert_array_equal(adv[: 2 * G], 0)
    assert np.all(adv[2 * G : 3 * G] != 0) or isinstance(advantage, AgainstLong)


@every_advantage
def test_order_of_groups_does_not_matter(advantage):
    reward, o = rewards(2), make_outcomes(2)

    def backwards(array):
        return array.reshape(-1, G)[::-1].reshape(-1)

    turned = o.replace(correct=backwards(o.correct), short=backwards(o.short))
    back = of(advantage, backwards(reward), turned)
    np.testing.assert_allclose(backwards(back), of(advantage, reward, o), atol=1e-6)


def test_signed_learns_from_a_group_that_is_always_right_and_standardised_does_not():
    """The trap of v2: questions that are always right are the easy ones, and teach nothing."""
    o = make_outcomes(0)
    reward = np.ones(len(o.correct), np.float32)
    np.testing.assert_array_equal(of(Standardised(), reward, o), 0)
    np.testing.assert_array_equal(of(Signed(), reward, o), 1)


@pytest.mark.parametrize("right", [1, 3])
def test_guard_of_the_deviation_matters_little_and_ddof_much_in_small_groups(right):
    """0/1 rewards of four samples: verl's and TRL's guards agree to 3e-4, ddof moves 15 %."""
    o, reward = make_outcomes(0), np.zeros(8 * G, np.float32)
    reward[: G * 8].reshape(-1, G)[:, :right] = 1
    verl, trl = of(Standardised(), reward, o), of(Standardised(epsilon=1e-4), reward, o)
    np.testing.assert_allclose(verl, trl, rtol=3e-4)
    population = of(Standardised(ddof=0), reward, o)
    np.testing.assert_allclose(population / verl, np.sqrt(G / (G - 1)), rtol=1e-4)


def test_whitened_leaves_equal_rows_at_zero_and_moves_the_zero_of_others():
    o = make_outcomes(0)
    np.testing.assert_array_equal(of(Whitened(), np.full(8 * G, 0.1, np.float32), o), 0)
    better = np.linspace(0.1, 4.0, 8 * G).astype(np.float32)  # all better than the reference
    assert of(Whitened(), better, o)[0] < 0


def test_groups_too_small_are_an_error():
    o = make_outcomes(0)
    with pytest.raises(ValueError, match=r"group_size=1 with Standardised.ddof=1"):
        Standardised()(jnp.ones(4), o, group_size=1)
    with pytest.raises(ValueError, match="group_size=1"):
        LeaveOneOut()(jnp.ones(4), o, group_size=1)
    with pytest.raises(ValueError, match=r"Standardised.ddof=2"):
        Standardised(ddof=2)
