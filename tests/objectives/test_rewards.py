"""Rewards of correctness and length against their definitions by loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.objectives.rewards import (
    Correct,
    KimiLength,
    LinearLength,
    O1Pruner,
    Overlong,
    SigmoidLength,
    Tldr,
)
from tests.objectives.rollouts import LIMIT, G, by_rows, make_outcomes

TLDR = Tldr(penalties=(0.0, 0.3, 0.6))


def sigmoid(o, group, b):
    if not o.correct[b]:
        return 0.0
    right = [float(o.num_tokens[i]) for i in group if o.correct[i]]
    z = (o.num_tokens[b] - np.mean(right)) / (np.std(right) + 1e-7)
    return 1 - 0.3 / (1 + np.exp(-z))


def kimi(o, group, b):
    lengths = [o.num_tokens[i] for i in group]
    if min(lengths) == max(lengths):
        return float(o.correct[b])
    term = 0.5 - (o.num_tokens[b] - min(lengths)) / (max(lengths) - min(lengths))
    return o.correct[b] + 0.7 * (term if o.correct[b] else min(0.0, term))


def o1_pruner(o, group, b):
    length = np.mean([o.num_tokens[i] for i in group])
    accuracy = np.mean([o.correct[i] for i in group])
    saved = length / max(o.num_tokens[b], 1) - 1
    return np.clip(saved + 5.0 * (o.correct[b] - accuracy), -2, 4)


def overlong(o, group, b):  # DAPO's code: limit 100, buffer 30
    exceed = o.num_tokens[b] - (100 - 30)
    return min(-exceed / 30 * 0.8, 0)


REWARDS = {
    Correct(right=1.0, wrong=-1.0): lambda o, group, b: 1.0 if o.correct[b] else -1.0,
    LinearLength(alpha=0.4): lambda o, group, b: o.correct[b] * (1 - 0.4 * o.num_tokens[b] / LIMIT),
    SigmoidLength(alpha=0.3): sigmoid,
    KimiLength(weight=0.7): kimi,
    O1Pruner(accuracy_weight=5.0): o1_pruner,
    TLDR: lambda o, group, b: (
        o.correct[b] * (1 - (0.0, *TLDR.penalties)[o.level[b]] * o.num_tokens[b] / LIMIT)
    ),
    Overlong(buffer=0.3, factor=0.8): overlong,
}
every_reward = pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: type(reward).__name__)


@every_reward
@pytest.mark.parametrize("seed", range(4))
def test_equals_definition(reward, seed):
    outcomes = make_outcomes(seed)
    want = by_rows(outcomes, lambda group, b: REWARDS[reward](outcomes, group, b))
    np.testing.assert_allclose(reward(outcomes, group_size=G), want, atol=2e-5)


RIGHT = {
    "correct": np.ones(G, bool),
    "stopped": np.ones(G, bool),
    "short": np.zeros(G, bool),
    "num_tokens": np.asarray([10, 20, 30, 40], np.int32),
    "level": np.full(G, 3, np.int32),
    "max_tokens": np.zeros(G, np.int32),
}


@pytest.mark.parametrize(
    "reward",
    [LinearLength(), SigmoidLength(), KimiLength(), O1Pruner(), Tldr()],
    ids=lambda reward: type(reward).__name__,
)
def test_short_is_preferred_among_right_and_right_among_equals(reward):
    right = make_outcomes(0).replace(**RIGHT)
    assert np.all(np.diff(reward(right, group_size=G)) < 0)
    mixed = right.replace(
        correct=np.asarray([True, False, True, False]), num_tokens=np.full(G, 20, np.int32)
    )
    got = np.asarray(reward(mixed, group_size=G))
    assert got[0] == got[2] > got[1] == got[3]


def test_sigmoid_of_equal_and_of_lone_right_answers_is_the_middle():
    outcomes = make_outcomes(0)
    got = np.asarray(SigmoidLength(alpha=0.3)(outcomes, group_size=G))
    right = outcomes.correct[2 * G : 3 * G]
    np.testing.assert_array_equal(got[2 * G : 3 * G][right], np.float32(0.85))
    np.testing.assert_array_equal(got[G : 2 * G], 0)  # no right answer: nothing to measure by
    np.testing.assert_array_equal(got[5 * G : 6 * G], np.array([0.85, 0, 0, 0], np.float32))


def test_kimi_leaves_length_out_until_it_is_warm():
    outcomes = make_outcomes(1)
    reward = KimiLength(weight=0.7, warm_up=0.25)
    early = reward(outcomes.replace(progress=0.24), group_size=G)
    np.testing.assert_array_equal(early, outcomes.correct)
    late = reward(outcomes.replace(progress=0.25), group_size=G)
    np.testing.assert_array_equal(late, KimiLength(weight=0.7)(outcomes, group_size=G))


def test_kimi_pays_no_wrong_answer_for_being_short():
    outcomes = make_outcomes(2)
    assert np.all(np.asarray(KimiLength()(outcomes, group_size=G))[~outcomes.correct] <= 0)


def test_tldr_pays_more_for_brevity_the_more_of_it_was_asked():
    outcomes = make_outcomes(0).replace(**RIGHT)
    spread = []
    for level in range(4):
        asked = outcomes.replace(level=np.full(G, level, np.int32))
        got = np.asarray(Tldr()(asked, group_size=G))
        spread.append(got[0] - got[-1])
    assert spread[0] == spread[1] == 0  # no level, and "long"
    np.testing.assert_allclose(spread[3], 2 * spread[2], rtol=1e-5)


def test_tldr_of_a_level_that_has_no_penalty_is_no_number():
    outcomes = make_outcomes(0).replace(**RIGHT)
    beyond = outcomes.replace(level=np.full(G, 4, np.int32))
    assert np.isnan(Tldr()(beyond, group_size=G)).all()


def test_overlong_touches_the_buffer_only_and_is_the_factor_at_the_limit():
    lengths = np.asarray([0, 80, 90, 100], np.int32)
    outcomes = make_outcomes(0).replace(**{**RIGHT, "num_tokens": lengths})
    got = Overlong()(outcomes, group_size=G)
    np.testing.assert_allclose(got, [0, 0, -0.5, -1], atol=1e-6)


def test_a_row_that_fills_the_batch_stays_finite():
    empty = make_outcomes(0).replace(
        **{**RIGHT, "num_tokens": np.zeros(G, np.int32), "correct": np.zeros(G, bool)}
    )
    for reward in REWARDS:
        assert jnp.isfinite(reward(empty, group_size=G)).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Correct(wrong=1.0), r"Correct.wrong=1.0"),
        (lambda: LinearLength(alpha=1.0), r"LinearLength.alpha=1.0"),
        (lambda: LinearLength(alpha=float("nan")), r"LinearLength.alpha=nan"),
        (lambda: SigmoidLength(alpha=-0.1), r"SigmoidLength.alpha=-0.1"),
        (lambda: KimiLength(weight=0.0), r"KimiLength.weight=0.0"),
        (lambda: KimiLength(warm_up=1.0), r"KimiLength.warm_up=1.0"),
        (lambda: O1Pruner(accuracy_weight=0.0), r"O1Pruner.accuracy_weight=0.0"),
        (lambda: O1Pruner(low=1.0), r"O1Pruner.low=1.0"),
        (lambda: Tldr(penalties=()), r"Tldr.penalties=\(\)"),
        (lambda: Tldr(penalties=(0.6, 0.3)), r"Tldr.penalties=\(0.6, 0.3\)"),
        (lambda: Tldr(penalties=(0.0, 1.0)), r"Tldr.penalties=1.0"),
        (lambda: Overlong(buffer=0.0), r"Overlong.buffer=0.0"),
        (lambda: Overlong(factor=0.0), r"Overlong.factor=0.0"),
    ],
)
def test_impossible_settings_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
