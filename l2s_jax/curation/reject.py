"""Teachers' traces in, verified items out: rejection sampling as a run.

Lives here: the run's config, its loop and what it writes. Not here: the teachers (`data`), asking
them and verifying (`curation/judge.py`), which trace is kept (`curation/select.py`), what is left
out beforehand (`curation/hygiene.py`), counting (`curation/summary.py`), the files
(`data/store.py`, `curation/dataset.py`).

A run holds its result in memory and writes it at the end, so a kill leaves no half of one, and the
same command starts again from the first problem. Recorded and rule-based teachers are quick enough
for that: 4,074 traces take seconds. What teachers that are asked have answered stays in the ledger
(`curation/ledger.py`), and is not asked again.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from l2s_jax.config import to_json
from l2s_jax.curation.asking import AskedTeachers
from l2s_jax.curation.dataset import dataset_card, write_dataset
from l2s_jax.curation.hygiene import Hygiene, clean
from l2s_jax.curation.judge import Decide, Judged, decide_twice, judge_all
from l2s_jax.curation.select import Choice, keep_regular
from l2s_jax.curation.summary import question_record, summarise
from l2s_jax.data.arithmetic import ArithmeticTeachers, make_tokenizer
from l2s_jax.data.jsonl import refuse
from l2s_jax.data.recorded import PublishedTraces, RecordedTraces
from l2s_jax.data.sources import Teachers
from l2s_jax.data.store import replace_file, write_items
from l2s_jax.tokens.tokenizer import load_tokenizer
from l2s_jax.types import Problem, Trace
from l2s_jax.verify.answers import answer_or_text
from l2s_jax.verify.math import Verifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurateRun:
    """Long and short traces of the same problems → items."""

    source: ArithmeticTeachers | RecordedTraces | PublishedTraces | AskedTeachers
    tokenizer: str | None  # folder of the student's; None: the arithmetic world's own
    num_candidates: int = 8  # k, short candidates per problem; 0: the first as it is, unverified
    min_regular_share: float = 0.05  # of each difficulty's items, so that <LONG> is trained on all
    hygiene: Hygiene = Hygiene()
    num_workers: int = 2  # processes for what is not decided as text or numbers
    verify_seconds: float = 5.0  # bound on one symbolic decision
    second_opinion: bool = True  # where it calls a right answer wrong, the trace is left out
    max_items: int | None = None  # None: all
    bad_lines: Literal["report", "skip"] = "report"  # report: exit code 2 once the rest is done

    def __post_init__(self):
        if self.num_candidates < 0:
            raise ValueError(
                f"CurateRun.num_candidates={self.num_candidates}: give the number of short"
                " candidates; 0 takes one unverified (the ablation k = 0)."
            )
        if not 0 <= self.min_regular_share < 1:
            raise ValueError(
                f"CurateRun.min_regular_share={self.min_regular_share}: a share of the items, from"
                " 0 up to below 1; 0.05 is usual, 0 is the paper's."
            )
        if self.num_workers < 1 or not self.verify_seconds > 0:
            raise ValueError(
                f"CurateRun.num_workers={self.num_workers}, verify_seconds={self.verify_seconds}:"
                " both must be above zero; 2 and 5.0 are usual."
            )
        if self.max_items is not None and self.max_items < 1:
            raise ValueError(f"CurateRun.max_items={self.max_items}: at least 1, or null for all.")
        if self.max_items is not None and isinstance(self.source, AskedTeachers):
            raise ValueError(
                f"CurateRun.max_items={self.max_items}: teachers are asked about every problem"
                " before one is judged. Ask about fewer: source.problems.limit."
            )
        if self.tokenizer is None and not isinstance(self.source, ArithmeticTeachers):
            raise ValueError(
                "CurateRun.tokenizer=null: the arithmetic world's tokenizer reads no prose. Give"
                " the folder of the student's tokenizer."
            )


def run(cfg: CurateRun, workdir: str | pathlib.Path) -> None:
    """Writes into `workdir`: `items/`, `dataset/`, `summary.json`, and what was left out and why
    (`questions.jsonl`, `hygiene.jsonl`, `bad_lines.jsonl`).

    Where lines of the source could not be read, the rest is curated all the same, and FaultyLines
    is raised at the end, unless `bad_lines` accepts them.
    """
    workdir, start = pathlib.Path(workdir), time.monotonic()
    problems, hits = clean(cfg.source.load(), cfg.hygiene)
    left_out = cfg.source.left_out()
    if not problems:
        raise ValueError(
            f"hygiene leaves out every problem; the first: {hits[0].id} is like {hits[0].other}"
            f" ({hits[0].rule}). Set hygiene.benchmarks or hygiene.duplicates otherwise."
        )
    judged = _judge_until(cfg, problems, workdir)
    choices = [one.choice for one in judged]
    items = [choice.item for choice in choices if choice.item is not None]
    if not items:
        raise ValueError(_no_item(choices))
    items = keep_regular(items, cfg.min_regular_share)
    by_id = {item.id: item for item in items}
    records = [
        question_record(one, choice, by_id.get(one.problem.id))
        for one, choice in zip(judged, choices, strict=True)
    ]
    summary = summarise(judged, records, hits, left_out)
    workdir.mkdir(parents=True, exist_ok=True)
    _write_lines(workdir / "questions.jsonl", records)
    _write_lines(workdir / "hygiene.jsonl", [dataclasses.asdict(hit) for hit in hits])
    _write_lines(workdir / "bad_lines.jsonl", [dataclasses.asdict(f) for f in left_out.faults])
    write_dataset(workdir / "dataset", items, records, dataset_card(summary, to_json(cfg)))
    write_items(workdir / "items", items, meta={"tokenizer": cfg.tokenizer, "summary": summary})
    seconds = round(time.monotonic() - start, 2)
    report = json.dumps(summary | {"seconds": seconds}, indent=2)
    replace_file(workdir / "summary.json", report.encode())
    _tell(summary, seconds, workdir)
    if cfg.bad_lines == "report":
        rest = f"all else is done ({workdir / 'items'} is complete without them)"
        fix = "mend them, or accept that beforehand with bad_lines=skip"
        refuse(left_out.faults, f"{rest}; {fix}.")


def _judge_until(
    cfg: CurateRun, problems: Sequence[Problem], workdir: pathlib.Path
) -> list[Judged]:
    """The problems judged, in order, up to the one that completes `max_items`."""
    tokenizer = make_tokenizer() if cfg.tokenizer is None else load_tokenizer(cfg.tokenizer)

    def num_tokens(text: str) -> int:
        return len(tokenizer.encode(text))

    judged, num_items = [], 0
    with Verifier(cfg.num_workers, cfg.verify_seconds) as verifier:
        decide = functools.partial(decide_twice, verifier)
        if not cfg.second_opinion:
            decide = verifier.equivalent_many
        teachers = _teachers(cfg, problems, workdir, decide)
        for one in judge_all(teachers, problems, cfg.num_candidates, decide, num_tokens):
            judged.append(one)
            num_items += one.choice.item is not None
            if num_items == cfg.max_items:
                break
    return judged


def _teachers(
    cfg: CurateRun, problems: Sequence[Problem], workdir: pathlib.Path, decide: Decide
) -> Teachers:
    """The source, with all its answers there; what asking has cost is in `teachers.json`."""
    if not isinstance(cfg.source, AskedTeachers):
        return cfg.source

    def is_right(problem: Problem, trace: Trace) -> bool:
        if trace.is_cut:
            return False
        return decide([(problem.answer, answer_or_text(trace.answer))])[0].equivalent

    answered = cfg.source.ask(problems, max(cfg.num_candidates, 1), workdir, is_right)
    bills = json.dumps([bill.record() for bill in answered.bills], indent=2)
    replace_file(workdir / "teachers.json", bills.encode())
    return answered


def _no_item(choices: Sequence[Choice]) -> str:
    reasons = sum((choice.reasons for choice in choices), start=collections.Counter())
    return (
        f"none of {len(choices)} problems gave an item; reasons: {dict(reasons)}. If all long"
        " answers are missing, the long teacher's texts end without a \\boxed{} answer."
    )


def _write_lines(path: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    replace_file(path, "".join(lines).encode())


def _tell(summary: Mapping[str, Any], seconds: float, workdir: pathlib.Path) -> None:
    easy = f"{summary['num_easy']} EASY ({summary['easy_share']:.1%})"
    out, bad = summary["hygiene"]["questions"], summary["num_bad_lines"]
    more = f", {out} questions left out as copies" if out else ""
    more += f", {bad} bad lines left out" if bad else ""
    more += "".join(f", {number} {what}" for what, number in summary["unused_rows"].items())
    told = f"{summary['num_items']} items, {easy}{more}, {seconds} s → {workdir / 'items'}"
    print(told, file=sys.stderr)
