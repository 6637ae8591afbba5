"""From rollouts to one update's arrays: modes, problems, verdicts, columns."""

import collections

import numpy as np
import pytest

from l2s_jax.model.seen import MAX_BRANCHES, Seen, visible
from l2s_jax.training.rollouts import (
    build_batch,
    choose_problems,
    group_modes,
    judge,
    prediction_of,
    share_out,
    untaught_prediction,
)
from l2s_jax.types import Problem
from l2s_jax.verify.math import Verifier
from tests.training.tiny import made_up


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


def told(batch, index, at, first_row=0):
    """The target `at` of a completion, and what the model has read when it predicts it."""
    row, column = divmod(int(batch.places[index, at]), batch.tokens.shape[1])
    row += first_row
    ids = Seen(batch.segment_ids[row : row + 1], batch.branches[row : row + 1])
    read = np.flatnonzero(visible(ids)[0, column])
    return int(batch.targets[row, column]), [
        (int(batch.tokens[row, s]), int(batch.positions[row, s])) for s in read
    ]


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
            target, read = told(batch, index, at)
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
    assert batch.num_tokens == sum(r.free.sum() for r in rollouts) == batch.wanted.sum()
    assert batch.max_tokens == 7 and not batch.marker.any()


def test_a_marker_is_wanted_whoever_chose_it():
    rollouts = [made_up(0, str(i), 2, 4, free=np.array([False, False, True, True])) for i in "ab"]
    batch = build_batch(
        rollouts, np.zeros(2), row_length=5, row_quantum=1, max_tokens=6, markers=[1, None]
    )
    np.testing.assert_array_equal(batch.marker, [[0, 1, 0, 0, 0, 0], [0] * 6])
    np.testing.assert_array_equal(batch.wanted, [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1]])
    assert batch.num_tokens == 4  # the forced one is read, and is no choice of the policy


def test_a_step_without_a_choice_has_a_denominator():
    [forced] = [made_up(0, "a", 2, 3, free=np.zeros(3, bool))]
    batch = build_batch([forced], np.zeros(1), row_length=8, row_quantum=1, max_tokens=3)
    assert batch.num_tokens == 1 and not batch.wanted.any()


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_each_rollout_lies_whole_in_one_micro_batch(num_parts):
    shapes = [(1, 7), (5, 1), (6, 4), (3, 3), (2, 6), (1, 1), (4, 7), (2, 2)]
    rollouts = [made_up(3, str(i), *shape) for i, shape in enumerate(shapes)]
    batch = build_batch(
        rollouts, np.arange(8.0), row_length=13, row_quantum=2, max_tokens=7,
        markers=[0] * 8, num_microbatches=num_parts,
    )  # fmt: skip
    rows_of_part = len(batch.tokens) // num_parts
    assert rows_of_part * num_parts == len(batch.tokens) and rows_of_part % 2 == 0
    order = batch.advantages.astype(int)  # who stands in which row
    assert sorted(order) == list(range(8)) and (num_parts > 1 or list(order) == sorted(order))
    tokens = np.zeros(num_parts)
    for index, number in enumerate(order):
        rollout, part = rollouts[number], index * num_parts // 8
        ids = [*rollout.prompt_ids, *rollout.token_ids]
        tokens[part] += len(ids) - 1
        for at, token in enumerate(rollout.token_ids):
            target, read = told(batch, index, at, first_row=part * rows_of_part)
            assert target == token
            before = len(rollout.prompt_ids) + at
            assert read == [(ids[place], place) for place in range(before)]
        np.testing.assert_array_equal(batch.free[index, : rollout.num_tokens], rollout.free)
        np.testing.assert_array_equal(batch.old_logp[index, : rollout.num_tokens], rollout.logp)
        assert batch.marker[index, 0]
    assert tokens.max() - tokens.min() <= max(p + c - 1 for p, c in shapes)
    assert batch.num_sequences == 8
    assert batch.num_tokens == sum(r.free.sum() for r in rollouts)


def sampled(prompts, lengths, seed=0):
    """As many rollouts of each prompt length, side by side, as there are completion lengths."""
    rng = np.random.default_rng(seed)
    return [
        made_up(seed, str(n), prompt, length, sample=s, prompt_ids=ids)
        for n, prompt in enumerate(prompts)
        for ids in [rng.integers(0, 26, prompt).astype(np.int32)]
        for s, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_a_prompt_is_read_once_for_all_that_share_a_row(num_parts):
    """Groups stay whole where equal parts allow it, in halves where two parts share three."""
    rollouts = sampled([1, 9, 4], [3, 8, 1, 5])
    batch = build_batch(
        rollouts, np.arange(12.0), row_length=26, row_quantum=1, max_tokens=8,
        num_microbatches=num_parts,
    )  # fmt: skip
    rows_of_part = len(batch.tokens) // num_parts
    for index, number in enumerate(batch.advantages.astype(int)):
        rollout, first = rollouts[number], index * num_parts // 12 * rows_of_part
        ids = [*rollout.prompt_ids, *rollout.token_ids]
        for at, token in enumerate(rollout.token_ids):
            before = len(rollout.prompt_ids) + at
            want = (token, [(ids[place], place) for place in range(before)])
            assert told(batch, index, at, first) == want
    trunks, completions = 0 + 8 + 3, 3 * (3 + 8 + 1 + 5)
    most = 2 * trunks if num_parts == 2 else trunks
    assert trunks <= np.sum(batch.segment_ids > 0) - completions <= most


def test_a_prompt_has_no_more_branches_than_the_kernels_know():
    rollouts = sampled([3], [2] * (MAX_BRANCHES + 2))
    batch = build_batch(
        rollouts, np.zeros(len(rollouts)), row_length=99, row_quantum=1, max_tokens=2
    )
    assert batch.branches.max() == MAX_BRANCHES and batch.segment_ids.max() == 2


def test_micro_batches_are_equal_parts():
    assert share_out([5, 1, 4, 2], 2) == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="num_microbatches=3, but a step has 4 rollouts"):
        share_out([5, 1, 4, 2], 3)


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
