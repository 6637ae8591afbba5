"""Questions that must not be trained on: said twice, or asked by a benchmark.

Lives here: the rules, what they compare, and the list of all that they found. Not here: how alike
two questions are (`data/similar.py`), reading benchmarks (`data/sources.py`).

Within a set, a question is left out where an earlier one has the same words ("duplicate"), or
shares most of its three-word shingles, the same numbers and the same reference
("near-duplicate"). Numbers and reference belong to the rule: MATH has hundreds of pairs that
differ in a number, a figure or what is asked for, and are different problems.

Against a benchmark, a question is left out where
- its words are the same ("same");
- the shorter of the two has under 8 words, stands in the other in one piece, and is at least half
  of it ("contained"): an 8-gram rule never finds those;
- a run of 13 words stands in both, and in few other questions ("run"): "where m and n are
  relatively prime positive integers, find m + n" stands in many, and tells nothing; nor does a
  run that is more formula than words;
- most shingles are shared once every number is one sign ("similar"), and there are 8 words beside
  the numbers: the benchmark's question with other numbers.

Measured in `benchmarks/hygiene.py`. A question in other words altogether is found by no rule here.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from l2s_jax.data.similar import (
    numbers,
    runs,
    shingles,
    similar_pairs,
    without_numbers,
    words,
)
from l2s_jax.data.sources import JsonlProblems
from l2s_jax.types import Problem
from l2s_jax.verify.normal import spell

SHORT_WORDS = 8  # a question with fewer is compared as a whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hygiene:
    """What is left out before any teacher is asked."""

    duplicates: bool = True  # leave out what an earlier question says in the same words, or nearly
    near: float = 0.6  # similarity of near-duplicates with the same numbers and reference
    benchmarks: tuple[str, ...] = ()  # JSON lines with id, question and answer; none may be trained
    run_words: int = 13  # so many words in a row are a copy,
    run_questions: int = 5  # unless more questions than these have them
    similar: float = 0.6  # similarity to a benchmark's question whatever the numbers

    def __post_init__(self):
        for name in ("near", "similar"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(
                    f"Hygiene.{name}={value}: a similarity is above 0 and at most 1; 0.6 is usual,"
                    " and 1.0 asks for the same shingles."
                )
        if self.run_words < SHORT_WORDS or self.run_questions < 1:
            raise ValueError(
                f"Hygiene.run_words={self.run_words}, run_questions={self.run_questions}: give at"
                f" least {SHORT_WORDS} words (shorter runs are common phrases) and 1 question."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hit:
    """One reason why a question was left out. Both questions are written out, to be read."""

    id: str  # of the question that was left out
    rule: str
    other: str  # id of the question that it is like
    where: str | None  # the benchmark's file; None: this set
    similarity: float  # 1.0 where the words are the same
    question: str
    other_question: str
    references_differ: bool = False  # one of two copies has a wrong reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Known:
    """Questions of one file with all that the rules compare."""

    problems: Sequence[Problem]
    words: Sequence[tuple[str, ...]]


def clean(problems: Sequence[Problem], cfg: Hygiene) -> tuple[list[Problem], list[Hit]]:
    """The problems that may be trained on, in order, and every hit of every rule."""
    hits = list(_contaminated(problems, cfg))
    out = {hit.id for hit in hits}
    if cfg.duplicates:
        # A copy of a question that is out anyway would otherwise have no original left to drop.
        hits += _duplicates([problem for problem in problems if problem.id not in out], cfg)
    out = {hit.id for hit in hits}
    return [problem for problem in problems if problem.id not in out], hits


def _know(problems: Sequence[Problem]) -> _Known:
    return _Known(problems=problems, words=[words(problem.question) for problem in problems])


def _hit(rule: str, one: Problem, other: Problem, where: str | None, similarity: float) -> Hit:
    return Hit(
        id=one.id,
        rule=rule,
        other=other.id,
        where=where,
        similarity=round(similarity, 4),
        question=one.question,
        other_question=other.question,
        references_differ=spell(one.answer) != spell(other.answer),
    )


# ---- within the set ----


def _duplicates(problems: Sequence[Problem], cfg: Hygiene) -> list[Hit]:
    """Copies of earlier questions; each names the first one that it is like."""
    known = _know(problems)
    first: dict[tuple[str, ...], int] = {}
    hits, groups = [], collections.defaultdict(list)
    for i, said in enumerate(known.words):
        j = first.setdefault(said, i)
        if j != i:
            hits.append(_hit("duplicate", problems[i], problems[j], None, 1.0))
        else:
            groups[numbers(said), spell(problems[i].answer)].append(i)
    for members in groups.values():
        sets = [shingles(known.words[i]) for i in members]
        out: set[int] = set()
        for i, j, value in similar_pairs(sets, sets, cfg.near) if len(members) > 1 else ():
            # The copy of a copy is no reason to drop it, or a chain of small changes loses all.
            if j < i and i not in out and j not in out:
                out.add(i)
                pair = problems[members[i]], problems[members[j]]
                hits.append(_hit("near-duplicate", *pair, None, value))
    return hits


# ---- against benchmarks ----


def _contaminated(problems: Sequence[Problem], cfg: Hygiene) -> Iterator[Hit]:
    known = _know(problems) if cfg.benchmarks else None
    for path in cfg.benchmarks:
        assert known is not None
        asked = _know(JsonlProblems(path=path, level=None).load())
        found: dict[tuple[int, int], tuple[str, float]] = {}
        rules = (_same(known, asked), _contained(known, asked), _runs(known, asked, cfg))
        for rule in (*rules, _similar(known, asked, cfg.similar)):
            for pair, name, value in rule:
                found.setdefault(pair, (name, value))
        for i, j in sorted(found):
            yield _hit(found[i, j][0], problems[i], asked.problems[j], path, found[i, j][1])


Found = Iterator[tuple[tuple[int, int], str, float]]


def _same(ours: _Known, theirs: _Known) -> Found:
    places: Mapping[tuple[str, ...], list[int]] = _places(theirs, lambda said: [said])
    for i, said in enumerate(ours.words):
        for j in places.get(said, ()):
            yield (i, j), "same", 1.0


def _contained(ours: _Known, theirs: _Known) -> Found:
    """Pairs whose shorter question is short, and stands whole in a longer one of twice its words
    at most."""
    for inner, outer, turn in ((theirs, ours, False), (ours, theirs, True)):
        short = [said for said in inner.words if 0 < len(said) < SHORT_WORDS]
        lengths = {len(said) for said in short}
        places = _places(inner, lambda said: [" ".join(said)] if len(said) < SHORT_WORDS else [])
        for i, said in enumerate(outer.words):
            for length in lengths:
                if not length < len(said) <= 2 * length:
                    continue
                for j in {j for run in runs(said, length) for j in places.get(run, ())}:
                    yield ((j, i) if turn else (i, j)), "contained", length / len(said)


def _runs(ours: _Known, theirs: _Known, cfg: Hygiene) -> Found:
    """Pairs with a run of words in common that few questions have."""

    def cut(said: tuple[str, ...]) -> list[str]:
        return [run for run in runs(said, cfg.run_words) if _is_prose(run)]

    places, asked = _places(ours, cut), _places(theirs, cut)
    for run, those in asked.items():
        holders = places.get(run, [])
        if 0 < len(holders) <= cfg.run_questions and len(those) <= cfg.run_questions:
            for i in holders:
                for j in those:
                    shorter = min(len(ours.words[i]), len(theirs.words[j]))
                    yield (i, j), "run", cfg.run_words / shorter


def _is_prose(run: str) -> bool:
    """True where half of the pieces are words: 13 pieces of a formula or figure are soon alike."""
    pieces = run.split()
    return 2 * _num_prose(pieces) >= len(pieces)


def _num_prose(said: Sequence[str]) -> int:
    """How many are words rather than numbers, signs and names of variables."""
    return sum(len(piece) > 1 and piece.isalpha() for piece in said)


def _similar(ours: _Known, theirs: _Known, threshold: float) -> Found:
    def sets(known: _Known) -> list[frozenset[str]]:
        # "What is 3 + 4?" is no copy of "What is 5 + 6?": numbers may differ only where words
        # enough are left that say what is asked.
        return [
            shingles(without_numbers(said)) if _num_prose(said) >= SHORT_WORDS else frozenset()
            for said in known.words
        ]

    for i, j, value in similar_pairs(sets(ours), sets(theirs), threshold):
        yield (i, j), "similar", value


def _places(known: _Known, cut: Any) -> dict[Any, list[int]]:
    """Piece → the questions that have it, in order, each once."""
    places: dict[Any, list[int]] = collections.defaultdict(list)
    for i, said in enumerate(known.words):
        for piece in dict.fromkeys(cut(said)):
            places[piece].append(i)
    return places
