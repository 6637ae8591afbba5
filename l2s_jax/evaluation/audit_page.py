"""The audit as one page: figures, and a worksheet of the pairs in dispute for a person to read.

Lives here: what the page says. Not here: its look (`evaluation/page.py`), the figures
(`curation/audit.py`).
"""

from collections.abc import Sequence
from typing import Any

from l2s_jax.curation.audit import Audited
from l2s_jax.evaluation.page import cell, frame, missing, percent, pill, section, table, text, wrap

MAX_SHOWN = 1000  # characters of a prediction
_SAID = {True: ("equal", "good"), False: ("different", "bad"), None: ("no opinion", "plain")}


def audit_page(summary: dict[str, Any], disputed: Sequence[Audited]) -> str:
    """The HTML document, self-contained."""
    title = "Audit of the verifier"
    told = summary["figures"]
    parts = [
        text("h1", title),
        text("p", _lead(told["all"]), "lead"),
        section("By kind of answer", _table(told["by_kind"], "kind")),
        section("By subject", _table(told["by_subject"], "subject")),
        section("The second opinion", _second(told["second"])),
        section("Wrong references", _noise(summary["planted_noise"])),
    ]
    if summary.get("items"):
        parts.append(section("EASY items of the curation", _items(summary["items"])))
    parts.append(section(f"Worksheet: {len(disputed)} pairs in dispute", *_worksheet(disputed)))
    return frame(title, "\n".join(parts))


def _lead(told: dict[str, Any]) -> str:
    return (
        f"{told['num_pairs']} labelled pairs: accuracy {_percent(told['accuracy'])}, precision"
        f" {_percent(told['precision'])}, recall {_percent(told['recall'])};"
        f" {told['num_false_accepts']} false accepts, {told['num_false_rejects']} false rejects."
        f" False-EASY rate {_percent(told['false_easy_rate'])}."
    )


def _percent(share: float | None) -> str:
    return "n/a" if share is None else percent(share)


def _table(groups: dict[str, dict[str, Any]], name: str) -> str:
    head = [name, "pairs", "accuracy", "precision", "recall", "false accepts", "false rejects"]
    rows = [
        [
            cell(group),
            cell(str(told["num_pairs"])),
            *(cell(_percent(told[share])) for share in ("accuracy", "precision", "recall")),
            cell(str(told["num_false_accepts"])),
            cell(str(told["num_false_rejects"])),
        ]
        for group, told in groups.items()
    ]
    return table(head, rows)


def _second(told: dict[str, Any]) -> str:
    words = (
        f"An independent reader had an opinion on {_percent(told['share_with_opinion'])} of the"
        f" pairs and was right on {_percent(told['accuracy'])} of those. It disagreed with the"
        f" verifier on {told['num_disagreements']}; there the labels side with the verifier"
        f" {told['num_verifier_right']} times."
    )
    return text("p", words)


def _noise(results: Sequence[dict[str, Any]]) -> str:
    rows = [[cell(_percent(one[name])) for name in one] for one in results]
    head = ["references replaced", "right answers lost", "replaced and accepted"]
    return table(head, rows)


def _items(told: dict[str, Any]) -> str:
    ids = sorted({*told["rejected_now"], *told["called_wrong_by_second"]})
    words = (
        f"{told['num_easy']} items; false-EASY rate {_percent(told['false_easy_rate'])};"
        f" {told['num_without_second']} without a second opinion. In dispute:"
        f" {', '.join(ids) or 'none'}."
    )
    return text("p", words)


def _worksheet(disputed: Sequence[Audited]) -> list[str]:
    if not disputed:
        return [missing("Label, verifier and second opinion agree on every pair.")]
    return [_sheet(one) for one in disputed]


def _sheet(one: Audited) -> str:
    pair = one.pair
    said = [
        ("label", pair.equivalent),
        (f"verifier ({one.verdict.reason})", one.verdict.equivalent),
        ("second", one.second),
    ]
    pills = " ".join(pill(f"{who}: {_SAID[says][0]}", _SAID[says][1]) for who, says in said)
    prediction = pair.prediction[-MAX_SHOWN:]
    cut = f" (last {MAX_SHOWN} characters)" if len(pair.prediction) > MAX_SHOWN else ""
    return wrap(
        "div",
        text("h3", f"{pair.id} · {one.kind} · {pair.subject}")
        + wrap("p", pills)
        + text("p", "gold", "soft")
        + text("pre", pair.gold[-MAX_SHOWN:])
        + text("p", f"prediction{cut}", "soft")
        + text("pre", prediction),
        "answer",
    )
