"""Rewards of the route against their definitions by loops."""

import numpy as np
import pytest

from l2s_jax.objectives.routes import RareRoute, RouteReward, ShortBonus
from tests.objectives.rollouts import G, by_rows, make_outcomes


def rare(o, group, b, progress):  # ARM's code: rollouts / rollouts of this format, decayed to 1
    most = G / sum(o.short[i] == o.short[b] for i in group)
    return o.correct[b] * (1 + 0.5 * (most - 1) * (1 + np.cos(np.pi * progress)))


def thinkless(o, b):
    return (1.0 if o.short[b] else 0.5) if o.correct[b] else -1.0


@pytest.mark.parametrize("seed", range(4))
def test_equals_definition(seed):
    o = make_outcomes(seed)
    got = ShortBonus(bonus=0.07)(o, group_size=G)
    np.testing.assert_allclose(got, by_rows(o, lambda g, b: o.correct[b] + 0.07 * o.short[b]))
    got = RouteReward()(o, group_size=G)
    np.testing.assert_allclose(got, by_rows(o, lambda g, b: thinkless(o, b)))
    for progress in (0.0, 0.3, 1.0):
        got = RareRoute()(o.replace(progress=progress), group_size=G)
        want = by_rows(o, lambda g, b, p=progress: rare(o, g, b, p))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_the_rare_route_is_boosted_less_and_less():
    o = make_outcomes(0, prompts=8).replace(
        correct=np.ones(8 * G, bool), short=np.tile([True, False, False, False], 8)
    )
    boosts = [np.asarray(RareRoute()(o.replace(progress=p), group_size=G)) for p in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose([boost[0] for boost in boosts], [4.0, 2.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(boosts[0][1], 4 / 3, rtol=1e-6)


def test_a_group_of_one_route_is_not_boosted():
    o = make_outcomes(0)
    for rows in (slice(3 * G, 4 * G), slice(4 * G, 5 * G)):  # all short, all long
        np.testing.assert_array_equal(RareRoute()(o, group_size=G)[rows], o.correct[rows])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ShortBonus(bonus=1.0), r"ShortBonus.bonus=1.0"),
        (lambda: ShortBonus(bonus=-0.1), r"ShortBonus.bonus=-0.1"),
        (lambda: RouteReward(wrong=0.5), r"RouteReward.wrong=0.5"),
        (lambda: RouteReward(long_right=2.0), r"long_right=2.0"),
    ],
)
def test_impossible_settings_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
