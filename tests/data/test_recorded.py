import dataclasses

import pytest

from l2s_jax.data.arithmetic import ArithmeticTeachers
from l2s_jax.data.recorded import PublishedTraces, RecordedTraces
from l2s_jax.data.sources import Teachers
from l2s_jax.types import Problem
from tests.data.test_sources import write


def trace(id, model, kind, response, **more):
    record = {"id": id, "qid": "q", "question": "2+2?", "answer": "4", "model": model}
    return record | {"kind": kind, "response": response} | more


LONG = trace("1", "thinker", "long", "Hm.</think>It is 4.", final_start=11, correct=False)
SHORT = trace("2", "terse", "short", "2+2.\nSo 4.")
OTHER = trace("3", "other", "short", "2+2.\nSo 5.")


def test_recorded_traces(tmp_path):
    source = RecordedTraces(path=write(tmp_path, LONG, OTHER, SHORT), long_teacher="thinker")
    (problem,) = source.load()
    assert problem == Problem(id="q", question="2+2?", answer="4")
    long = source.long(problem)
    assert (long.teacher, long.thought, long.answer) == ("thinker", "Hm.", r"It is \boxed{4}.")
    assert [t.teacher for t in source.short_candidates(problem, 8)] == ["other", "terse"]
    assert [t.teacher for t in source.short_candidates(problem, 1)] == ["other"]
    assert source.short_candidates(problem, 8)[1].answer == r"So \boxed{4}."


def test_short_teachers_in_the_order_asked(tmp_path):
    source = RecordedTraces(
        path=write(tmp_path, LONG, OTHER, SHORT),
        long_teacher="thinker",
        short_teachers=("terse", "other"),
    )
    (problem,) = source.load()
    assert [t.teacher for t in source.short_candidates(problem, 8)] == ["terse", "other"]


def test_long_trace_without_its_mark_is_missing(tmp_path):
    error = trace("1", "thinker", "long", "Error code: 500")
    source = RecordedTraces(path=write(tmp_path, error, SHORT), long_teacher="thinker")
    assert source.long(source.load()[0]) is None


@pytest.mark.parametrize(
    ("teachers", "says"),
    [
        (
            {"long_teacher": "nobody"},
            "RecordedTraces.long_teacher: 'nobody' wrote no long .*thinker",
        ),
        ({"long_teacher": "terse"}, "RecordedTraces.long_teacher: 'terse'"),
        (
            {"long_teacher": "thinker", "short_teachers": ("thinker",)},
            "RecordedTraces.short_teachers: 'thinker' .*other, terse",
        ),
    ],
)
def test_unknown_teachers_name_the_known(tmp_path, teachers, says):
    with pytest.raises(ValueError, match=says):
        RecordedTraces(path=write(tmp_path, LONG, SHORT, OTHER), **teachers).load()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": "\\\\frac{1}{"}, "a brace has no partner"),
        ({"answer": "nan"}, "is no answer"),
        ({"level": "hard"}, "level='hard'"),
        ({"answer": "5"}, "differ from an earlier line with qid 'q'"),
        ({"kind": "medium"}, "kind='medium'"),
        ({"model": "thinker"}, "kind='short' of model 'thinker'"),
        ({"response": ""}, "response=''"),
        ({"final_start": 999}, "final_start=999"),
        ({"final_start": "3"}, "final_start='3'"),
        ({"final_start": True}, "final_start=True"),
    ],
)
def test_a_bad_trace_is_named_by_line_and_id_and_the_rest_counts(tmp_path, change, says):
    path = write(tmp_path, LONG, SHORT | change, OTHER)
    source = RecordedTraces(path=path, long_teacher="thinker")
    [problem] = source.load()
    assert [t.teacher for t in source.short_candidates(problem, 8)] == ["other"]
    [fault] = source.left_out().faults
    assert "file.jsonl:2 (2)" in fault.message and says in fault.message


