import pytest

from l2s_jax.data.published import PublishedRow, read_openthoughts, read_stratos

STRATOS = (
    "<|begin_of_thought|>\n\nHm, \\boxed{5}? No, 4.\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nIt is \\boxed{4}.\n\n<|end_of_solution|>"
)
EXPECTED = PublishedRow(
    question="2+2?",
    thought="Hm, \\boxed{5}? No, 4.",
    answer="It is \\boxed{4}.",
    reference="4",
)


def conversation(answer=STRATOS, question="Return your final response within \\boxed{}. 2+2?"):
    turns = [{"from": "user", "value": question}, {"from": "assistant", "value": answer}]
    return {"system": "Think.", "conversations": turns}


@pytest.mark.parametrize("read", [read_stratos, read_openthoughts])
def test_a_conversation(read):
    assert read(conversation(), "f:1") == EXPECTED


def test_messages_and_other_names_of_roles():
    turns = [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": STRATOS},
    ]
    assert read_stratos({"messages": turns}, "f:1") == EXPECTED
    turns = [
        {"from": "human", "value": "2+2?"},
        {"from": "gpt", "value": "<think>\nHm, \\boxed{5}? No, 4.\n</think>\n\nIt is \\boxed{4}."},
    ]
    assert read_openthoughts({"conversations": turns, "domain": "math"}, "f:1") == EXPECTED


def test_openthoughts_with_its_own_reference():
    row = {
        "problem": "2+2?",
        "deepseek_reasoning": "Hm, \\boxed{5}? No, 4.",
        "deepseek_solution": "It is \\boxed{4}.",
        "ground_truth_solution": "As 2+2=4, \\boxed{4}",
        "domain": "math",
    }
    assert read_openthoughts(row, "f:1") == EXPECTED
    assert read_openthoughts(row | {"ground_truth_solution": None}, "f:1").reference is None
    assert read_openthoughts(row | {"ground_truth_solution": "Proof."}, "f:1").reference is None


@pytest.mark.parametrize(
    ("answer", "thought", "reference"),
    [
        ("<|begin_of_thought|> cut off \\boxed{4}", "", None),  # a box in a thought is no answer
        ("No marks, \\boxed{4}", "", None),
        (STRATOS.replace("\\boxed{4}", "```python\nprint(4)\n```"), EXPECTED.thought, None),
    ],
)
def test_traces_that_are_not_whole_or_state_no_answer(answer, thought, reference):
    row = read_stratos(conversation(answer), "f:1")
    assert (row.thought, row.reference) == (thought, reference)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"text": "?"}, "neither conversations nor messages.*text"),
        ({"conversations": []}, "neither|turns are by"),
        ({"conversations": [{"from": "user", "value": "?"}]}, "turns are by user"),
        (conversation(answer=None), "turn of assistant is None"),
        (conversation(question=" "), "turn of user is ' '"),
        ({"deepseek_reasoning": "x", "deepseek_solution": "y"}, "no field 'problem'"),
    ],
)
def test_rows_of_another_shape_are_named(record, says):
    with pytest.raises(ValueError, match=says) as error:
        read_openthoughts(record, "file:7")
    assert "file:7" in str(error.value)
