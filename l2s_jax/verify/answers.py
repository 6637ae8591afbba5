r"""Where the final answer stands in a text. Pure strings.

Lives here: the last box of a text, the answer text after `<ANSWER>`, and the number that a closing
sentence states. Not here: one spelling for what was found (`verify/normal.py`), whether two answers
are equal (`verify/math.py`), the lenient search of texts that were never told to box
(`verify/prose.py`).

Strict by default: a text that does not box its answer has none. Callers pass only what the model
wrote, never the prompt, and for texts with triggers only what follows `<ANSWER>`. A number in
prose counts only where a caller asks for it (`box_closing_number`, for recorded traces of models
that were never told to box).
"""

import re

MAX_BARE_ANSWER = 40
"""Characters. A longer answer text without a box is prose, not an answer."""

MAX_JOINT = 40  # characters between two boxes that are one answer
MAX_JOINED = 24  # boxes

_SCALES = "dozen|hundred|thousand|million|billion|trillion"  # words that change the number before
_BOX = re.compile(r"\\f?boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(  # one that stands alone: no part of a fraction, a power or a name
    r"(?<![\w.,/^{])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
    rf"(?![\w/^}}]|\.\d|,\d|\s*(?:{_SCALES})\b)"
)
_JOINT = re.compile(  # "and", "or", a comma or wide space, behind words without a stop
    r"[^.:!?\n]*?(?:\band\b|\bor\b|[,;]|\\q?quad)[\s$,;]*(?:\\q?quad)?[\s$(){}\\]*"
)


def final_answer(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds; None where there is none, or it never closes.

    Boxes that follow each other with nothing but "and", "or" or a comma in between (and a few words
    before it) are one answer, a list: \boxed{1} and \boxed{-2} does not answer with -2.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes or (span := _box_span(text, boxes[-1])) is None:
        return None
    found = [text[span[0] : span[1]].strip()]
    start = boxes[-1].start()
    for box in reversed(boxes[-MAX_JOINED:-1]):
        span = _box_span(text, box, start)
        if span is None or not 0 < start - span[1] - 1 <= MAX_JOINT:
            break
        if not _JOINT.fullmatch(text, span[1] + 1, start):
            break
        found.append(text[span[0] : span[1]].strip())
        start = box.start()
    return ", ".join(reversed(found))


def has_box(text: str) -> bool:
    r"""True where a text opens a `\boxed{`, whether it closes or not."""
    return _BOX.search(text) is not None


def answer_or_text(text: str) -> str | None:
    """The final answer of an answer text: its box, else the text itself where it is one short line.

    The arithmetic world answers "4" and means it. Prose without a box has no answer, and neither
    has a text whose last box never closes.
    """
    if has_box(text):
        return final_answer(text)
    bare = text.strip()
    return bare if 0 < len(bare) <= MAX_BARE_ANSWER and "\n" not in bare else None


def box_closing_number(text: str) -> str:
    r"""The text with the number of its closing line boxed, words untouched; itself where unclear.

    A closing line is clear when it states one number, or one after its last equals sign: "Thus
    she needs 45 / 9 = 5 sessions" becomes "... = \boxed{5} sessions". A text with a box is left
    alone, and so is one whose closing line compares several numbers.
    """
    if has_box(text):
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


def _box_span(text: str, box: re.Match[str], end: int | None = None) -> tuple[int, int] | None:
    """Start and end of what is inside the box that `box` opens; None where it never closes."""
    depth = 1
    for brace in _BRACE.finditer(text, box.end(), len(text) if end is None else end):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)  # an escaped brace is two characters: skipped
        if depth == 0:
            return box.end(), brace.start()
    return None