def test_a_bad_line_stands_for_nothing(tmp_path):
    """Neither for its id nor for its question, which a later line may state."""
    path = write(tmp_path, SHORT | {"answer": "5", "kind": "?"}, b"{", LONG, SHORT, SHORT)
    source = RecordedTraces(path=path, long_teacher="thinker")
    assert source.load()[0].answer == "4"
    kind, torn, repeated = (fault.message for fault in source.left_out().faults)
    assert "kind='?'" in kind and "file.jsonl:2: not JSON" in torn
    assert f"file.jsonl:5: id '2' was used at {path}:4" in repeated


def test_without_a_usable_line_the_first_fault_is_told(tmp_path):
    source = RecordedTraces(path=write(tmp_path, b"{", b"["), long_teacher="thinker")
    with pytest.raises(ValueError, match=r"no line can be used; .*file\.jsonl:1: not JSON"):
        source.load()


def test_every_source_is_a_pair_of_teachers():
    assert isinstance(ArithmeticTeachers(), Teachers)
    assert isinstance(RecordedTraces(path="x", long_teacher="y"), Teachers)
    assert isinstance(PublishedTraces(path="x", layout="stratos"), Teachers)


def published(question, answer):
    said = "<|begin_of_thought|>\n\nHm.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n"
    turns = [
        {"from": "user", "value": f"Return your final response within \\boxed{{}}. {question}"},
        {"from": "assistant", "value": f"{said}{answer}\n\n<|end_of_solution|>"},
    ]
    return {"system": "Think.", "conversations": turns}


def test_published_long_traces_with_short_ones_of_ones_own(tmp_path):
    path = write(
        tmp_path,
        published("2+2?", "It is \\boxed{4}."),
        published("Sort a list.", "```python\nsorted(x)\n```"),
        published(" 2+2? ", "So \\boxed{5}."),
        published("3+3?", "It is \\boxed{6}."),
        published("4+4?", "It is \\boxed{\\frac{8}{1}."),
        {"text": "?"},
    )
    shorts = write(tmp_path, SHORT | {"question": "2 + 2?"}, OTHER | {"question": "2 + 2?"}, b"{",
                   name="shorts.jsonl")  # fmt: skip
    source = PublishedTraces(path=path, layout="stratos", shorts=shorts, long_teacher="thinker")
    four, six = source.load()
    assert (four.question, four.answer, six.answer) == ("2+2?", "4", "6")
    long = source.long(four)
    assert (long.teacher, long.thought, long.answer) == ("thinker", "Hm.", "It is \\boxed{4}.")
    found = source.short_candidates(four, 8)
    assert [trace.teacher for trace in found] == ["terse", "other"]
    assert {trace.problem_id for trace in (long, *found)} == {four.id}
    assert source.short_candidates(four, 1) == found[:1] and source.short_candidates(six, 8) == []
    left = source.left_out()
    assert left.counts == {"without-reference": 2, "further-row-on-a-question": 1}
    assert [fault.message.split(": ")[0] for fault in left.faults] == [f"{path}:6", f"{shorts}:3"]
    first = PublishedTraces(path=path, layout="stratos", limit=1)
    assert [problem.id for problem in first.load()] == [four.id]  # ids come from the question alone
    assert first.short_candidates(four, 8) == []
    unknown = dataclasses.replace(source, short_teachers=("nobody",))
    with pytest.raises(ValueError, match=r"PublishedTraces\.short_teachers: 'nobody' .*terse"):
        unknown.short_candidates(four, 1)


def test_a_published_trace_that_is_not_whole_is_missing(tmp_path):
    row = {"problem": "2+2?", "ground_truth_solution": "\\boxed{4}", "deepseek_solution": "So."}
    path = write(tmp_path, row | {"deepseek_reasoning": "Hm."}, row | {"deepseek_reasoning": None})
    source = PublishedTraces(path=path, layout="openthoughts")
    assert source.long(source.load()[0]).answer == "So."
    assert "deepseek_reasoning=None" in source.left_out().faults[0].message
    with pytest.raises(ValueError, match="limit=0"):
        PublishedTraces(path=path, layout="openthoughts", limit=0)
