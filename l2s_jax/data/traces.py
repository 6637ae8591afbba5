r"""A teacher's text cut into thought and answer text. Pure strings.

Lives here: the cut, for texts that mark it and for texts that do not, and the rule by which every
answer text ends up with its final answer boxed. Not here: reading traces (`data/recorded.py`),
judging them (`verify`, `curation`).

A long text marks where its thinking ends; what follows is the answer text. A short one does not:
its answer text is the paragraph that holds the last box, else the line, else the sentence, the
largest piece that leaves a thought before it. Where not even a sentence does, the whole text is
the thought and the box alone the answer. Two of the three short models of the public traces never
box; there the number of the closing line is boxed in place (`box_closing_number`), so that the
student learns one way to state an answer, the one that the strict reader reads.
"""

import re

from l2s_jax.verify.answers import box_closing_number, final_answer, last_box_start

_OPENINGS = re.compile(r"\A\s*(?:<think>|<\|im_start\|>think\b|think\n)\s*")
_CLOSINGS = re.compile(r"\s*(?:</think>|\nanswer)\s*\Z")
_BREAKS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"(?<=[.!?])\s+"))


def cut_long(response: str, final_start: int) -> tuple[str, str] | None:
    """(thought, answer text) at the marked place; None where one of the two is empty."""
    thought = _CLOSINGS.sub("", _OPENINGS.sub("", response[:final_start])).strip()
    answer = box_closing_number(response[final_start:].strip())
    return (thought, answer) if thought and answer else None


def cut_short(response: str) -> tuple[str, str] | None:
    """(thought, answer text) of a text without thinking marks; None where it is empty."""
    text = box_closing_number(response.strip())
    if not text:
        return None
    box = last_box_start(text)
    if box is None:  # states no clear answer: verification will reject and count it
        thought, _, closing = text.rpartition("\n")
        return thought.rstrip() or text, closing
    for pattern in _BREAKS:
        cuts = [match.end() for match in pattern.finditer(text, 0, box)]
        if cuts and _is_whole(text[: cuts[-1]]):
            return text[: cuts[-1]].rstrip(), text[cuts[-1] :]
    return response.strip(), rf"\boxed{{{final_answer(text)}}}"


def _is_whole(text: str) -> bool:
    """True where no formula is left open, so that a cut after `text` tears none."""
    opened = [text.count("\\["), text.count("\\(")]
    closed = [text.count("\\]"), text.count("\\)")]
    return opened == closed and text.count("$$") % 2 == 0
