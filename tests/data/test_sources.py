import json

import pytest

from l2s_jax.data.arithmetic import ArithmeticTeachers
from l2s_jax.data.sources import (
    JsonlProblems,
    PromptSpec,
    RecordedTraces,
    Teachers,
    read_jsonl,
    read_prompts,
)
from l2s_jax.data.store import write_items
from l2s_jax.types import Item, Problem


def write(tmp_path, *records, name="file.jsonl"):
    path = tmp_path / name
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


GOOD = {"id": "a", "question": "1+1?", "answer": "2"}


def test_read_jsonl_counts_blank_lines(tmp_path):
    path = write(tmp_path, {"x": 1}, b"", {"x": 2})
    assert list(read_jsonl(path)) == [(1, {"x": 1}), (3, {"x": 2})]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{'id': 1}", "not JSON at column 2"),
        (b'{"id": "b", "question": "half a li', "not JSON"),
        (b"[1, 2]", "holds a list, not an object"),
        (b"\xef\xbb\xbf{}", "byte-order mark"),
        (b'{"a": "\x00"}', "NUL"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, says):
    with pytest.raises(ValueError, match=says) as error:
        list(read_jsonl(write(tmp_path, GOOD, line)))
    assert "file.jsonl:2:" in str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl: no such file"):
        list(read_jsonl(tmp_path / "nowhere.jsonl"))


def test_problems(tmp_path):
    path = write(tmp_path, GOOD, {"id": 7, "question": "2+2?", "answer": 4, "level": 5.0})
    assert JsonlProblems(path=path).load() == [
        Problem(id="a", question="1+1?", answer="2"),
        Problem(id="7", question="2+2?", answer="4", level=5),
    ]
    assert len(JsonlProblems(path=path, limit=1).load()) == 1


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"id": "b", "question": "?"}, "has no field 'answer'"),
        ({"id": "b", "question": " ", "answer": "2"}, "question=' '"),
        ({"id": "b", "question": ["?"], "answer": "2"}, "question="),
        ({"id": "b", "question": "?", "answer": None}, "answer=None"),
        ({"id": "b", "question": "\ud800", "answer": "2"}, "half a character"),
        ({"id": "b", "question": "?", "answer": "2", "level": "AIME"}, "level=null"),
    ],
)
def test_bad_problems_name_line_and_id(tmp_path, record, says):
    with pytest.raises(ValueError, match=says) as error:
        JsonlProblems(path=write(tmp_path, GOOD, record)).load()
    assert "file.jsonl:2 (b)" in str(error.value)


def test_ids_are_unique_and_present(tmp_path):
    with pytest.raises(ValueError, match=r"file\.jsonl:2: id 'a' was used on line 1"):
        JsonlProblems(path=write(tmp_path, GOOD, GOOD)).load()
    with pytest.raises(ValueError, match=r"file\.jsonl:1: has no field 'id'"):
        JsonlProblems(path=write(tmp_path, {"question": "?"})).load()
    with pytest.raises(ValueError, match="holds no record"):
        JsonlProblems(path=write(tmp_path, b"")).load()
    with pytest.raises(ValueError, match="limit=0"):
        JsonlProblems(path="x", limit=0)


def test_real_problem_sets_load(shared_data):
    folder = shared_data / "benchmarks"
    assert len(JsonlProblems(path=str(folder / "gsm8k_test.jsonl")).load()) == 1319
    assert {p.level for p in JsonlProblems(path=str(folder / "math500.jsonl")).load()} == {
        *range(1, 6)
    }
    assert len(JsonlProblems(path=str(folder / "aime24.jsonl"), level=None).load()) == 30


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
        ({"long_teacher": "nobody"}, "long teacher 'nobody'.*thinker"),
        ({"long_teacher": "terse"}, "long teacher 'terse'"),
        (
            {"long_teacher": "thinker", "short_teachers": ("thinker",)},
            "short teacher.*other, terse",
        ),
    ],
)
def test_unknown_teachers_name_the_known(tmp_path, teachers, says):
    with pytest.raises(ValueError, match=says):
        RecordedTraces(path=write(tmp_path, LONG, SHORT, OTHER), **teachers).load()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": "5"}, "differ from an earlier line with qid 'q'"),
        ({"kind": "medium"}, "kind='medium'"),
        ({"model": "thinker"}, "kind='short' of model 'thinker'"),
        ({"response": ""}, "response=''"),
        ({"final_start": 999}, "final_start=999"),
        ({"final_start": "3"}, "final_start='3'"),
        ({"final_start": True}, "final_start=True"),
    ],
)
def test_bad_traces_name_line_and_id(tmp_path, change, says):
    with pytest.raises(ValueError, match=says) as error:
        RecordedTraces(path=write(tmp_path, LONG, SHORT | change), long_teacher="thinker").load()
    assert "file.jsonl:2 (2)" in str(error.value)


def test_both_sources_are_teachers():
    assert isinstance(ArithmeticTeachers(), Teachers)
    assert isinstance(RecordedTraces(path="x", long_teacher="y"), Teachers)


def test_prompts(tmp_path):
    chat = [{"role": "user", "content": "hi"}]
    path = write(
        tmp_path,
        {"id": "a", "question": "1+1?"},
        {"id": "b", "messages": chat},
        {"id": "c", "prompt": "raw"},
        {"id": "d", "token_ids": [0, 5]},
    )
    assert read_prompts(path) == [
        PromptSpec(id="a", question="1+1?"),
        PromptSpec(id="b", messages=tuple(chat)),
        PromptSpec(id="c", prompt="raw"),
        PromptSpec(id="d", token_ids=(0, 5)),
    ]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({}, "has none of"),
        ({"question": "x", "prompt": "y"}, "question and prompt"),
        ({"question": ""}, "question=''"),
        ({"messages": []}, "messages="),
        ({"messages": [{"role": "user"}]}, "messages="),
        ({"token_ids": [1, -2]}, "token_ids="),
        ({"token_ids": [True]}, "token_ids="),
        ({"token_ids": "12"}, "token_ids="),
    ],
)
def test_bad_prompts_name_line_and_id(tmp_path, record, says):
    with pytest.raises(ValueError, match=says) as error:
        read_prompts(write(tmp_path, {"id": "b"} | record))
    assert "file.jsonl:1 (b)" in str(error.value)


def test_trained_questions_are_left_out(tmp_path, capsys):
    """Whatever their spaces, letter case and ids; and how many is told."""
    item = Item(id="x", question="One  and ONE?\n", reference="2", long="1+1", long_answer="2")
    write_items(tmp_path / "items", [item], {})
    trained = GOOD | {"question": "one and one?"}
    path = write(tmp_path, trained, GOOD | {"id": "b"}, GOOD | {"id": "c"})
    problems = JsonlProblems(path=path, exclude=str(tmp_path), limit=1).load()
    assert [problem.id for problem in problems] == ["b"]
    assert "1 problems, 1 left out" in capsys.readouterr().err
    only = write(tmp_path, trained, name="only.jsonl")
    with pytest.raises(ValueError, match=r"only\.jsonl: every problem .* exclude=null"):
        JsonlProblems(path=only, exclude=str(tmp_path)).load()
