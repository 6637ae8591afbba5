"""What a curation found, as JSON: a record per question, and the numbers over all.

Lives here: pure counting. Not here: the page that shows it (`evaluation/curation_report.py`), the
data set (`curation/dataset.py`). Tokens are the student's.
"""

import collections
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from l2s_jax.curation.hygiene import Hit
from l2s_jax.curation.judge import Judged
from l2s_jax.curation.select import KEPT, Choice
from l2s_jax.data.sources import LeftOut
from l2s_jax.types import Item

Record = dict[str, Any]

OUTCOMES = ("easy", "regular", "kept-regular", "dropped")


def question_record(one: Judged, choice: Choice, item: Item | None) -> Record:
    """All that is known of one question: k, pass rate, and each trace's length and fate.

    Args:
      item: as it stands in the set, so that one that was kept regular says so.
    """
    num_trials = len(one.verdicts)
    num_right = sum(verdict.equivalent for verdict in one.verdicts)
    kept = choice.fates.index(KEPT) if KEPT in choice.fates else None
    return {
        "id": one.problem.id,
        "level": one.problem.level,
        "outcome": _outcome(choice, item),
        "dropped": choice.dropped,
        "long_teacher": None if one.long is None else one.long.teacher,
        "long_tokens": one.long_tokens,
        "long_verdict": None if one.long_verdict is None else one.long_verdict.reason,
        "num_trials": num_trials,
        "num_right": num_right,
        "pass_rate": num_right / num_trials if num_trials else None,
        "short_teacher": None if kept is None else one.shorts[kept].teacher,
        "short_tokens": None if kept is None else one.num_tokens[kept],
        "candidate_teachers": [trace.teacher for trace in one.shorts],
        "candidate_tokens": list(one.num_tokens),
        "candidate_fates": list(choice.fates),
    }


def _outcome(choice: Choice, item: Item | None) -> str:
    if item is None or choice.item is None:
        return "dropped"
    if item.is_easy:
        return "easy"
    return "kept-regular" if choice.item.is_easy else "regular"


def summarise(
    judged: Sequence[Judged], records: Sequence[Record], hits: Sequence[Hit], left_out: LeftOut
) -> dict[str, Any]:
    """What a person wants to know of an item set.

    Args:
      hits: of hygiene; their questions are not among those judged.
      left_out: of the source, before anything was judged.
    """
    outcomes = collections.Counter(record["outcome"] for record in records)
    items = [record for record in records if record["outcome"] != "dropped"]
    easy = [record for record in items if record["outcome"] == "easy"]
    rules = collections.Counter(hit.rule for hit in hits)
    return {
        "kind": "curation",
        "num_problems": len(records),
        "num_items": len(items),
        "num_easy": len(easy),
        "easy_share": _share(record["outcome"] == "easy" for record in items),
        "easy_share_by_level": _easy_share_by_level(items),
        "outcomes": {name: outcomes[name] for name in OUTCOMES},
        "acceptance_by_teacher": _acceptance(judged, records),
        "rejections": _rejections(records),
        "tokens": {
            "long": _spread([record["long_tokens"] for record in items]),
            "long_of_easy": _spread([record["long_tokens"] for record in easy]),
            "short": _spread([record["short_tokens"] for record in easy]),
        },
        # The method asks only for a right short path. One that saves nothing deserves a look.
        "num_short_not_shorter": sum(r["short_tokens"] >= r["long_tokens"] for r in easy),
        "hygiene": dict(rules.most_common()) | {"questions": len({hit.id for hit in hits})},
        "num_bad_lines": len(left_out.faults),
        "unused_rows": {what: number for what, number in left_out.counts.items() if number},
    }


def _rejections(records: Sequence[Record]) -> dict[str, int]:
    """How often each reason left out a trace or a problem, and "kept-regular" a short path."""
    reasons = collections.Counter(
        fate for record in records for fate in record["candidate_fates"] if fate != KEPT
    )
    reasons.update(record["dropped"] for record in records if record["dropped"])
    reasons["kept-regular"] += sum(record["outcome"] == "kept-regular" for record in records)
    return dict((+reasons).most_common())


def _easy_share_by_level(items: Iterable[Record]) -> dict[str, float]:
    by_level: dict[str, list[bool]] = collections.defaultdict(list)
    for record in items:
        level = "none" if record["level"] is None else str(record["level"])
        by_level[level].append(record["outcome"] == "easy")
    return {level: _share(easies) for level, easies in sorted(by_level.items(), key=_by_number)}


def _by_number(entry: tuple[str, Any]) -> tuple[bool, int]:
    return (entry[0] == "none", 0 if entry[0] == "none" else int(entry[0]))


def _acceptance(judged: Sequence[Judged], records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Per teacher: traces that were verified, how many were right, how many are in the items, and
    their lengths whatever their verdict."""
    right: dict[str, list[bool]] = collections.defaultdict(list)
    tokens: dict[str, list[int]] = collections.defaultdict(list)
    chosen: collections.Counter[str] = collections.Counter()
    for one, record in zip(judged, records, strict=True):
        if one.long is not None and one.long_verdict is not None and one.long_tokens is not None:
            right[one.long.teacher].append(one.long_verdict.equivalent)
            tokens[one.long.teacher].append(one.long_tokens)
            chosen[one.long.teacher] += record["outcome"] != "dropped"
        for trace, verdict, length in zip(one.shorts, one.verdicts, one.num_tokens, strict=False):
            right[trace.teacher].append(verdict.equivalent)
            tokens[trace.teacher].append(length)
        if record["outcome"] == "easy":
            chosen[record["short_teacher"]] += 1
    return {
        teacher: {
            "tried": len(made),
            "right": sum(made),
            "share": _share(made),
            "chosen": chosen[teacher],
            "tokens": _spread(tokens[teacher])["mean"],
        }
        for teacher, made in right.items()
    }


def _share(flags: Iterable[bool]) -> float:
    flags = list(flags)
    return sum(flags) / len(flags) if flags else 0.0


def _spread(lengths: Sequence[int]) -> dict[str, float | None]:
    if not lengths:
        return dict.fromkeys(("mean", "median", "p90", "max"))
    ordered = sorted(lengths)
    return {
        "mean": float(statistics.mean(ordered)),
        "median": float(statistics.median(ordered)),
        "p90": float(ordered[-(-len(ordered) * 9 // 10) - 1]),  # the least that 90 % do not pass
        "max": float(ordered[-1]),
    }
