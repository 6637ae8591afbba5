"""Teachers' traces in, verified items out: rejection sampling as a run.

Lives here: the run's config, its loop and its summary. Not here: the teachers (`data`), whether an
answer is right (`verify`), which trace is kept (`curation/select.py`), the files (`data/store.py`).

A run holds its result in memory and writes it at the end, so a kill leaves no half of one, and the
same command starts again from the first problem. Recorded and rule-based teachers are quick enough
for that: 4,074 traces take seconds.
"""

import collections
import dataclasses
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from l2s_jax.curation.select import Choice, select, take_first
from l2s_jax.data.arithmetic import ArithmeticTeachers, make_tokenizer
from l2s_jax.data.sources import RecordedTraces, Teachers
from l2s_jax.data.store import replace_file, write_items
from l2s_jax.tokens.tokenizer import load_tokenizer
from l2s_jax.types import Item, Problem, Trace, Verdict
from l2s_jax.verify.answers import answer_or_text
from l2s_jax.verify.math import Verifier

CHUNK = 64  # problems between two looks at the progress bar; large enough to keep workers busy

NumTokens = Callable[[str], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurateRun:
    """Long and short traces of the same problems → items."""

    source: ArithmeticTeachers | RecordedTraces
    tokenizer: str | None  # folder of the student's; None: the arithmetic world's own
    num_candidates: int = 8  # k, short candidates per problem
    verify: bool = True  # False: the first short candidate as it is (the ablation k = 0)
    num_workers: int = 2  # processes for what is not decided as text or numbers
    verify_seconds: float = 5.0  # bound on one symbolic decision
    max_items: int | None = None  # None: all

    def __post_init__(self):
        if self.num_candidates < 1:
            raise ValueError(
                f"CurateRun.num_candidates={self.num_candidates}: no short path can be found."
                " Give at least 1; for the ablation k = 0 set verify=false."
            )
        if self.num_workers < 1 or not self.verify_seconds > 0:
            raise ValueError(
                f"CurateRun.num_workers={self.num_workers}, verify_seconds={self.verify_seconds}:"
                " both must be above zero; 2 and 5.0 are usual."
            )
        if self.max_items is not None and self.max_items < 1:
            raise ValueError(f"CurateRun.max_items={self.max_items}: at least 1, or null for all.")
        if self.tokenizer is None and not isinstance(self.source, ArithmeticTeachers):
            raise ValueError(
                "CurateRun.tokenizer=null: the arithmetic world's tokenizer reads no prose. Give"
                " the folder of the student's tokenizer."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """One problem with its traces, their verdicts, and their lengths in student tokens."""

    problem: Problem
    long: Trace | None
    long_verdict: Verdict | None
    shorts: tuple[Trace, ...]
    verdicts: tuple[Verdict, ...]
    num_tokens: tuple[int, ...]

    def choose(self, verify: bool) -> Choice:
        if not verify:
            return take_first(self.problem, self.long, self.long_verdict, self.shorts)
        found = (self.shorts, self.verdicts, self.num_tokens)
        return select(self.problem, self.long, self.long_verdict, *found)


def run(cfg: CurateRun, workdir: str | pathlib.Path) -> None:
    """Writes `items/` and `summary.json` into `workdir`."""
    workdir, start = pathlib.Path(workdir), time.monotonic()
    tokenizer = make_tokenizer() if cfg.tokenizer is None else load_tokenizer(cfg.tokenizer)

    def num_tokens(text: str) -> int:
        return len(tokenizer.encode(text))

    problems = cfg.source.load()
    judged: list[Judged] = []
    items: list[Item] = []
    reasons: collections.Counter[str] = collections.Counter()
    with Verifier(cfg.num_workers, cfg.verify_seconds) as verifier:
        for one in _judge_all(cfg, problems, verifier, num_tokens):
            item, why = one.choose(cfg.verify)
            judged.append(one)
            reasons += why
            items += [] if item is None else [item]
            if len(items) == cfg.max_items:
                break
    if not items:
        raise ValueError(
            f"none of {len(judged)} problems gave an item; reasons: {dict(reasons)}. If all long"
            " answers are missing, the long teacher's texts end without a \\boxed{} answer."
        )
    summary = summarise(judged, items, reasons, num_tokens)
    write_items(workdir / "items", items, meta={"tokenizer": cfg.tokenizer, "summary": summary})
    seconds = round(time.monotonic() - start, 2)
    report = json.dumps(summary | {"seconds": seconds}, indent=2)
    replace_file(workdir / "summary.json", report.encode())
    easy = f"{summary['num_easy']} EASY ({summary['easy_share']:.1%})"
    print(f"{len(items)} items, {easy}, {seconds} s → {workdir / 'items'}", file=sys.stderr)


def _judge_all(
    cfg: CurateRun, problems: Sequence[Problem], verifier: Verifier, num_tokens: NumTokens
) -> Iterator[Judged]:
    with tqdm(total=len(problems), desc="curate", unit="problem", file=sys.stderr) as bar:
        for start in range(0, len(problems), CHUNK):
            chunk = problems[start : start + CHUNK]
            for one in _judge(cfg, cfg.source, chunk, verifier, num_tokens):
                yield one
                bar.update()


def _judge(
    cfg: CurateRun,
    teachers: Teachers,
    problems: Sequence[Problem],
    verifier: Verifier,
    num_tokens: NumTokens,
) -> list[Judged]:
    """Asks the teachers on a few problems and verifies all their traces at once."""
    longs = [teachers.long(problem) for problem in problems]
    shorts = [tuple(teachers.short_candidates(p, cfg.num_candidates)) for p in problems]
    pairs: list[tuple[str, str | None]] = []
    for problem, long, candidates in zip(problems, longs, shorts, strict=True):
        traces = [*([] if long is None else [long]), *(candidates if cfg.verify else ())]
        pairs += [(problem.answer, answer_or_text(trace.answer)) for trace in traces]
    verdicts = iter(verifier.equivalent_many(pairs))
    return [
        Judged(
            problem=problem,
            long=long,
            long_verdict=None if long is None else next(verdicts),
            shorts=candidates,
            verdicts=tuple(next(verdicts) for _ in candidates) if cfg.verify else (),
            num_tokens=tuple(num_tokens(t.thought) + num_tokens(t.answer) for t in candidates),
        )
        for problem, long, candidates in zip(problems, longs, shorts, strict=True)
    ]


def summarise(
    judged: Sequence[Judged],
    items: Sequence[Item],
    reasons: collections.Counter[str],
    num_tokens: NumTokens,
) -> dict[str, Any]:
    """What a person wants to know of an item set, as JSON. Tokens are the student's."""
    by_level = collections.defaultdict(list)
    for item in items:
        by_level["none" if item.level is None else str(item.level)].append(item.is_easy)
    easy = [item for item in items if item.is_easy]
    long = {item.id: num_tokens(item.long) + num_tokens(item.long_answer) for item in items}
    short = [num_tokens(item.short or "") + num_tokens(item.short_answer or "") for item in easy]
    return {
        "num_problems": len(judged),
        "num_items": len(items),
        "num_easy": len(easy),
        "easy_share": _share([item.is_easy for item in items]),
        "easy_share_by_level": {level: _share(easies) for level, easies in by_level.items()},
        "acceptance_by_teacher": _acceptance(judged),
        "rejections": dict(reasons.most_common()),
        "tokens": {
            "long": _spread(list(long.values())),
            "long_of_easy": _spread([long[item.id] for item in easy]),
            "short": _spread(short),
        },
        # The method asks only for a right short path. One that saves nothing deserves a look.
        "num_short_not_shorter": sum(
            length >= long[item.id] for item, length in zip(easy, short, strict=True)
        ),
    }


def _acceptance(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """Per teacher: traces that were verified, how many were right, and the share."""
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for one in judged:
        if one.long is not None and one.long_verdict is not None:
            right[one.long.teacher].append(one.long_verdict.equivalent)
        for trace, verdict in zip(one.shorts, one.verdicts, strict=False):
            right[trace.teacher].append(verdict.equivalent)
    return {
        teacher: {"tried": len(made), "right": sum(made), "share": _share(made)}
        for teacher, made in right.items()
    }


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _spread(lengths: Sequence[int]) -> dict[str, float | None]:
    return {
        "mean": float(statistics.mean(lengths)) if lengths else None,
        "median": float(statistics.median(lengths)) if lengths else None,
    }
