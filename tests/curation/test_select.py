import dataclasses
import random

import pytest

from l2s_jax.curation.select import keep_regular, select, take_first
from l2s_jax.types import Item, Problem, Trace, Verdict

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
    choice = select(PROBLEM, LONG, RIGHT, candidates, verdicts, [9, 1, 5, 1, 1, 5])
    item = choice.item
    assert item.short == "c"  # the first of the two shortest
    assert (item.num_trials, item.num_right, item.level) == (6, 3, 3)
    fates = ("longer", "wrong:different", "kept", "wrong:timeout", "no-answer", "longer")
    assert choice.fates == fates
    assert choice.reasons == {
        "wrong:different": 1,
        "wrong:timeout": 1,
        "no-answer": 1,
        "longer": 2,
    }


@pytest.mark.parametrize("candidates", [0, 2])
def test_without_a_right_candidate_the_item_is_regular(candidates):
    verdicts = [wrong()] * candidates
    choice = select(PROBLEM, LONG, RIGHT, [trace("a")] * candidates, verdicts, [1] * candidates)
    assert not choice.item.is_easy
    assert choice.reasons == ({"wrong:different": 2} if candidates else {})


@pytest.mark.parametrize(
    ("long", "verdict", "reason"),
    [
        (None, None, "long-missing"),
        (LONG, wrong(), "long-wrong:different"),
        (LONG, wrong("no-answer"), "long-no-answer"),
        (LONG, wrong("cut"), "long-cut"),
    ],
)
def test_a_bad_long_trace_drops_the_problem(long, verdict, reason):
    for choice in (
        select(PROBLEM, long, verdict, [trace("a")], [RIGHT], [1]),
        take_first(PROBLEM, long, verdict, [trace("a")]),
    ):
        assert (choice.item, choice.dropped, choice.fates) == (None, reason, ("no-item",))
        assert choice.reasons == {reason: 1, "no-item": 1}


def test_a_candidate_that_was_cut_is_a_trial_and_no_short_path():
    cut = dataclasses.replace(trace("a"), is_cut=True)
    choice = select(PROBLEM, LONG, RIGHT, [cut, trace("b")], [wrong("cut"), RIGHT], [1, 2])
    assert (choice.fates, choice.item.short) == (("cut", "kept"), "b")
    assert (choice.item.num_trials, choice.item.num_right) == (2, 1)
    assert take_first(PROBLEM, LONG, RIGHT, [cut, trace("b")]).fates == ("cut", "kept")
    alone = take_first(PROBLEM, LONG, RIGHT, [cut])
    assert (alone.fates, alone.item.is_easy) == (("cut",), False)


def test_take_first_asks_no_verdict():
    choice = take_first(PROBLEM, LONG, RIGHT, [trace("first")])
    item = choice.item
    assert (item.short, item.num_trials, item.num_right, choice.reasons) == ("first", 0, 0, {})
    assert not take_first(PROBLEM, LONG, RIGHT, []).item.is_easy


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
        choice = select(PROBLEM, LONG, RIGHT, candidates, verdicts, lengths)
        assert choice.item.short == (None if best is None else str(best))
        assert len(choice.fates) == count  # every trace has one, and all but the kept a reason
        assert [i for i, fate in enumerate(choice.fates) if fate == "kept"] == (
            [] if best is None else [best]
        )
        assert sum(choice.reasons.values()) == count - (best is not None)


def easy(number, level=None, num_right=4):
    fixed = {"question": "?", "reference": "4", "long": "l", "long_answer": "4", "num_trials": 4}
    short = {"short": "s", "short_answer": "4"} if num_right else {}
    return Item(
        id=f"{level}-{num_right}-{number}", level=level, num_right=num_right, **fixed, **short
    )


@pytest.mark.parametrize("share", [0.0, 0.05, 0.29, 0.5])
def test_every_difficulty_keeps_its_share_of_regular_items(share):
    items = [easy(i, level) for i in range(100) for level in (1, 2)]
    items += [easy(i, 2, num_right=0) for i in range(20)]  # 20 of 120 are regular already
    items += [easy(i, None, num_right) for i in range(40) for num_right in (1, 4)]
    kept = keep_regular(items, share)
    assert [item.id for item in kept] == [item.id for item in items]
    regular = {}
    for item in kept:
        key = item.level if item.level is not None else ("rate", item.num_right)
        regular.setdefault(key, []).append(not item.is_easy)
        assert item.is_easy or item.short_answer is None
    for key, flags in regular.items():
        already = 20 if key == 2 else 0
        assert sum(flags) == max(already, int(share * len(flags) + 1e-9)), key


def test_which_items_stay_regular_depends_on_their_ids_alone():
    items = [easy(i, 1) for i in range(100)]
    regular = {item.id for item in keep_regular(items, 0.1) if not item.is_easy}
    assert len(regular) == 10
    assert {i.id for i in keep_regular(items[::-1], 0.1) if not i.is_easy} == regular
    more = {item.id for item in keep_regular(items, 0.2) if not item.is_easy}
    assert regular < more
    assert keep_regular(items[:19], 0.05) == items[:19]  # too few for one of them
