r"""Rows of published sets of long traces, read. Pure.

Lives here: the layouts of Bespoke-Stratos-17k and OpenThoughts. Not here: files (`data/rows.py`),
which rows are used (`data/recorded.py`).

- Bespoke-Stratos-17k, and OpenThoughts-114k's default configuration: `system`, and `conversations`
  of {from, value} with one question and one answer, or `messages` of {role, content}. The answer
  is `<|begin_of_thought|>` thought `<|end_of_thought|>` and `<|begin_of_solution|>` solution
  `<|end_of_solution|>`. Mathematical questions open with an instruction to box.
- OpenThoughts-114k's configuration `metadata`: `problem`, `deepseek_reasoning`,
  `deepseek_solution`, `ground_truth_solution`.
- OpenThoughts2-1M and OpenThoughts3-1.2M: `conversations` with `<think>` thought `</think>`
  solution.
"""

import dataclasses
import re
from typing import Any

from l2s_jax.data.fields import text_of
from l2s_jax.verify.answers import final_answer

_ASKED = ("user", "human")
_ANSWERED = ("assistant", "gpt")
_INSTRUCTION = re.compile(r"\A\s*Return your final response within \\boxed\{\}\.\s*")
_THOUGHTS = (("<|begin_of_thought|>", "<|end_of_thought|>"), ("<think>", "</think>"))
_SOLUTION = re.compile(r"\A\s*<\|begin_of_solution\|>|<\|end_of_solution\|>\s*\Z")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A question with one long trace."""

    question: str
    thought: str  # empty where the trace is not whole
    answer: str
    reference: str | None  # None where neither the set nor the trace states an answer


def read_stratos(record: dict[str, Any], where: str) -> PublishedRow:
    """A row of a conversation; its reference is the answer that the trace boxes."""
    question, response = _turns(record, where)
    thought, answer = _cut(response)
    return PublishedRow(
        question=_INSTRUCTION.sub("", question),
        thought=thought,
        answer=answer,
        reference=final_answer(answer) or None,
    )


def read_openthoughts(record: dict[str, Any], where: str) -> PublishedRow:
    """A row with its own reference where the configuration has one, else as `read_stratos`."""
    if "deepseek_reasoning" not in record:
        return read_stratos(record, where)
    known = record.get("ground_truth_solution")  # null for code
    return PublishedRow(
        question=_INSTRUCTION.sub("", text_of(record, "problem", where)),
        thought=text_of(record, "deepseek_reasoning", where).strip(),
        answer=text_of(record, "deepseek_solution", where).strip(),
        reference=(final_answer(known) or None) if isinstance(known, str) else None,
    )


def _turns(record: dict[str, Any], where: str) -> tuple[str, str]:
    """(question, response) of a conversation of one turn each."""
    turns = record.get("conversations") or record.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(
            f"{where}: neither conversations nor messages is a list of turns; the fields are"
            f" {', '.join(sorted(record))}. Set the source's layout to that of the data set."
        )
    said = [
        (turn.get("from") or turn.get("role"), turn.get("value") or turn.get("content"))
        for turn in turns
    ]
    said = [(role, text) for role, text in said if role != "system"]
    if len(said) != 2 or said[0][0] not in _ASKED or said[1][0] not in _ANSWERED:
        roles = ", ".join(str(role) for role, _ in said)
        raise ValueError(f"{where}: the turns are by {roles}, not one question and one answer.")
    for role, text in said:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: the turn of {role} is {text!r}, not a text.")
    return said[0][1], said[1][1]


def _cut(response: str) -> tuple[str, str]:
    """(thought, answer text); the thought is empty where its marks are not both there."""
    for opening, closing in _THOUGHTS:
        before, found, after = response.rpartition(closing)
        if found:
            thought = before.split(opening, 1)[-1]
            return thought.strip(), _SOLUTION.sub("", after.strip()).strip()
    return "", ""
