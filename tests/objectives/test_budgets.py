"""Rewards of a told budget against their definitions by loops."""

import numpy as np
import pytest

from l2s_jax.objectives.budgets import Curriculum, L1Exact, L1Max, Triangle, Truncation
from tests.objectives.rollouts import G, by_rows, make_outcomes


def exact(o, b):
    told, tokens = o.max_tokens[b], o.num_tokens[b]
    return o.correct[b] - (0.01 * abs(int(told) - int(tokens)) if told else 0.0)


def at_most(o, b):
    told, tokens = int(o.max_tokens[b]), int(o.num_tokens[b])
    share = np.clip(0.01 * (told - tokens) + 0.5, 0, 1) if told else 1.0
    return o.correct[b] * share


def truncated(o, b):
    told = o.max_tokens[b]
    in_time = o.stopped[b] and (told == 0 or o.num_tokens[b] <= told)
    return o.correct[b] * (1.0 if in_time else 0.1)


def triangle(o, b):
    told, tokens, term = int(o.max_tokens[b]), int(o.num_tokens[b]), 0.0
    if told and tokens <= told:
        term = tokens / told
    elif told and tokens <= 2 * told:
        term = 1 - (tokens - told) / told
    return 0.3 * o.correct[b] + 0.6 * term


REWARDS = {
    L1Exact(alpha=0.01): exact,
    L1Max(alpha=0.01): at_most,
    Truncation(): truncated,
    Triangle(): triangle,
}
every_reward = pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: type(reward).__name__)


@every_reward
@pytest.mark.parametrize("seed", range(4))
def test_equals_definition(reward, seed):
    outcomes = make_outcomes(seed)
    assert {0, 20, 41, 90} >= set(outcomes.max_tokens)
    want = by_rows(outcomes, lambda group, b: REWARDS[reward](outcomes, b))
    np.testing.assert_allclose(reward(outcomes, group_size=G), want, atol=1e-5)


def told(tokens, budget, correct=True):
    rows = len(tokens)
    return make_outcomes(0).replace(
        correct=np.full(rows, correct),
        num_tokens=np.asarray(tokens, np.int32),
        stopped=np.ones(rows, bool),
        short=np.zeros(rows, bool),
        level=np.zeros(rows, np.int32),
        max_tokens=np.full(rows, budget, np.int32),
    )


def test_a_right_answer_slightly_beyond_its_budget_beats_a_wrong_one_under_l1_max():
    late = np.asarray(L1Max()(told([1000, 1100], 1000), group_size=2))
    wrong = np.asarray(L1Max()(told([10, 1000], 1000, correct=False), group_size=2))
    assert late[0] == 0.5 and wrong.max() < late[1] < 0.5


def test_l1_exact_falls_on_both_sides_of_the_budget():
    """Not as in its published code, where the sigmoid form grows with the deviation."""
    got = np.asarray(L1Exact()(told([500, 900, 1000, 1100, 1500], 1000), group_size=5))
    assert got[2] == 1.0 and np.all(np.diff(got[:3]) > 0) and np.all(np.diff(got[2:]) < 0)


def test_no_wrong_answer_earns_under_truncation_and_none_within_time_loses():
    outcomes = told([40, 50, 51, 99], 50)
    np.testing.assert_allclose(Truncation()(outcomes, group_size=4), [1, 1, 0.1, 0.1])
    np.testing.assert_allclose(Truncation(factor=0.0)(outcomes, group_size=4), [1, 1, 0, 0])
    cut_off = outcomes.replace(correct=np.zeros(4, bool), stopped=np.zeros(4, bool))
    np.testing.assert_array_equal(Truncation()(cut_off, group_size=4), 0)


def test_curriculum_shrinks_in_steps_and_ends_at_one():
    curriculum = Curriculum(first=256, decay=0.7, every=100)
    assert [curriculum.at(step) for step in (0, 99, 100, 299, 300)] == [256, 256, 179, 125, 88]
    assert curriculum.at(10_000) == 1
    assert Curriculum(first=7, decay=1.0).at(10**6) == 7


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: L1Exact(alpha=0.0), r"L1Exact.alpha=0.0"),
        (lambda: L1Max(alpha=-1.0), r"L1Max.alpha=-1.0"),
        (lambda: Truncation(factor=1.0), r"Truncation.factor=1.0"),
        (lambda: Triangle(accuracy_weight=0.0), r"Triangle.accuracy_weight=0.0"),
        (lambda: Triangle(length_weight=0.0), r"length_weight=0.0"),
        (lambda: Curriculum(first=0), r"Curriculum.first=0"),
        (lambda: Curriculum(decay=0.0), r"Curriculum.decay=0.0"),
        (lambda: Curriculum(every=0), r"every=0"),
    ],
)
def test_impossible_settings_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
