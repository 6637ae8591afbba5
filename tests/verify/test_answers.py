import random

import pytest

from l2s_jax.verify.answers import (
    answer_or_text,
    box_closing_number,
    final_answer,
    last_box_start,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{4}.", "4"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed { \{1, 2\} }", r"\{1, 2\}"),
        (r"\boxed{\text{a {b} c}}", r"\text{a {b} c}"),
        (r"\boxed{}", ""),
        (r"\boxed{1} and \boxed{-2}.", "1, -2"),  # one answer in two boxes
        (r"$\boxed{(3, 3)} \text{ for part (a) and } \boxed{(1, 1)}$", "(3, 3), (1, 1)"),
        (r"\boxed{1} and thus \boxed{2}", "2"),  # the first was a step
        (r"\boxed{1}. Or \boxed{2}", "2"),
        ("The answer is 5.", None),
        ("", None),
        (r"\boxed{5", None),  # cut off: it never said so
        (r"\boxed{5} no, \boxed{6", None),  # the last word counts, and it was cut off
        (r"\boxed{5\}", None),  # an escaped brace closes nothing
        (r"boxed{5}", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


def brace_oracle(text):  # the last \boxed{, then one character after the other
    at = text.rfind("\\boxed{")
    if at < 0:
        return None
    depth, inside, i = 1, "", at + len("\\boxed{")
    while i < len(text):
        piece = text[i : i + 2] if text[i] == "\\" else text[i]
        depth += {"{": 1, "}": -1}.get(piece, 0)
        if depth == 0:
            return inside.strip()
        inside, i = inside + piece, i + len(piece)
    return None


def test_final_answer_matches_a_walk_over_characters():
    draw = random.Random(0)
    pieces = ["\\boxed{", "{", "}", "\\{", "\\}", "1", " ", "x", "\\frac", "\n"]
    for _ in range(2000):
        text = "".join(draw.choices(pieces, k=draw.randrange(12)))
        assert final_answer(text) == brace_oracle(text), text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4", "4"),
        (" 4\n", "4"),
        (r"It is \boxed{7} of them", "7"),
        (r"4 \boxed{7", None),
        ("", None),
        ("first\nsecond", None),
        ("After the third step it is clear that the whole comes to four", None),
    ],
)
def test_answer_or_text(text, answer):
    assert answer_or_text(text) == answer


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        ("So\nAnn has 80 more beads.\n", r"So" + "\n" + r"Ann has \boxed{80} more beads."),
        ("She needs 45 / 9 = 5 sessions.", r"She needs 45 / 9 = \boxed{5} sessions."),
        ("It costs $1,234.50.", r"It costs $\boxed{1,234.50}."),
        ("**70 minutes**", r"**\boxed{70} minutes**"),
        ("She has 4 left, yes, 4.", r"She has 4 left, yes, \boxed{4}."),
        ("After 5 days she has 4.", None),  # two numbers, no telling
        ("It is 1/2.", None),
        ("About 5 million.", None),
        ("x^2 or 10^6", None),
        (r"\frac{3}{4}", None),
        ("12\nThe end.", None),
        (r"\boxed{3} and 4", None),
        ("", None),
    ],
)
def test_box_closing_number(text, boxed):
    assert box_closing_number(text).rstrip() == (text if boxed is None else boxed).rstrip()


def test_last_box_start():
    assert last_box_start(r"a \boxed{1} \boxed{2}") == len(r"a \boxed{1} ")
    assert last_box_start("none") is None
