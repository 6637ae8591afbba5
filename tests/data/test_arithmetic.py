"""The arithmetic world against Python's own arithmetic, and its teachers against their word."""

import collections

import numpy as np
import pytest

from l2s_jax.data.arithmetic import (
    LEVELS,
    NUM_JUMPS,
    VOCAB_SIZE,
    ArithmeticDocuments,
    ArithmeticProblems,
    ArithmeticTeachers,
    jump_success,
    jumps,
    make_tokenizer,
    results,
    split_of,
)
from l2s_jax.tokens.tokenizer import SHIPPED, load_tokenizer


def value_of(question, steps=None):
    """The question read as one Python expression, from the inside out."""
    start, *operations = question.split()
    expression = start
    for operation in operations[:steps]:
        expression = f"(({expression}){operation})"
    return eval(expression) % 10


@pytest.fixture(scope="module")
def problems():
    return ArithmeticProblems(num_per_level=60).load()


@pytest.fixture(scope="module")
def teachers():
    return ArithmeticTeachers(problems=ArithmeticProblems(num_per_level=60))


def test_answers_by_another_evaluator(problems):
    for problem in problems:
        assert problem.answer == str(value_of(problem.question))
        assert problem.level == len(problem.question.split()) - 1
        want = [value_of(problem.question, n) for n in range(problem.level + 1)]
        assert results(problem.question) == want


def test_problems_are_distinct_and_as_many_as_asked(problems):
    assert collections.Counter(p.level for p in problems) == dict.fromkeys(LEVELS, 60)
    assert len({p.question for p in problems}) == len({p.id for p in problems}) == len(problems)
    assert ArithmeticProblems(num_per_level=60).load() == problems
    assert ArithmeticProblems(num_per_level=60, seed=1).load() != problems


def test_train_and_test_never_meet():
    train = {p.question for p in ArithmeticProblems(num_per_level=1500).load()}
    test = {p.question for p in ArithmeticProblems(split="test", num_per_level=250).load()}
    assert not train & test
    assert {split_of(q) for q in train} == {"train"} and {split_of(q) for q in test} == {"test"}


def test_the_base_model_has_read_no_test_question():
    tokenizer = make_tokenizer()
    for example in ArithmeticDocuments(num_documents=300).examples(tokenizer):
        question = tokenizer.decode(example.tokens.tolist()).split(" = ")[0]
        assert split_of(question) == "train"


@pytest.mark.parametrize(("split", "number"), [("train", 1_700), ("test", 400)])
def test_more_problems_than_there_are_is_refused(split, number):
    with pytest.raises(ValueError, match=rf"num_per_level={number}: level 3 has room"):
        ArithmeticProblems(split=split, num_per_level=number)
    with pytest.raises(ValueError, match="num_per_level=0"):
        ArithmeticProblems(num_per_level=0)


@pytest.mark.parametrize("levels", [(), (0,), (3, 10)])
def test_levels_that_no_teacher_can_answer_are_refused(levels):
    with pytest.raises(ValueError, match=r"ArithmeticProblems\.levels=.*1 to 9"):
        ArithmeticProblems(num_per_level=1, levels=levels)


def test_the_long_teacher_shows_every_step_and_checks(teachers):
    for problem in teachers.load():
        trace = teachers.long(problem)
        steps, *checks = trace.thought.split(" check ")
        values = [value_of(problem.question, n) for n in range(problem.level + 1)]
        start, *operations = problem.question.split()
        pairs = zip(operations, map(str, values[1:]), strict=True)
        want = [start, *(word for pair in pairs for word in pair)]
        assert steps.split() == want
        assert all(check.split() == [str(v) for v in values[1:]] for check in checks)
        assert trace.answer == problem.answer


def test_jumps_cover_every_operation():
    for level in LEVELS:
        widths = jumps(level)
        assert (len(widths), sum(widths)) == (NUM_JUMPS, level)
        assert widths == sorted(widths, reverse=True) and widths[0] - widths[-1] <= 1


def written_results(thought):
    """The first three numbers; the talkative variant says the last of them once more."""
    words = [int(word) for word in thought.split()]
    assert words[NUM_JUMPS:] in ([], words[NUM_JUMPS - 1 : NUM_JUMPS])
    return words[:NUM_JUMPS]


def right_path(problem):
    places = np.cumsum(jumps(problem.level))
    return [value_of(problem.question, int(place)) for place in places]


