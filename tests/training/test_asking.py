"""What prompts ask for: drawn by seed, step and problem; the words; what is refused."""

import collections

import numpy as np
import pytest

from l2s_jax.data.arithmetic import make_tokenizer
from l2s_jax.objectives.budgets import Curriculum
from l2s_jax.training.asking import (
    AskBudget,
    AskCurriculum,
    Asked,
    AskLevels,
    AskNothing,
    ask_step,
    make_requests,
)
from l2s_jax.types import Problem

PROBLEMS = [
    Problem(id=str(i), question=f"{i} {{budget}} {{question}}", answer="0") for i in range(300)
]


def test_what_is_asked_is_a_function_of_seed_step_and_problem():
    asking = AskBudget(low=100, high=4000)
    one = ask_step(asking, PROBLEMS, seed=1, step=2)
    assert ask_step(asking, PROBLEMS[7:9], seed=1, step=2) == one[7:9]  # whoever else is asked
    for changed in ({"seed": 2, "step": 2}, {"seed": 1, "step": 3}):
        other = ask_step(asking, PROBLEMS, **changed)
        same = [a.max_tokens == b.max_tokens for a, b in zip(one, other, strict=True)]
        assert np.mean(same) < 0.05


def test_levels_are_drawn_evenly_and_worded():
    asking = AskLevels(words=("{question} long", "{question} mid", "short: {question}"))
    asked = ask_step(asking, PROBLEMS, seed=0, step=0)
    counts = collections.Counter(one.level for one in asked)
    assert set(counts) == {1, 2, 3} and min(counts.values()) > 70
    for one, problem in zip(asked, PROBLEMS, strict=True):
        said = asking.words[one.level - 1].replace("{question}", problem.question)
        assert one == Asked(problem=problem, question=said, level=one.level)
        assert one.question in asking.questions(problem, 1)


@pytest.mark.parametrize("cut", [False, True])
def test_budgets_lie_within_their_bounds_and_are_told(cut):
    asking = AskBudget(low=8, high=1200, cut=cut)
    asked = ask_step(asking, PROBLEMS, seed=0, step=0)
    budgets = [one.max_tokens for one in asked]
    assert 8 <= min(budgets) < 40 and 1160 < max(budgets) <= 1200
    for one, problem in zip(asked, PROBLEMS, strict=True):
        # What a question holds in braces is no place for a number.
        assert one.question == f"{problem.question}\n\nThink for {one.max_tokens} tokens."
        assert one.limit == (one.max_tokens if cut else None)
    longest = max(map(len, asking.questions(PROBLEMS[0], 1)))
    assert longest == len(asking.questions(PROBLEMS[0], 1)[-1])
    numbers = [q.split(" for ")[1].split()[0] for q in asking.questions(PROBLEMS[0], 1)]
    assert numbers == ["8", "9", "99", "999", "1200"]


def test_a_curriculum_tells_all_the_same_and_shrinks():
    asking = AskCurriculum(curriculum=Curriculum(first=100, decay=0.5, every=10), cut=True)
    told = [{a.max_tokens for a in ask_step(asking, PROBLEMS, seed=0, step=s)} for s in (0, 9, 10)]
    assert told == [{100}, {100}, {50}]
    assert len(asking.questions(PROBLEMS[0], 30)) == 3


def test_nothing_is_asked_by_default():
    (one,) = ask_step(AskNothing(), PROBLEMS[:1], seed=0, step=0)
    assert one == Asked(problem=PROBLEMS[0], question=PROBLEMS[0].question)


def test_requests_read_the_words_and_hold_the_bound():
    tokenizer = make_tokenizer()
    problem = Problem(id="p", question="3 +1 *7", answer="8")
    asking = AskBudget(low=7, high=7, words="{question} in {budget}", cut=True)
    (request,) = make_requests(ask_step(asking, [problem], seed=0, step=0), tokenizer, 4)
    assert request.id == "p" and list(request.prompt_ids) == tokenizer.ask("3 +1 *7 in 7")
    assert [knobs.max_new_tokens for knobs in request.knobs] == [7] * 4
    (free,) = make_requests(ask_step(AskNothing(), [problem], seed=0, step=0), tokenizer, 2)
    assert [knobs.max_new_tokens for knobs in free.knobs] == [None] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AskLevels(words=("brief",)), r"words='brief': \{question\}"),
        (lambda: AskLevels(words=()), "every level needs words"),
        (lambda: AskLevels(words=("{question}",) * 2), "every level needs words"),
        (lambda: AskBudget(words="{question}"), r"\{budget\} must stand"),
        (lambda: AskCurriculum(words="{budget}"), r"\{question\} must stand"),
        (lambda: AskBudget(low=9, high=8), "low=9, AskBudget.high=8"),
        (lambda: AskBudget(low=0), "low=0"),
    ],
)
def test_faulty_configs(make, message):
    with pytest.raises(ValueError, match=message):
        make()
