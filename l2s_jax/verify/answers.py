r"""Where the final answer stands in a text, and one spelling for it. Pure strings.

Lives here: the last box of a text, the answer text after `<ANSWER>`, the number that a closing
sentence states, and the clean-up that makes "$1{,}234.$" and "1,234" one spelling. Not here:
whether two answers are equal (`verify/math.py`).

Strict by default: a text that does not box its answer has none. Callers pass only what the model
wrote, never the prompt, and for texts with triggers only what follows `<ANSWER>`. A number in
prose counts only where a caller asks for it (`box_closing_number`, for recorded traces of models
that were never told to box).
"""

import re

MAX_BARE_ANSWER = 40
"""Characters. A longer answer text without a box is prose, not an answer."""

_SCALES = "dozen|hundred|thousand|million|billion|trillion"  # words that change the number before
_BOX = re.compile(r"\\boxed\s*\{")
_NUMBER = re.compile(  # one that stands alone: no part of a fraction, a power or a name
    r"(?<![\w.,/^{])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
    rf"(?![\w/^}}]|\.\d|,\d|\s*(?:{_SCALES})\b)"
)
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
_SPELLING = (  # (pattern, replacement): LaTeX that changes how an answer looks, not what it says
    (re.compile(r"\\\$|\$"), ""),  # dollars, as a sign or as a delimiter
    (re.compile(r"\{,\}|\\!"), lambda match: "," if match[0] == "{,}" else ""),
    (re.compile(r"\\[,;: ]|\\quad|~"), " "),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\displaystyle"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\s+"), " "),
)
_UNIT = re.compile(
    r"(?P<number>.*\d)\s*(?:\^\{?\\circ\}?|\\degree|°|\\?%"
    r"|\\(?:text|textbf|mathrm|mbox)\s*\{"
    rf"(?!\s*(?:{_SCALES})\b)[a-zA-Z ./]+\}}(?:\^\{{?\d\}}?)?)"
)


def final_answer(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds; None where there is none, or it never closes."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    span = _box_span(text, boxes[-1])
    return None if span is None else text[span[0] : span[1]].strip()


def answer_or_text(text: str) -> str | None:
    """The final answer of an answer text: its box, else the text itself where it is one short line.

    The arithmetic world answers "4" and means it. Prose without a box has no answer, and neither
    has a text whose last box never closes.
    """
    if _BOX.search(text):
        return final_answer(text)
    bare = text.strip()
    return bare if 0 < len(bare) <= MAX_BARE_ANSWER and "\n" not in bare else None


def normalise(answer: str) -> str:
    r"""The answer in one spelling: no delimiters, dollars, spacing commands, final stop or unit.

    A unit goes only where a number stands before it and the unit cannot change it: "5 \text{ cm}"
    is "5", "5 \text{ million}" stays. The percent sign is such a unit: "5\%" is "5", not 0.05.
    """
    answer = _unwrap(answer.strip())
    for pattern, replacement in _SPELLING:
        answer = pattern.sub(replacement, answer)
    answer = answer.strip().rstrip(".").strip()
    answer = re.sub(r"\\text\s*\{([^{}]*)\}$", r"\1", answer) if answer[:5] == r"\text" else answer
    # "x = 5" answers with 5; "4 = 5" and "banana = 5" do not.
    answer = re.sub(r"^[a-zA-Z](?:_\w|_\{\w+\})?\s*=\s*(?=[^=]+$)", "", answer)
    unit = _UNIT.fullmatch(answer)
    return unit["number"].strip() if unit else answer


def box_closing_number(text: str) -> str:
    r"""The text with the number of its closing line boxed, words untouched; itself where unclear.

    A closing line is clear when it states one number, or one after its last equals sign: "Thus
    she needs 45 / 9 = 5 sessions" becomes "... = \boxed{5} sessions". A text with a box is left
    alone, and so is one whose closing line compares several numbers.
    """
    if _BOX.search(text):
        return text
    body = text.rstrip()
    start = body.rfind("\n") + 1
    start = max(start, body.rfind("=") + 1)
    numbers = list(_NUMBER.finditer(body, start))
    if len({number[0] for number in numbers}) != 1:
        return text
    first, last = numbers[-1].span()
    return rf"{body[:first]}\boxed{{{body[first:last]}}}{body[last:]}"


def last_box_start(text: str) -> int | None:
    r"""The offset of the last `\boxed`; None where there is none."""
    boxes = list(_BOX.finditer(text))
    return boxes[-1].start() if boxes else None


def _box_span(text: str, box: re.Match[str]) -> tuple[int, int] | None:
    """Start and end of what is inside the box that `box` opens; None where it never closes."""
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[box.end() :], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)  # an escaped brace is two characters: skipped
        if depth == 0:
            return box.end(), box.end() + brace.start()
    return None


def _unwrap(answer: str) -> str:
    for opening, closing in _WRAPPERS:
        long_enough = len(answer) > len(opening) + len(closing)
        if long_enough and answer.startswith(opening) and answer.endswith(closing):
            answer = answer[len(opening) : -len(closing)].strip()
    return answer