def test_a_right_answer_vouches_for_its_path(teachers):
    outcomes = collections.Counter()
    for problem in teachers.load():
        for trace in teachers.short_candidates(problem, 8):
            right = trace.answer == problem.answer
            assert (written_results(trace.thought) == right_path(problem)) == right
            assert trace.answer == trace.thought.split()[-1]
            outcomes[right] += 1
    assert min(outcomes.values()) > 100


def test_the_terse_teacher_is_as_good_as_it_says():
    """At every level, right as often as the product of its jumps' probabilities."""
    problems = ArithmeticProblems(num_per_level=250)
    teachers, trials = ArithmeticTeachers(problems=problems), 8
    right, stated, variance = (collections.defaultdict(float) for _ in range(3))
    for problem in problems.load():
        operations, at, p = problem.question.split()[1:], 0, 1.0
        for width in jumps(problem.level):
            p *= jump_success(operations[at : at + width])
            at += width
        traces = teachers.short_candidates(problem, trials)
        right[problem.level] += sum(t.answer == problem.answer for t in traces)
        stated[problem.level] += trials * p
        variance[problem.level] += trials * p * (1 - p)
    for level in LEVELS:
        assert abs(right[level] - stated[level]) < 4 * np.sqrt(variance[level]), level
    shares = [stated[level] for level in LEVELS]
    assert shares == sorted(shares, reverse=True)  # the harder, the seldomer


def test_wide_and_multiplying_jumps_are_harder():
    for width in (1, 2, 3):
        by_hardness = [
            jump_success(["*3"] * hard + ["+1"] * (width - hard)) for hard in range(width + 1)
        ]
        assert by_hardness == sorted(by_hardness, reverse=True)
        assert all(0 < p < 1 for p in by_hardness)


def test_draws_are_named_and_not_in_line(teachers):
    problems = teachers.load()
    for problem in problems[::40]:
        eight = teachers.short_candidates(problem, 8)
        assert teachers.short_candidates(problem, 3) == eight[:3]
        alone = ArithmeticTeachers(problems=ArithmeticProblems(num_per_level=1, levels=(3,)))
        assert alone.short_candidates(problem, 8) == eight
        assert alone.long(problem) == teachers.long(problem)
    many = [t.thought for p in problems[:50] for t in teachers.short_candidates(p, 8)]
    other = ArithmeticTeachers(problems=teachers.problems, seed=1)
    assert many != [t.thought for p in problems[:50] for t in other.short_candidates(p, 8)]


def test_documents_are_right_in_either_style():
    tokenizer, documents = make_tokenizer(), ArithmeticDocuments(num_documents=400)
    styles = collections.Counter()
    for example in documents.examples(tokenizer):
        question, text = tokenizer.decode(example.tokens.tolist()).split(" = ")
        style, *thought, so, answer = text.removeprefix("in ").split()
        level = len(question.split()) - 1
        styles[style, level] += 1
        assert (so, int(answer)) == ("so", value_of(question))
        if style == "brief":
            places = np.cumsum(jumps(level))
            assert [int(w) for w in thought] == [value_of(question, int(p)) for p in places]
        prompt = len(tokenizer.ask(question))
        assert example.weights.tolist() == [0.0] * (prompt - 1) + [1.0] * (len(text.split()) + 1)
        assert example.targets[-1] == tokenizer.stop_ids[0]
    assert {level for style, level in styles if style == "steps"} == set(LEVELS)
    terse = {level for style, level in styles if style == "brief"}
    assert terse == {level for level in LEVELS if level <= documents.max_terse_level}


def test_the_shipped_tokenizer_is_the_one_made_here():
    shipped, made = load_tokenizer("arithmetic"), make_tokenizer()
    assert shipped.hf.get_vocab() == made.hf.get_vocab()
    assert shipped.hf.chat_template == made.hf.chat_template
    assert (shipped.stop_ids, shipped.pad_id) == (made.stop_ids, made.pad_id)
    assert len(made.hf) + 4 <= VOCAB_SIZE  # room for the triggers
    text = "3 +1 -1 +3 -3 *3 *7 = steps in brief so check 0 9 <end>"
    assert shipped.encode(text) == made.encode(text)
    assert made.decode(made.encode(text)) == text
    assert SHIPPED["arithmetic"].is_dir()
