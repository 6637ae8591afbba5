"""From rollouts to one update's arrays: modes, problems, verdicts, columns."""

import collections

import numpy as np
import pytest

from l2s_jax.training.rollouts import (
    build_batch,
    choose_problems,
    group_modes,
    judge,
    prediction_of,
    untaught_prediction,
)
from l2s_jax.types import Problem, Rollout
from l2s_jax.verify.math import Verifier


def made_up(seed, name, prompt, length, **changes):
    rng = np.random.default_rng((seed, length))
    fields = {
        "id": name,
        "sample": 0,
        "prompt_ids": rng.integers(0, 26, prompt).astype(np.int32),
        "token_ids": rng.integers(0, 26, length).astype(np.int32),
        "logp": -rng.exponential(size=length).astype(np.float32),
        "free": rng.random(length) < 0.7,
        "text": None,
        "route": "none",
        "p_easy": None,
        "finish_reason": "stop",
    }
    return Rollout(**fields | changes)


@pytest.mark.parametrize(
    ("source", "group", "counts"),
    [
        ("auto", 3, {"auto": 3}),
        ("forced_pair", 4, {"force-long": 2, "force-short": 2}),
        ("mixed", 8, {"auto": 4, "force-long": 2, "force-short": 2}),
    ],
)
def test_shares_of_modes(source, group, counts):
    modes = group_modes(source, group)
    assert len(modes) == group and collections.Counter(modes) == counts


@pytest.mark.parametrize(("source", "group"), [("forced_pair", 3), ("mixed", 6)])
def test_unequal_shares_are_refused(source, group):
    with pytest.raises(ValueError, match=f"rollouts='{source}'.*num_samples={group}"):
        group_modes(source, group)


PROBLEMS = [Problem(id=str(i), question="q", answer="a") for i in range(23)]


def test_problems_of_a_step_are_a_pure_function():
    steps = [choose_problems(PROBLEMS, 5, seed=1, step=step) for step in range(12)]
    assert steps[7] == choose_problems(PROBLEMS, 5, seed=1, step=7)  # out of order
    assert steps != [choose_problems(PROBLEMS, 5, seed=2, step=step) for step in range(12)]
    for epoch in range(3):  # four steps of five; the three that are left over change
        ids = [p.id for step in steps[4 * epoch : 4 * epoch + 4] for p in step]
        assert len(set(ids)) == len(ids) == 20
    assert len({p.id for step in steps for p in step}) == len(PROBLEMS)


def test_more_problems_than_there_are():
    assert len(choose_problems(PROBLEMS, 23, seed=0, step=5)) == 23
    with pytest.raises(ValueError, match="prompts_per_step=24, but there are 23 problems"):
        choose_problems(PROBLEMS, 24, seed=0, step=0)


def told(batch, rollout, index, at):
    """The target `at` of a completion, and what the model has read when it predicts it."""
    row, column = divmod(int(batch.places[index, at]), batch.tokens.shape[1])
    segment, read = batch.segment_ids[row, column], []
    while column >= 0 and batch.segment_ids[row, column] == segment:
        read.insert(0, (int(batch.tokens[row, column]), int(batch.positions[row, column])))
        column -= 1
    return int(batch.targets.reshape(-1)[batch.places[index, at]]), read


@pytest.mark.parametrize("seed", range(3))
def test_every_token_is_predicted_from_its_own_rollout(seed):
    shapes = [(1, 7), (5, 1), (6, 4), (3, 3), (2, 6)]  # one fills all columns, one stops at once
    rollouts = [made_up(seed, str(i), *shape) for i, shape in enumerate(shapes)]
    advantages = np.asarray([1.0, -1.0, 0.5, 0.0, 2.0])
    batch = build_batch(rollouts, advantages, row_length=13, row_quantum=4, max_tokens=7)
    assert batch.tokens.shape == (4, 13)  # three rows are filled, the fourth makes the quantum
    for index, rollout in enumerate(rollouts):
        ids = [*rollout.prompt_ids, *rollout.token_ids]
        for at, token in enumerate(rollout.token_ids):
            target, read = told(batch, rollout, index, at)
            before = len(rollout.prompt_ids) + at
            assert target == token
            assert read == [(ids[place], place) for place in range(before)]
        length = rollout.num_tokens
        np.testing.assert_array_equal(batch.old_logp[index, :length], rollout.logp)
        np.testing.assert_array_equal(batch.free[index, :length], rollout.free)
        assert not batch.free[index, length:].any()
    assert np.sum(batch.segment_ids > 0) == sum(p + c - 1 for p, c in shapes)
    np.testing.assert_array_equal(batch.advantages, advantages.astype(np.float32))
    assert batch.num_sequences == 5 and batch.num_sequences.dtype == np.float32


@pytest.mark.parametrize(
    ("text", "reason", "right"),
    [
        ("<LONG> 3 +1 4 <ANSWER> 4", "stop", True),
        ("<EASY> <SHORT> 4 <ANSWER> 4", "stop", True),
        ("4", "stop", False),  # no answer trigger
        ("<LONG> 3 +1 4 <ANSWER> 5", "stop", False),  # right in the thought, wrong after it
        ("<LONG> 3 +1 4 <ANSWER>", "stop", False),
        ("<LONG> <ANSWER> 5 <ANSWER> 4", "stop", True),  # the last one speaks
        ("<LONG> <ANSWER> 4 <ANSWER> 5", "stop", False),
        ("<LONG> 3 +1 4 <ANSWER> 4", "length", False),  # truncated
        (r"<LONG> \boxed{4} <ANSWER> so \boxed{5}", "stop", False),
        (r"<LONG> \boxed{5} <ANSWER> so \boxed{4}", "stop", True),
        (None, "stop", False),
    ],
)
def test_who_is_right(text, reason, right):
    rollout = made_up(0, "p", 2, 3, text=text, finish_reason=reason)
    with Verifier(1, 5.0) as verifier:
        assert judge([rollout], {"p": "4"}, verifier) == [right]


def test_predictions():
    routed = made_up(0, "p", 2, 3, text=r"\boxed{1} <ANSWER> \boxed{2}")
    untaught = made_up(0, "p", 2, 3, text=r"thus \boxed{3}")
    assert (prediction_of(routed), prediction_of(untaught)) == ("2", None)
    assert untaught_prediction(untaught) == "3"
    with Verifier(1, 5.0) as verifier:
        assert judge([untaught], {"p": "3"}, verifier, untaught_prediction) == [True]
