import random

import pytest

from l2s_jax.curation.select import select, take_first
from l2s_jax.types import Problem, Trace, Verdict

PROBLEM = Problem(id="q", question="2+2?", answer="4", level=3)
RIGHT = Verdict(equivalent=True, reason="same-text", seconds=0.0)


def wrong(reason="different"):
    return Verdict(equivalent=False, reason=reason, seconds=0.0)


def trace(thought):
    return Trace(problem_id="q", teacher="t", thought=thought, answer="4")


LONG = trace("long")


def test_shortest_right_candidate_and_every_reason():
    candidates = [trace(name) for name in "abcdef"]
    verdicts = [RIGHT, wrong(), RIGHT, wrong("timeout"), wrong("no-answer"), RIGHT]
    item, reasons = select(PROBLEM, LONG, RIGHT, candidates, verdicts, [9, 1, 5, 1, 1, 5])
    assert item.short == "c"  # the first of the two shortest
    assert (item.num_trials, item.num_right, item.level) == (6, 3, 3)
    assert reasons == {"wrong:different": 1, "wrong:timeout": 1, "no-answer": 1, "longer": 2}


@pytest.mark.parametrize("candidates", [0, 2])
def test_without_a_right_candidate_the_item_is_regular(candidates):
    verdicts = [wrong()] * candidates
    item, reasons = select(
        PROBLEM, LONG, RIGHT, [trace("a")] * candidates, verdicts, [1] * candidates
    )
    assert not item.is_easy
    assert reasons == ({"wrong:different": 2} if candidates else {})


@pytest.mark.parametrize(
    ("long", "verdict", "reason"),
    [
        (None, None, "long-missing"),
        (LONG, wrong(), "long-wrong:different"),
        (LONG, wrong("no-answer"), "long-no-answer"),
    ],
)
def test_a_bad_long_trace_drops_the_problem(long, verdict, reason):
    assert select(PROBLEM, long, verdict, [trace("a")], [RIGHT], [1]) == (None, {reason: 1})
    assert take_first(PROBLEM, long, verdict, [trace("a")]) == (None, {reason: 1})


def test_take_first_asks_no_verdict():
    item, reasons = take_first(PROBLEM, LONG, RIGHT, [trace("first"), trace("second")])
    assert (item.short, item.num_trials, item.num_right, reasons) == ("first", 0, 0, {})
    assert not take_first(PROBLEM, LONG, RIGHT, [])[0].is_easy


def test_matches_the_definition_on_random_problems():
    draw = random.Random(0)
    for _ in range(300):
        count = draw.randrange(9)
        candidates = [trace(str(i)) for i in range(count)]
        verdicts = [RIGHT if draw.random() < 0.5 else wrong() for _ in range(count)]
        lengths = [draw.randrange(1, 5) for _ in range(count)]
        best = None
        for i in range(count):
            shorter = best is None or lengths[i] < lengths[best]
            if verdicts[i].equivalent and shorter:
                best = i
        item, reasons = select(PROBLEM, LONG, RIGHT, candidates, verdicts, lengths)
        assert item.short == (None if best is None else str(best))
        assert sum(reasons.values()) == count - (best is not None)  # every trace left out counts
