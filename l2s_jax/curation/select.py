"""Which traces become an item, and why the others do not. Pure.

Lives here: the choice among verified traces of one problem. Not here: asking teachers and
verifying (`curation/reject.py`).

Source: AutoL2S (arXiv 2505.22662), stage 1: of the k short candidates the shortest right one is
kept; a problem that has one becomes an EASY item, any other a regular item. Ours, as the paper
starts from verified long traces: a problem whose long trace is missing or wrong gives no item.

Reasons, counted over traces: "wrong:<verdict reason>" and "no-answer" (short candidates that are
not right), "longer" (right, but another is shorter), "long-missing", "long-no-answer",
"long-wrong:<verdict reason>" (the problem is dropped).
"""

import collections
from collections.abc import Sequence

from l2s_jax.types import Item, Problem, Trace, Verdict

Choice = tuple[Item | None, collections.Counter[str]]


def select(
    problem: Problem,
    long: Trace | None,
    long_verdict: Verdict | None,
    candidates: Sequence[Trace],
    verdicts: Sequence[Verdict],
    num_tokens: Sequence[int],
) -> Choice:
    """The item of one problem, or None, and the reasons for every trace left out.

    Args:
      long_verdict: of the long trace; None only where there is no trace.
      verdicts: one per candidate.
      num_tokens: of each candidate, thought and answer text, in student tokens. Among equals the
        first is kept.
    """
    reasons = collections.Counter(
        _reason("wrong", verdict) for verdict in verdicts if not verdict.equivalent
    )
    right = [i for i, verdict in enumerate(verdicts) if verdict.equivalent]
    reasons["longer"] += max(len(right) - 1, 0)
    shortest = min(right, key=lambda i: num_tokens[i]) if right else None
    short = None if shortest is None else candidates[shortest]
    item = _item(problem, long, long_verdict, short, len(verdicts), len(right), reasons)
    return item, +reasons


def take_first(
    problem: Problem, long: Trace | None, long_verdict: Verdict | None, candidates: Sequence[Trace]
) -> Choice:
    """As `select`, but with the first candidate as it is: the paper's ablation k = 0.

    The paper does not say what k = 0 means; "one unverified sample" is the reading here.
    """
    reasons: collections.Counter[str] = collections.Counter()
    short = candidates[0] if candidates else None
    item = _item(problem, long, long_verdict, short, 0, 0, reasons)
    return item, reasons


def _item(
    problem: Problem,
    long: Trace | None,
    long_verdict: Verdict | None,
    short: Trace | None,
    num_trials: int,
    num_right: int,
    reasons: collections.Counter[str],
) -> Item | None:
    if long is None or long_verdict is None:
        reasons["long-missing"] += 1
        return None
    if not long_verdict.equivalent:
        reasons[_reason("long-wrong", long_verdict)] += 1
        return None
    return Item(
        id=problem.id,
        question=problem.question,
        reference=problem.answer,
        long=long.thought,
        long_answer=long.answer,
        short=None if short is None else short.thought,
        short_answer=None if short is None else short.answer,
        level=problem.level,
        num_trials=num_trials,
        num_right=num_right,
    )


def _reason(kind: str, verdict: Verdict) -> str:
    if verdict.reason == "no-answer":
        return kind.replace("wrong", "no-answer")
    return f"{kind}:{verdict.reason}"
