"""The answers and training metrics that a report is made of: their fields, reading, order.

Lives here: the record of one answer, the readers of `records/*.jsonl` and `metrics/*.jsonl`, and
the order in which stages and modes are shown. Not here: who writes them (`benchmark`), what is
computed from them (`stats`, `calibration`, `summary`), how they look (`plots`, `report`).
"""

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NotRequired, TypedDict, get_args

from l2s_jax.data.jsonl import read_jsonl
from l2s_jax.types import FinishReason, Route

MODES = ("auto", "force-long", "force-short", "free")
STAGES = ("base", "sft", "grpo_v2", "grpo_plus", "verbatim")


class Answer(TypedDict):
    """One answer of one model to one question, as it lies in a line of `records/*.jsonl`."""

    stage: str
    seed: int  # of the training run that made the model
    mode: str  # one of MODES
    id: str  # of the problem; the same id is the same question in every stage, seed and mode
    level: int | None
    reference: str
    prediction: str | None
    correct: bool
    num_tokens: int  # generated, stop token included
    route: Route
    p_easy: float | None
    finish_reason: FinishReason
    text: str
    p_short: NotRequired[float | None]  # of the short trigger after an <EASY> of its own
    question: NotRequired[str]  # shown in the report where it is at hand


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "stage": str,
    "seed": int,
    "mode": str,
    "id": str,
    "level": (int, type(None)),
    "reference": str,
    "prediction": (str, type(None)),
    "correct": bool,
    "num_tokens": int,
    "route": str,
    "p_easy": (int, float, type(None)),
    "finish_reason": str,
    "text": str,
}

_WORDS: dict[str, tuple[str, ...]] = {
    "mode": MODES,
    "route": get_args(Route),
    "finish_reason": get_args(FinishReason),
}


def is_right(answer: Answer) -> bool:
    """True for a correct answer that ended by itself; a truncated one is wrong."""
    return answer["correct"] and answer["finish_reason"] == "stop"


def is_short(answer: Answer) -> bool:
    """True for an answer that took the short path, by its own choice or by force."""
    return answer["route"] == "short"


def read_records(folder: pathlib.Path) -> list[Answer]:
    """The answers in every `*.jsonl` of `folder`, in file order; none where there is no folder."""
    answers: list[Any] = []
    for path in sorted(folder.glob("*.jsonl")):
        for line, row in read_jsonl(path):
            _check_fields(row, where=f"{path.name}:{line}")
            answers.append(row)
    return answers


def read_metrics(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """Stage → rows of its training metrics, from `<stage>.jsonl`; empty where there is none."""
    stages = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = []
        for line, row in read_jsonl(path):
            if not isinstance(row.get("step"), int):
                raise ValueError(
                    f"{path.name}:{line}: step={row.get('step')!r}. Every row of training metrics"
                    ' carries its step as a whole number, {"step": 10, "loss": 0.5}.'
                )
            rows.append(row)
        stages[path.stem] = rows
    return {name: stages[name] for name in in_order(stages, STAGES)}


def _check_fields(row: dict[str, Any], *, where: str) -> None:
    for field, types in _FIELDS.items():
        if field not in row:
            raise ValueError(
                f"{where}: the record has no field {field!r}. Write the records again with"
                " `l2s eval`; they come from another version or another program."
            )
        if not isinstance(row[field], types):
            raise ValueError(
                f"{where}: {field}={row[field]!r} is a {type(row[field]).__name__}, which this"
                " field cannot hold. Write the records again with `l2s eval`."
            )
    for field, known in _WORDS.items():
        if row[field] not in known:
            raise ValueError(
                f"{where}: {field}={row[field]!r} is unknown; it is one of {', '.join(known)}."
                " Write the records again with `l2s eval`."
            )


def group_by(answers: Iterable[Answer], key: Callable[[Answer], Any]) -> dict[Any, list[Answer]]:
    """Key → its answers, keys in order of first appearance."""
    groups: dict[Any, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(key(answer), []).append(answer)
    return groups


def in_order(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """`names` in the order of `known`; those that it lacks come last, by alphabet."""
    place = {name: index for index, name in enumerate(known)}
    return sorted(names, key=lambda name: (place.get(name, len(known)), name))
