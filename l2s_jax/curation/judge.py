"""Teachers asked and their traces verified, a few problems at a time.

Lives here: the traces of a problem with their verdicts and lengths. Not here: which of them are
kept (`curation/select.py`), whether an answer is right (`verify`), the run (`curation/reject.py`).
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from l2s_jax.curation.select import Choice, select, take_first
from l2s_jax.data.sources import Teachers
from l2s_jax.types import Problem, Trace, Verdict
from l2s_jax.verify.answers import answer_or_text
from l2s_jax.verify.math import Verifier
from l2s_jax.verify.second import second_opinion

CHUNK = 64  # problems between two looks at the progress bar; large enough to keep workers busy

NumTokens = Callable[[str], int]
Pair = tuple[str, str | None]  # reference and prediction
Decide = Callable[[Sequence[Pair]], list[Verdict]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """One problem with its traces, their verdicts, and their lengths in student tokens."""

    problem: Problem
    long: Trace | None
    long_verdict: Verdict | None
    long_tokens: int | None
    shorts: tuple[Trace, ...]
    verdicts: tuple[Verdict, ...]  # none where the candidates were not verified
    num_tokens: tuple[int, ...]  # of each candidate

    @property
    def choice(self) -> Choice:
        """What is kept of it."""
        if len(self.verdicts) < len(self.shorts):
            return take_first(self.problem, self.long, self.long_verdict, self.shorts)
        found = (self.shorts, self.verdicts, self.num_tokens)
        return select(self.problem, self.long, self.long_verdict, *found)


def decide_twice(verifier: Verifier, pairs: Sequence[Pair]) -> list[Verdict]:
    """The verifier's verdicts; one that the second opinion contradicts is "disputed", not right.

    A false accept teaches a wrong short path, a false reject costs one candidate: where the two
    implementations disagree, the trace is not worth the risk.
    """
    return [
        dataclasses.replace(verdict, equivalent=False, reason="disputed")
        if verdict.equivalent and second_opinion(gold, prediction or "") is False
        else verdict
        for (gold, prediction), verdict in zip(pairs, verifier.equivalent_many(pairs), strict=True)
    ]


def judge_all(
    teachers: Teachers,
    problems: Sequence[Problem],
    k: int,
    decide: Decide,
    num_tokens: NumTokens,
) -> Iterator[Judged]:
    """Every problem judged, in order; `k` = 0 asks for one short candidate and verifies none."""
    with tqdm(total=len(problems), desc="curate", unit="problem", file=sys.stderr) as bar:
        for start in range(0, len(problems), CHUNK):
            chunk = problems[start : start + CHUNK]
            for one in _judge(teachers, chunk, k, decide, num_tokens):
                yield one
                bar.update()


def _judge(
    teachers: Teachers,
    problems: Sequence[Problem],
    k: int,
    decide: Decide,
    num_tokens: NumTokens,
) -> list[Judged]:
    """Asks the teachers on a few problems and verifies all their traces at once."""
    longs = [teachers.long(problem) for problem in problems]
    shorts = [tuple(teachers.short_candidates(problem, max(k, 1))) for problem in problems]
    pairs: list[Pair] = []
    for problem, long, candidates in zip(problems, longs, shorts, strict=True):
        traces = [*([] if long is None else [long]), *(candidates if k else ())]
        pairs += [(problem.answer, answer_or_text(trace.answer)) for trace in traces]
    verdicts = iter(decide(pairs))

    def verdict(trace: Trace) -> Verdict:
        found = next(verdicts)
        cut = dataclasses.replace(found, equivalent=False, reason="cut")
        return cut if trace.is_cut else found

    def length(trace: Trace) -> int:
        return num_tokens(trace.thought) + num_tokens(trace.answer)

    return [
        Judged(
            problem=problem,
            long=long,
            long_verdict=None if long is None else verdict(long),
            long_tokens=None if long is None else length(long),
            shorts=candidates,
            verdicts=tuple(map(verdict, candidates)) if k else (),
            num_tokens=tuple(map(length, candidates)),
        )
        for problem, long, candidates in zip(problems, longs, shorts, strict=True)
    ]
