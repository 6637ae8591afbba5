"""How far the verifier can be trusted: measured on pairs that people have labelled.

Lives here: reading labelled pairs, and figures. Not here: the page (`evaluation/audit_page.py`),
the verifier and the second opinion (`verify`).

A labelled line is {gold, prediction, equivalent} with, where known, id, subject and source. A false
accept is what hurts: it puts an EASY label on a wrong short path, and teaches it. So beside
precision and recall stand the false-EASY rate (wrong among the accepted), what wrong references
would do (planted noise), and every pair on which two independent readers disagree.
"""

import collections
import dataclasses
import pathlib
import random
from collections.abc import Sequence
from typing import Any

from l2s_jax.data.jsonl import Fault, Ids, scan_jsonl
from l2s_jax.data.store import read_items
from l2s_jax.types import Verdict
from l2s_jax.verify.answers import answer_or_text, final_answer, has_box
from l2s_jax.verify.kinds import answer_kind
from l2s_jax.verify.math import Verifier
from l2s_jax.verify.second import second_opinion

NOISE_SHARES = (0.01, 0.05, 0.1)
NOISE_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """A pair and what a person said of it."""

    id: str
    gold: str
    prediction: str
    equivalent: bool
    subject: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audited:
    """A labelled pair with both opinions; `second` is None where the second reader has none."""

    pair: Labelled
    kind: str
    verdict: Verdict
    second: bool | None

    @property
    def is_disputed(self) -> bool:
        """True where label, verifier and second opinion are not of one mind."""
        said = {self.pair.equivalent, self.verdict.equivalent}
        return len(said if self.second is None else said | {self.second}) > 1


def read_labelled(path: str | pathlib.Path) -> tuple[list[Labelled], list[Fault]]:
    """(the labelled pairs of a file, its faulty lines)."""
    pairs, faults, ids = [], [], Ids(path)
    for line, record in scan_jsonl(path):
        if isinstance(record, Fault):
            faults.append(record)
            continue
        try:
            pairs.append(_labelled(record, ids, line, f"{path}:{line}"))
        except ValueError as error:
            faults.append(Fault(str(error)))
    return pairs, faults


def _labelled(record: dict[str, Any], ids: Ids, line: int, where: str) -> Labelled:
    for field, kind in (("gold", str), ("prediction", str), ("equivalent", bool)):
        if not isinstance(record.get(field), kind):
            raise ValueError(
                f"{where}: {field}={record.get(field)!r} must be a {kind.__name__}. A labelled line"
                " is {gold, prediction, equivalent}."
            )
    if not record["gold"].strip():
        raise ValueError(f"{where}: gold is empty. Give the reference answer.")
    id = ids.claim(str(record.get("id", f"line {line}")), "id", line)
    return Labelled(
        id=id,
        gold=record["gold"],
        prediction=record["prediction"],
        equivalent=record["equivalent"],
        subject=str(record.get("subject") or record.get("source") or "all"),
    )


def audit(pairs: Sequence[Labelled], verifier: Verifier) -> list[Audited]:
    """Both opinions on every pair."""
    verdicts = verifier.equivalent_many([(pair.gold, pair.prediction) for pair in pairs])
    return [
        Audited(
            pair=pair,
            kind=answer_kind(_answer(pair.gold)),
            verdict=verdict,
            second=second_opinion(_answer(pair.gold), _answer(pair.prediction)),
        )
        for pair, verdict in zip(pairs, verdicts, strict=True)
    ]


def _answer(text: str) -> str:
    return (final_answer(text) or "") if has_box(text) else text


def figures(audited: Sequence[Audited]) -> dict[str, Any]:
    """Counts, precision and recall: of all, by kind of answer, by subject."""
    by_kind, by_subject = collections.defaultdict(list), collections.defaultdict(list)
    for one in audited:
        by_kind[one.kind].append(one)
        by_subject[one.pair.subject].append(one)
    return {
        "all": _figures(audited),
        "by_kind": {kind: _figures(ones) for kind, ones in sorted(by_kind.items())},
        "by_subject": {subject: _figures(ones) for subject, ones in sorted(by_subject.items())},
        "second": _second_figures(audited),
    }


