import json

import pytest

from l2s_jax.data.sources import (
    JsonlProblems,
    PromptSpec,
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
    """Whatever their spaces, letter case, TeX and ids; and how many is told."""
    item = Item(
        id="x",
        question="One  and ONE of \\frac{1}{2}?\n",
        reference="2",
        long="1+1",
        long_answer="2",
    )
    write_items(tmp_path / "items", [item], {})
    trained = GOOD | {"question": "one and one of $\\dfrac{1}{2}$?"}
    path = write(tmp_path, trained, GOOD | {"id": "b"}, GOOD | {"id": "c"})
    problems = JsonlProblems(path=path, exclude=str(tmp_path), limit=1).load()
    assert [problem.id for problem in problems] == ["b"]
    assert "1 problems, 1 left out" in capsys.readouterr().err
    only = write(tmp_path, trained, name="only.jsonl")
    with pytest.raises(ValueError, match=r"only\.jsonl: every problem .* exclude=null"):
        JsonlProblems(path=only, exclude=str(tmp_path)).load()
