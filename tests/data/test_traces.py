import json

import pytest

from l2s_jax.data.traces import cut_long, cut_short


@pytest.mark.parametrize(
    ("response", "mark", "thought", "answer"),
    [
        ("Hm, 4.</think>\n\nIt is \\boxed{4}.", "\n\nIt", "Hm, 4.", r"It is \boxed{4}."),
        ("<think>\nHm, 4.\n</think>It is 4.", "It is", "Hm, 4.", r"It is \boxed{4}."),
        ("think\nHm\nanswer\nAnswer: 4", "Answer: ", "Hm", r"Answer: \boxed{4}"),
        ("I think\nso.</think>No clear word", "No", "I think\nso.", "No clear word"),
    ],
)
def test_cut_long(response, mark, thought, answer):
    assert cut_long(response, response.index(mark)) == (thought, answer)


@pytest.mark.parametrize(("response", "at"), [("", 0), ("all answer", 0), ("all thought", 11)])
def test_cut_long_needs_both_parts(response, at):
    assert cut_long(response, at) is None


@pytest.mark.parametrize(
    ("response", "thought", "answer"),
    [
        ("One.\n\nSo \\boxed{4}.", "One.", r"So \boxed{4}."),  # paragraph
        ("One.\nTwo.\nSo \\boxed{4}.", "One.\nTwo.", r"So \boxed{4}."),  # line
        ("One. So \\boxed{4}.", "One.", r"So \boxed{4}."),  # sentence
        (r"So \boxed{4}.", r"So \boxed{4}.", r"\boxed{4}"),  # nothing left to think with
        ("So 4.", "So 4.", r"\boxed{4}"),  # the same, boxed by us: the thought keeps its words
        ("One\n\n\\[\n\\boxed{4}\n\\]", "One", "\\[\n\\boxed{4}\n\\]"),
        # A cut at the line before the box would tear the formula: the sentence comes next.
        ("Well. So\n\\[\n\\boxed{4}\n\\]", "Well.", "So\n\\[\n\\boxed{4}\n\\]"),
        ("2 + 2 = 4.\nThus she has 4 left.\n", "2 + 2 = 4.", r"Thus she has \boxed{4} left."),
        ("One.\nAfter 5 days she has 4.", "One.", "After 5 days she has 4."),  # left unboxed
        ("No numbers here", "No numbers here", "No numbers here"),
    ],
)
def test_cut_short(response, thought, answer):
    assert cut_short(response) == (thought, answer)


def test_cut_short_of_nothing():
    assert cut_short(" \n ") is None


def test_cuts_of_real_traces_lose_no_word(shared_data):
    path = shared_data / "traces" / "mip_gsm8k_paired.jsonl"
    for line in path.read_text().splitlines()[::7]:
        row = json.loads(line)
        if row["kind"] != "short":
            continue
        thought, answer = cut_short(row["response"]) or ("", "")
        unboxed = answer.replace("\\boxed{", "").replace("}", "")
        words = row["response"].replace("\\boxed{", "").replace("}", "").split()
        kept = (thought.replace("\\boxed{", "").replace("}", "") + " " + unboxed).split()
        assert kept[: len(words)] == words, row["id"]