def _figures(audited: Sequence[Audited]) -> dict[str, Any]:
    said = collections.Counter((one.pair.equivalent, one.verdict.equivalent) for one in audited)
    accepted, right = said[True, True] + said[False, True], said[True, True] + said[True, False]
    return {
        "num_pairs": len(audited),
        "accuracy": _share(said[True, True] + said[False, False], len(audited)),
        "precision": _share(said[True, True], accepted),
        "recall": _share(said[True, True], right),
        "num_false_accepts": said[False, True],
        "num_false_rejects": said[True, False],
        # Of the short paths that would become EASY, how many are wrong.
        "false_easy_rate": _share(said[False, True], accepted),
        "reasons": dict(collections.Counter(one.verdict.reason for one in audited).most_common()),
    }


def _second_figures(audited: Sequence[Audited]) -> dict[str, Any]:
    heard = [one for one in audited if one.second is not None]
    differ = [one for one in heard if one.second != one.verdict.equivalent]
    return {
        "share_with_opinion": _share(len(heard), len(audited)),
        "accuracy": _share(sum(one.second == one.pair.equivalent for one in heard), len(heard)),
        "num_disagreements": len(differ),
        "disagreement": _share(len(differ), len(heard)),
        # Where they differ, the label says who was right.
        "num_verifier_right": sum(one.verdict.equivalent == one.pair.equivalent for one in differ),
    }


def planted_noise(pairs: Sequence[Labelled], verifier: Verifier) -> list[dict[str, float | None]]:
    """What wrong references do: a share of pairs gets the reference of another pair.

    `right_lost`: of the predictions that are right, how many the noise rejects. `wrong_accepted`:
    of the pairs with a planted reference, how many are accepted, that is by chance.
    """
    results = []
    for share in NOISE_SHARES:
        draw = random.Random(NOISE_SEED)
        planted = set(draw.sample(range(len(pairs)), round(share * len(pairs))))
        golds = [
            pairs[draw.randrange(len(pairs))].gold if i in planted else pair.gold
            for i, pair in enumerate(pairs)
        ]
        asked = [(gold, pair.prediction) for gold, pair in zip(golds, pairs, strict=True)]
        accepted = [verdict.equivalent for verdict in verifier.equivalent_many(asked)]
        right = [i for i, pair in enumerate(pairs) if pair.equivalent]
        changed = [i for i in planted if golds[i] != pairs[i].gold]
        results.append(
            {
                "share": share,
                "right_lost": _share(sum(not accepted[i] for i in right), len(right)),
                "wrong_accepted": _share(sum(accepted[i] for i in changed), len(changed)),
            }
        )
    return results


def audit_items(workdir: str | pathlib.Path, verifier: Verifier) -> dict[str, Any]:
    """The EASY items of a curation, decided again and by the second reader."""
    easy = [item for item in read_items(pathlib.Path(workdir) / "items") if item.is_easy]
    answers = [answer_or_text(item.short_answer or "") for item in easy]
    golds = [item.reference for item in easy]
    verdicts = verifier.equivalent_many(list(zip(golds, answers, strict=True)))
    second = [second_opinion(*pair) for pair in zip(golds, [a or "" for a in answers], strict=True)]
    rejected = [item.id for item, v in zip(easy, verdicts, strict=True) if not v.equivalent]
    disputed = [item.id for item, says in zip(easy, second, strict=True) if says is False]
    return {
        "num_easy": len(easy),
        "rejected_now": rejected,
        "called_wrong_by_second": disputed,
        "num_without_second": sum(says is None for says in second),
        "false_easy_rate": _share(len(set(rejected) | set(disputed)), len(easy)),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
