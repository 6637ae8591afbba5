"""Where problems, teachers' traces and prompts come from.

Lives here: JSON lines read with errors that name file, line and id; problem sets; recorded traces
of long and short teachers on the same questions; prompt files of `l2s generate`; the `Teachers`
protocol that curation asks. Not here: the arithmetic world (`data/arithmetic.py`), how a text is
cut into thought and answer (`data/traces.py`), curated items (`data/store.py`).
"""

import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from l2s_jax.data.store import read_items
from l2s_jax.data.traces import cut_long, cut_short
from l2s_jax.types import Problem, Trace

T = TypeVar("T")


@runtime_checkable
class Teachers(Protocol):
    """A long and a short teacher on the same problems. Correctness is never taken from them."""

    def load(self) -> list[Problem]:
        """The problems, in a fixed order."""
        ...

    def long(self, problem: Problem) -> Trace | None:
        """The long teacher's text; None where it has none."""
        ...

    def short_candidates(self, problem: Problem, k: int) -> list[Trace]:
        """At most `k` trials of the terse teacher; a larger `k` only adds to them."""
        ...


def read_jsonl(path: str | pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give the path of a JSON-lines file.")
    with path.open("rb") as lines:
        for line, raw in enumerate(lines, start=1):
            if raw.strip():
                yield line, _parse_line(raw, f"{path}:{line}")


def _parse_line(raw: bytes, where: str) -> dict[str, Any]:
    if raw.startswith(b"\xef\xbb\xbf"):
        raise ValueError(f"{where}: the file opens with a byte-order mark. Save it as plain UTF-8.")
    if b"\0" in raw:
        raise ValueError(f"{where}: the line holds a NUL byte (a torn write?). Remove the line.")
    try:
        record = json.loads(raw.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: byte {error.start + 1} is not UTF-8 ({error.reason}). Save it as UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not JSON at column {error.colno} ({error.msg})."
            " Every line holds one whole JSON object."
        ) from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(
            f"{where}: holds a {type(record).__name__}, not an object."
            ' Every line looks like {"id": ..., ...}.'
        )
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number. Write a number or null.")


def _text(record: dict[str, Any], field: str, where: str) -> str:
    """The non-empty string of a field. Numbers are taken as their digits (ids, answers)."""
    if field not in record:
        raise ValueError(f"{where}: has no field {field!r}, only {', '.join(sorted(record))}.")
    value = record[field]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {field}={value!r} must be a text that is not empty.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(
            f"{where}: {field} holds half a character (a lone \\ud8.. escape). Fix it."
        )
    return value


def _level(record: dict[str, Any], field: str | None, where: str) -> int | None:
    value = None if field is None else record.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(
            f"{where}: {field}={value!r} is not a whole number."
            " Set the source's level=null to read the problems without levels."
        )
    return int(value)


class _Ids:
    """Refuses an id that was seen before."""

    def __init__(self, path: str | pathlib.Path):
        self.path = path
        self.lines: dict[str, int] = {}

    def claim(self, record: dict[str, Any], field: str, line: int) -> str:
        id = _text(record, field, f"{self.path}:{line}")
        if id in self.lines:
            raise ValueError(
                f"{self.path}:{line}: {field} {id!r} was used on line {self.lines[id]} already."
                " Give every line its own."
            )
        self.lines[id] = line
        return id


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlProblems:
    """A problem set in JSON lines. The fields name the file's fields."""

    path: str
    id: str = "id"
    question: str = "question"
    answer: str = "answer"
    level: str | None = "level"  # None: read no levels; a line without the field has none
    limit: int | None = None  # the first so many
    exclude: str | None = None  # a curation's workdir; questions of its items are left out

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"JsonlProblems.limit={self.limit}: give at least 1, or null for all.")

    def load(self) -> list[Problem]:
        ids, problems, num_excluded = _Ids(self.path), [], 0
        excluded = self._excluded()
        for line, record in read_jsonl(self.path):
            if self.limit is not None and len(problems) == self.limit:
                break
            id = ids.claim(record, self.id, line)
            problem = _problem(record, id, self, f"{self.path}:{line} ({id})")
            if _words(problem.question) in excluded:
                num_excluded += 1
            else:
                problems.append(problem)
        if self.exclude is not None:
            told = f"{len(problems)} problems, {num_excluded} left out as items of {self.exclude}"
            print(f"{self.path}: {told}", file=sys.stderr)
        if num_excluded and not problems:
            raise ValueError(
                f"{self.path}: every problem is an item of exclude={self.exclude}."
                " Give other problems, or exclude=null."
            )
        return _not_empty(problems, self.path)

    def _excluded(self) -> set[str]:
        if self.exclude is None:
            return set()
        return {_words(item.question) for item in read_items(pathlib.Path(self.exclude) / "items")}


def _words(question: str) -> str:
    """The question without what copies of a problem set differ in: spaces and letter case."""
    return " ".join(question.split()).casefold()


def _problem(record: dict[str, Any], id: str, fields: JsonlProblems, where: str) -> Problem:
    return Problem(
        id=id,
        question=_text(record, fields.question, where),
        answer=_text(record, fields.answer, where),
        level=_level(record, fields.level, where),
    )


