"""Which traces become an item, and why the others do not. Pure.

Lives here: the choice among verified traces of one problem, and which EASY items stay regular
ones. Not here: asking teachers and verifying (`curation/reject.py`).

Source: AutoL2S (arXiv 2505.22662), stage 1: of the k short candidates the shortest right one is
kept; a problem that has one becomes an EASY item, any other a regular item. Ours, as the paper
starts from verified long traces: a problem whose long trace is missing or wrong gives no item.
Also ours: some items stay regular although a short path is known (`keep_regular`).

Fates of a short candidate: "kept"; "wrong:<verdict reason>", "no-answer" and "cut" (at its budget);
"longer" (right, but another is shorter); "no-item" (the one to keep, of a problem that is dropped).
A problem is dropped as "long-missing", "long-no-answer", "long-cut" or "long-wrong:<verdict
reason>".
"""

import collections
import dataclasses
import hashlib
from collections.abc import Sequence

from l2s_jax.types import Item, Problem, Trace, Verdict

KEPT = "kept"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What one problem gives, and the reason for every trace left out."""

    item: Item | None
    dropped: str | None  # why the problem gives no item; None where it gives one
    fates: tuple[str, ...]  # one per candidate

    @property
    def reasons(self) -> collections.Counter[str]:
        """How often each reason left out a candidate or the problem."""
        found = collections.Counter(fate for fate in self.fates if fate != KEPT)
        return found + collections.Counter([] if self.dropped is None else [self.dropped])


def select(
    problem: Problem,
    long: Trace | None,
    long_verdict: Verdict | None,
    candidates: Sequence[Trace],
    verdicts: Sequence[Verdict],
    num_tokens: Sequence[int],
) -> Choice:
    """The choice for one problem: the shortest right candidate.

    Args:
      long_verdict: of the long trace; None only where there is no trace.
      verdicts: one per candidate.
      num_tokens: of each candidate, thought and answer text, in student tokens. Among equals the
        first is kept.
    """
    right = [i for i, verdict in enumerate(verdicts) if verdict.equivalent]
    shortest = min(right, key=lambda i: num_tokens[i]) if right else None
    fates = tuple(
        _reason("wrong", verdict)
        if not verdict.equivalent
        else (KEPT if i == shortest else "longer")
        for i, verdict in enumerate(verdicts)
    )
    short = None if shortest is None else candidates[shortest]
    return _choice(problem, long, long_verdict, short, fates, len(verdicts), len(right))


def take_first(
    problem: Problem, long: Trace | None, long_verdict: Verdict | None, candidates: Sequence[Trace]
) -> Choice:
    """As `select`, but with the first whole candidate as it is: the paper's ablation k = 0.

    The paper does not say what k = 0 means; "one unverified sample" is the reading here.
    """
    whole = [candidate for candidate in candidates if not candidate.is_cut]
    short = whole[0] if whole else None
    fates = tuple(
        "cut" if one.is_cut else (KEPT if one is short else "longer") for one in candidates
    )
    return _choice(problem, long, long_verdict, short, fates, 0, 0)


def keep_regular(items: Sequence[Item], share: float) -> list[Item]:
    """The items, with EASY ones made regular until each difficulty has that share of them.

    Only regular items open with `<LONG>`. Where a terse teacher is right on nearly everything,
    the student would see that only on questions that no teacher can answer briefly, and a forced
    long path on any other would be new to it. Difficulty is the level, and where there is none,
    the pass rate. Which items stay regular depends on their ids alone; a difficulty with too few
    items for one of them loses none.
    """
    groups: dict[object, list[Item]] = collections.defaultdict(list)
    for item in items:
        groups[_difficulty(item)].append(item)
    regular: set[str] = set()
    for group in groups.values():
        easy = sorted((item.id for item in group if item.is_easy), key=_draw)
        # A product just under a whole number must not lose one: 0.29 * 100 is 28.999...
        missing = int(share * len(group) + 1e-9) - (len(group) - len(easy))
        regular.update(easy[: max(missing, 0)])
    return [
        dataclasses.replace(item, short=None, short_answer=None) if item.id in regular else item
        for item in items
    ]


def _difficulty(item: Item) -> object:
    if item.level is not None:
        return ("level", item.level)
    return ("passed", item.num_right / item.num_trials if item.num_trials else None)


def _draw(id: str) -> bytes:
    return hashlib.sha256(f"regular/{id}".encode()).digest()


def _choice(
    problem: Problem,
    long: Trace | None,
    long_verdict: Verdict | None,
    short: Trace | None,
    fates: tuple[str, ...],
    num_trials: int,
    num_right: int,
) -> Choice:
    dropped = None
    if long is None or long_verdict is None:
        dropped = "long-missing"
    elif not long_verdict.equivalent:
        dropped = _reason("long-wrong", long_verdict)
    if long is None or dropped is not None:
        fates = tuple("no-item" if fate == KEPT else fate for fate in fates)
        return Choice(item=None, dropped=dropped, fates=fates)
    item = Item(
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
    return Choice(item=item, dropped=None, fates=fates)


def _reason(kind: str, verdict: Verdict) -> str:
    if verdict.reason in ("no-answer", "cut"):
        return kind.replace("wrong", verdict.reason)
    return f"{kind}:{verdict.reason}"
