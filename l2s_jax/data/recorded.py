"""Traces that were recorded before, as teachers of a curation.

Lives here: a file of traces of several models on the same questions, and data sets in the layouts
of Bespoke-Stratos-17k and OpenThoughts. Not here: how rows are stored (`data/rows.py`), how a text
is cut into thought and answer (`data/traces.py`), what a published row says (`data/published.py`).

A row that cannot be used as it should is left out by itself: `left_out` names it, and the rest
counts. Any verdict that a file carries is left unread.
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from l2s_jax.data.fields import not_empty, problem_of, text_of
from l2s_jax.data.jsonl import Fault
from l2s_jax.data.published import read_openthoughts, read_stratos
from l2s_jax.data.rows import scan_rows
from l2s_jax.data.similar import words
from l2s_jax.data.sources import LeftOut
from l2s_jax.data.traces import cut_long, cut_short
from l2s_jax.types import Problem, Trace
from l2s_jax.verify.normal import spell

Rows = dict[tuple[str, str], list[dict[str, Any]]]  # by question and model, in file order


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedTraces:
    """Traces of several models on the same questions; implements `Teachers`.

    A row holds `id`, `qid` (of the question), `question`, `answer` (the reference), `model`,
    `kind` ("long" or "short") and `response`; `final_start`, the offset where a long response's
    answer text begins; `level` where known.
    """

    path: str  # JSON lines, parquet, a folder, or hf:owner/name (`data/rows.py`)
    long_teacher: str  # model; its first response on a question counts
    short_teachers: tuple[str, ...] | None = None  # in the order of trial; None: all short ones

    def load(self) -> list[Problem]:
        return list(self._content.problems.values())

    def left_out(self) -> LeftOut:
        return LeftOut(faults=self._content.faults)

    def long(self, problem: Problem) -> Trace | None:
        for row in self._content.rows.get((problem.id, self.long_teacher), []):
            return _trace(row, cut_long(row["response"], row.get("final_start") or 0))
        return None

    def short_candidates(self, problem: Problem, k: int) -> list[Trace]:
        return self._content.shorts(problem.id, self._short_teachers, k)

    @functools.cached_property
    def _content(self) -> "_Content":
        content = _read_traces(self.path)
        _must_hold_some(content.problems, content.faults, self.path)
        content.must_know("RecordedTraces.long_teacher", self.long_teacher, "long", self.path)
        for name in self.short_teachers or ():
            content.must_know("RecordedTraces.short_teachers", name, "short", self.path)
        return content

    @property
    def _short_teachers(self) -> tuple[str, ...]:
        return self.short_teachers or self._content.all_short


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedTraces:
    """Long traces of a published data set, short ones of a file of yours; implements `Teachers`.

    Where the set has no reference of its own (Bespoke-Stratos-17k, the default configuration of
    OpenThoughts-114k), the boxed answer of the trace, which its makers verified, is taken for it:
    short candidates are held against that, and the long trace is right by definition. Rows without
    such an answer (code, proofs) are counted and left out, and so are further rows on a question.

    `shorts` holds rows as `RecordedTraces` reads them. They belong to the question of the same
    words; `qid` may be anything.
    """

    path: str  # JSON lines, parquet, a folder, or hf:owner/name (`data/rows.py`)
    layout: Literal["stratos", "openthoughts"]
    long_teacher: str = "deepseek-ai/DeepSeek-R1"  # who wrote the long traces
    shorts: str | None = None  # None: every item will be regular
    short_teachers: tuple[str, ...] | None = None  # in the order of trial; None: all
    limit: int | None = None  # the first so many questions

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ValueError(
                f"PublishedTraces.limit={self.limit}: give at least 1, or null for all."
            )

    def load(self) -> list[Problem]:
        return list(self._long.problems.values())

    def left_out(self) -> LeftOut:
        shorts = () if self._short is None else self._short.faults
        return LeftOut(faults=(*self._long.faults, *shorts), counts=self._long.counts)

    def long(self, problem: Problem) -> Trace | None:
        thought, answer = self._long.texts[problem.id]
        if not thought or not answer:
            return None
        return Trace(
            problem_id=problem.id, teacher=self.long_teacher, thought=thought, answer=answer
        )

    def short_candidates(self, problem: Problem, k: int) -> list[Trace]:
        if self._short is None:
            return []
        teachers = self.short_teachers or self._short.all_short
        traces = (
            trace
            for qid in self._qids.get(words(problem.question), ())
            for trace in self._short.shorts(qid, teachers, k)
        )
        return [dataclasses.replace(trace, problem_id=problem.id) for trace in traces][:k]

    @functools.cached_property
    def _long(self) -> "_Published":
        return _read_published(self.path, self.layout, self.limit)

    @functools.cached_property
    def _short(self) -> "_Content | None":
        if self.shorts is None:
            return None
        content = _read_traces(self.shorts)
        for name in self.short_teachers or ():
            content.must_know("PublishedTraces.short_teachers", name, "short", self.shorts)
        return content

    @functools.cached_property
    def _qids(self) -> dict[tuple[str, ...], list[str]]:
        found: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
        assert self._short is not None
        for problem in self._short.problems.values():
            found[words(problem.question)].append(problem.id)
        return found


# ---- our own layout ----


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Content:
    problems: dict[str, Problem]
    rows: Rows
    kinds: dict[str, str]  # model → "long" or "short"
    faults: tuple[Fault, ...]

    @property
    def all_short(self) -> tuple[str, ...]:
        return tuple(name for name, kind in self.kinds.items() if kind == "short")

    def shorts(self, qid: str, teachers: Iterable[str], k: int) -> list[Trace]:
        rows = (row for name in teachers for row in self.rows.get((qid, name), []))
        traces = (_trace(row, cut_short(row["response"])) for row in rows)
        return [trace for trace in traces if trace is not None][:k]

    def must_know(self, field: str, name: str, kind: str, path: str) -> None:
        if self.kinds.get(name) != kind:
            known = ", ".join(sorted(model for model, k in self.kinds.items() if k == kind))
            raise ValueError(
                f"{field}: {name!r} wrote no {kind} trace in {path}. Those who did:"
                f" {known or 'nobody'}."
            )


def _read_traces(path: str) -> _Content:
    problems: dict[str, Problem] = {}
    rows: Rows = collections.defaultdict(list)
    kinds: dict[str, str] = {}
    places: dict[str, str] = {}  # of each id
    faults: list[Fault] = []
    for where, record in scan_rows(path):
        if isinstance(record, Fault):
            faults.append(record)
            continue
        try:
            id, problem, model, kind = _check(record, where, problems, kinds, places)
        except ValueError as error:
            faults.append(Fault(str(error)))
            continue
        # Only a row that is sound throughout stands for its id, its question and its model.
        places[id], kinds[model] = where, kind
        problems.setdefault(problem.id, problem)
        rows[problem.id, model].append(record | {"qid": problem.id})
    return _Content(problems=problems, rows=dict(rows), kinds=kinds, faults=tuple(faults))


def _check(
    record: dict[str, Any],
    where: str,
    problems: dict[str, Problem],
    kinds: dict[str, str],
    places: dict[str, str],
) -> tuple[str, Problem, str, str]:
    """(id, problem, model, kind) of a row; ValueError where something is wrong with it."""
    id = text_of(record, "id", where)
    if id in places:
        raise ValueError(f"{where}: id {id!r} was used at {places[id]} already. Give each its own.")
    where = f"{where} ({id})"
    fields = {"question": "question", "answer": "answer", "level": "level"}
    problem = problem_of(record, text_of(record, "qid", where), where, **fields)
    _check_reference(problem.answer, where)
    if problems.get(problem.id, problem) != problem:
        raise ValueError(
            f"{where}: question, answer or level differ from an earlier line with qid"
            f" {problem.id!r}. One qid means one question: give this one another."
        )
    model, kind = text_of(record, "model", where), record.get("kind")
    if kind not in ("long", "short") or kinds.get(model, kind) != kind:
        raise ValueError(
            f'{where}: kind={kind!r} of model {model!r} must be "long" or "short", and the'
            " same on all of its lines."
        )
    _check_response(record, where)
    return id, problem, model, str(kind)


def _check_reference(answer: str, where: str) -> None:
    bare = answer.replace(r"\{", "").replace(r"\}", "")
    if bare.count("{") != bare.count("}"):
        raise ValueError(f"{where}: answer={answer!r} does not parse: a brace has no partner.")
    if spell(answer).casefold() in ("", "nan"):
        raise ValueError(f"{where}: answer={answer!r} is no answer (a missing value written out?).")


def _check_response(record: dict[str, Any], where: str) -> None:
    response, start = text_of(record, "response", where), record.get("final_start")
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


def _must_hold_some(problems: dict[str, Problem], faults: Sequence[Fault], path: str) -> None:
    if not problems and faults:
        raise ValueError(f"no line can be used; the first: {faults[0].message}")
    not_empty(list(problems), path)


# ---- published layouts ----


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Published:
    problems: dict[str, Problem]
    texts: dict[str, tuple[str, str]]  # thought and answer text by problem
    faults: tuple[Fault, ...]
    counts: dict[str, int]


def _read_published(path: str, layout: str, limit: int | None) -> _Published:
    read = {"stratos": read_stratos, "openthoughts": read_openthoughts}[layout]
    problems: dict[str, Problem] = {}
    texts: dict[str, tuple[str, str]] = {}
    faults: list[Fault] = []
    counts = {"without-reference": 0, "further-row-on-a-question": 0}
    for where, record in scan_rows(path):
        if len(problems) == limit:
            break
        if isinstance(record, Fault):
            faults.append(record)
            continue
        try:
            row = read(record, where)
            if row.reference is not None:
                _check_reference(row.reference, where)
        except ValueError as error:
            faults.append(Fault(str(error)))
            continue
        id = f"{layout}-{_digest(row.question)}"
        if row.reference is None:
            counts["without-reference"] += 1
        elif id in problems:
            counts["further-row-on-a-question"] += 1
        else:
            problems[id] = Problem(id=id, question=row.question, answer=row.reference)
            texts[id] = row.thought, row.answer
    _must_hold_some(problems, faults, path)
    return _Published(problems=problems, texts=texts, faults=tuple(faults), counts=counts)


def _digest(question: str) -> str:
    """An id that row order, splits and filters leave as it is."""
    return hashlib.sha256(" ".join(question.split()).encode()).hexdigest()[:12]