def _not_empty(records: list[T], path: str | pathlib.Path) -> list[T]:
    if not records:
        raise ValueError(f"{path}: holds no record. Give a file with at least one line.")
    return records


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedTraces:
    """Traces of several models on the same questions, as JSON lines; implements `Teachers`.

    A line holds `id`, `qid` (of the question), `question`, `answer` (the reference), `model`,
    `kind` ("long" or "short") and `response`; `final_start`, the offset where a long response's
    answer text begins; `level` where known. Any verdict that the file carries is left unread.
    """

    path: str
    long_teacher: str  # model; its first response on a question counts
    short_teachers: tuple[str, ...] | None = None  # in the order of trial; None: all short ones

    def load(self) -> list[Problem]:
        return list(self._content.problems.values())

    def long(self, problem: Problem) -> Trace | None:
        for row in self._content.rows.get((problem.id, self.long_teacher), []):
            return _trace(row, cut_long(row["response"], row.get("final_start") or 0))
        return None

    def short_candidates(self, problem: Problem, k: int) -> list[Trace]:
        teachers = self._content.short_teachers
        rows = (row for name in teachers for row in self._content.rows.get((problem.id, name), []))
        traces = (_trace(row, cut_short(row["response"])) for row in rows)
        return [trace for trace in traces if trace is not None][:k]

    @functools.cached_property
    def _content(self) -> "_Content":
        content = _read_traces(self.path)
        for name, kind in ((self.long_teacher, "long"), *((t, "short") for t in self._asked)):
            if content.kinds.get(name) != kind:
                known = ", ".join(sorted(m for m, k in content.kinds.items() if k == kind))
                raise ValueError(
                    f"RecordedTraces {kind} teacher {name!r} wrote no {kind} trace in {self.path}."
                    f" The file has {known or 'none of that kind'}."
                )
        every = tuple(name for name, kind in content.kinds.items() if kind == "short")
        return dataclasses.replace(content, short_teachers=self._asked or every)

    @property
    def _asked(self) -> tuple[str, ...]:
        return self.short_teachers or ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Content:
    problems: dict[str, Problem]
    rows: dict[tuple[str, str], list[dict[str, Any]]]  # by question and model, in file order
    kinds: dict[str, str]  # model → "long" or "short"
    short_teachers: tuple[str, ...] = ()


def _read_traces(path: str) -> _Content:
    content = _Content(problems={}, rows={}, kinds={})
    ids, fields = _Ids(path), JsonlProblems(path=path, id="qid")
    for line, record in read_jsonl(path):
        where = f"{path}:{line} ({ids.claim(record, 'id', line)})"
        problem = _problem(record, _text(record, "qid", where), fields, where)
        known = content.problems.setdefault(problem.id, problem)
        if known != problem:
            raise ValueError(
                f"{where}: question, answer or level differ from an earlier line with qid"
                f" {problem.id!r}. One qid means one question: give this one another."
            )
        model, kind = _text(record, "model", where), record.get("kind")
        if kind not in ("long", "short") or content.kinds.setdefault(model, kind) != kind:
            raise ValueError(
                f'{where}: kind={kind!r} of model {model!r} must be "long" or "short", and the'
                " same on all of its lines."
            )
        _check_response(record, where)
        content.rows.setdefault((problem.id, model), []).append(record)
    _not_empty(list(content.problems), path)
    return content


def _check_response(record: dict[str, Any], where: str) -> None:
    response, start = _text(record, "response", where), record.get("final_start")
    right_type = start is None or (isinstance(start, int) and not isinstance(start, bool))
    if not right_type or not 0 <= (start or 0) <= len(response):
        raise ValueError(
            f"{where}: final_start={start!r} must be an offset into the response, which has"
            f" {len(response)} characters, or null."
        )


def _trace(row: dict[str, Any], parts: tuple[str, str] | None) -> Trace | None:
    if parts is None:
        return None
    return Trace(problem_id=row["qid"], teacher=row["model"], thought=parts[0], answer=parts[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """One line of a prompt file; exactly one of the last four is given."""

    id: str
    question: str | None = None  # goes through the chat template
    messages: tuple[dict[str, str], ...] | None = None  # so do these: role and content
    prompt: str | None = None  # raw text
    token_ids: tuple[int, ...] | None = None


PROMPT_FORMS = ("question", "messages", "prompt", "token_ids")


def read_prompts(path: str | pathlib.Path) -> list[PromptSpec]:
    """The prompts of a JSON-lines file, in its order."""
    ids, prompts = _Ids(path), []
    for line, record in read_jsonl(path):
        id = ids.claim(record, "id", line)
        where = f"{path}:{line} ({id})"
        given = [form for form in PROMPT_FORMS if record.get(form) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{where}: has {' and '.join(given) or 'none'} of {', '.join(PROMPT_FORMS)}."
                " Give exactly one."
            )
        prompts.append(PromptSpec(id=id, **{given[0]: _prompt(record, given[0], where)}))
    return _not_empty(prompts, path)


def _prompt(record: dict[str, Any], form: str, where: str) -> Any:
    if form in ("question", "prompt"):
        return _text(record, form, where)
    value = record[form]
    check = _is_message if form == "messages" else _is_token_id
    if not isinstance(value, list) or not value or not all(map(check, value)):
        shape = '[{"role": "user", "content": "..."}]' if form == "messages" else "[9707, 11]"
        raise ValueError(f"{where}: {form}={str(value)[:80]} must look like {shape}.")
    return tuple(value)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(field), str) for field in ("role", "content")
    )


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
