"""The page of a curation: what was accepted, how long it is, and what was left out and why.

Lives here: what the page says. Not here: how it looks (`page`), its figures (`curation_plots`), its
numbers (`curation/summary.py`).

Reads what `l2s curate` wrote: `summary.json`, `questions.jsonl`, `hygiene.jsonl`,
`bad_lines.jsonl`, and `teachers.json` where teachers were asked. The page needs nothing beside it;
the lists in full are the files.
"""

import collections
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from l2s_jax.config import CONFIG_FILE
from l2s_jax.data.jsonl import read_jsonl
from l2s_jax.data.store import replace_file
from l2s_jax.evaluation import curation_plots, page

MAX_LISTED = 300  # rows of a list on the page; the file has them all

_OUTCOME_WORDS = {
    "easy": "EASY: a long and a short path",
    "regular": "regular: no candidate was right",
    "kept-regular": "regular: kept so, although a short path is known",
    "dropped": "no item: the long path is missing or wrong",
}
_REASON_WORDS = {
    "longer": "right, but another candidate is shorter",
    "no-item": "would have been kept, but the question's long path is missing or wrong",
    "no-answer": "a short candidate that states no final answer",
    "cut": "a short candidate that ended at its budget of tokens",
    "long-cut": "the long trace ended at its budget of tokens",
    "kept-regular": "a short path left out, so that some regular items stay",
    "long-missing": "the long teacher has no whole trace",
    "long-no-answer": "the long trace states no final answer",
}
_VERDICT_WORDS = {
    "different": "another answer than the reference",
    "unparsable": "an answer that cannot be read as mathematics",
    "timeout": "an answer that could not be decided in time",
    "disputed": "an answer on which the two implementations disagree",
    "crashed": "an answer that ended its verifying process",
}
_RULE_WORDS = {
    "duplicate": "same words as an earlier question",
    "near-duplicate": "nearly the words of an earlier question, same numbers and reference",
    "same": "same words as a benchmark's question",
    "contained": "a short question that stands whole in the other",
    "run": "a long run of words that few other questions have",
    "similar": "most words of a benchmark's question, whatever the numbers",
}

Rows = Sequence[Mapping[str, Any]]


def write_curation_report(workdir: pathlib.Path) -> pathlib.Path:
    """Path of the `report.html` written into the workdir of a curation from what lies there."""
    config, bills = workdir / CONFIG_FILE, workdir / "teachers.json"
    text = render(
        json.loads((workdir / "summary.json").read_bytes()),
        questions=_rows(workdir / "questions.jsonl"),
        hits=_rows(workdir / "hygiene.jsonl"),
        bad_lines=_rows(workdir / "bad_lines.jsonl"),
        bills=json.loads(bills.read_bytes()) if bills.is_file() else [],
        config=config.read_text(encoding="utf-8") if config.is_file() else None,
    )
    path = workdir / "report.html"
    replace_file(path, text.encode())
    return path


def is_curation(workdir: pathlib.Path) -> bool:
    """True where the folder's summary is that of a curation."""
    try:
        return json.loads((workdir / "summary.json").read_bytes()).get("kind") == "curation"
    except (OSError, ValueError, AttributeError):
        return False


def render(
    summary: Mapping[str, Any],
    *,
    questions: Rows,
    hits: Rows,
    bad_lines: Rows,
    bills: Rows,
    config: str | None,
) -> str:
    """The whole page."""
    title = "Curated items: a long and a short path for one question"
    body = [
        page.text("h1", title),
        page.text("p", _lead(summary), "lead"),
        _tiles(summary),
        _teachers(summary["acceptance_by_teacher"]),
        *([_bills(bills)] if bills else []),
        _lengths(summary["tokens"], questions),
        _difficulty(questions),
        _left_out(summary["rejections"]),
        _hygiene(hits),
        _bad_lines(bad_lines, summary["unused_rows"]),
        _origin(summary, config),
    ]
    return page.frame(title, "\n".join(body))


def _rows(path: pathlib.Path) -> Rows:
    return [row for _, row in read_jsonl(path)] if path.is_file() else []


# ---- what was kept ----


def _lead(summary: Mapping[str, Any]) -> str:
    return (
        f"{summary['num_problems']:,} questions were asked, {summary['num_items']:,} became items."
        " An item has a long chain of thought that ends in the right answer; an EASY item also has"
        " the shortest right one of the short candidates."
    )


def _tiles(summary: Mapping[str, Any]) -> str:
    tokens = summary["tokens"]
    long, short = tokens["long_of_easy"]["mean"], tokens["short"]["mean"]
    saved = "–" if long is None else page.percent(1 - short / long)
    lengths = "" if long is None else f"{short:,.0f} instead of {long:,.0f} on the mean EASY item"
    tiles = [
        ("items", f"{summary['num_items']:,}", f"of {summary['num_problems']:,} questions"),
        ("EASY", page.percent(summary["easy_share"]), f"{summary['num_easy']:,} items"),
        ("tokens that the short path saves", saved, lengths),
    ]
    markup = "".join(
        page.wrap(
            "div",
            page.text("div", name, "name") + page.text("b", value) + page.text("div", note, "note"),
            "tile",
        )
        for name, value, note in tiles
    )
    return page.section("In short", page.wrap("div", markup, "tiles"))


def _teachers(acceptance: Mapping[str, Mapping[str, Any]]) -> str:
    title = "Acceptance by teacher"
    if not acceptance:
        return page.section(title, page.missing("No trace was verified."))
    rows = [
        [
            page.cell(teacher),
            page.cell(f"{found['tried']:,}"),
            page.cell(f"{found['right']:,}"),
            page.cell(page.percent(found["share"])),
            page.cell(f"{found['chosen']:,}"),
            page.cell(_number(found["tokens"])),
        ]
        for teacher, found in acceptance.items()
    ]
    head = ["teacher", "verified", "right", "share", "in the items", "mean tokens"]
    return page.section(title, page.table(head, rows))


def _bills(bills: Rows) -> str:
    rows = [
        [
            page.cell(bill["teacher"]),
            *(page.cell(f"{bill[name]:,}") for name in ("total", "new", "reused", "truncated")),
            page.cell(f"{bill['unusable'] + bill['missing']:,}"),
            page.cell(f"{bill['tokens']['prompt']:,} + {bill['tokens']['completion']:,}"),
            page.cell(f"{bill['price']['all']:,.4g}"),
        ]
        for bill in bills
    ]
    head = ["teacher", "answers", "asked now", "on record", "cut", "failed", "tokens", "price"]
    return page.section("What the teachers that were asked cost", page.table(head, rows))


def _lengths(tokens: Mapping[str, Mapping[str, Any]], questions: Rows) -> str:
    items = [row for row in questions if row["outcome"] != "dropped"]
    easy = [row for row in items if row["outcome"] == "easy"]
    lengths = {
        "long path": [row["long_tokens"] for row in items],
        "short path of EASY items": [row["short_tokens"] for row in easy],
    }
    names = {"long": "long", "long_of_easy": "long, of EASY items", "short": "short, of EASY items"}
    table = page.table(
        ["path", "mean", "median", "90th percentile", "maximum"],
        [
            [page.cell(words), *(page.cell(_number(value)) for value in tokens[path].values())]
            for path, words in names.items()
        ],
    )
    drawn = {name: of_one for name, of_one in lengths.items() if of_one}
    svg = curation_plots.token_histograms(drawn)
    caption = "How many items have so many tokens. The axis is logarithmic."
    return page.section("Tokens by path", table, page.figure(svg, caption))


def _difficulty(questions: Rows) -> str:
    by_level: dict[Any, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in questions:
        by_level[row["level"]][row["outcome"]] += 1
    levels = sorted(by_level, key=lambda level: (level is None, level or 0))
    table = page.table(
        ["level", *_OUTCOME_WORDS],
        [
            [
                page.cell("not known" if level is None else str(level)),
                *(page.cell(str(by_level[level][outcome])) for outcome in _OUTCOME_WORDS),
            ]
            for level in levels
        ],
    )
    words = [text for name, text in _OUTCOME_WORDS.items()]
    rates = [row["pass_rate"] for row in questions if row["pass_rate"] is not None]
    parts = [table, page.text("p", "; ".join(words) + ".", "soft")]
    if rates:
        caption = "Each question's share of right short candidates."
        parts.append(page.figure(curation_plots.pass_rates(rates), caption))
    return page.section("By difficulty", *parts)


# ---- what was left out ----


def _left_out(rejections: Mapping[str, int]) -> str:
    title = "Why traces were left out"
    if not rejections:
        return page.section(title, page.missing("None was."))
    rows = [
        [page.cell(reason), page.cell(_reason_words(reason)), page.cell(f"{number:,}")]
        for reason, number in rejections.items()
    ]
    return page.section(title, page.table(["reason", "that is", "number"], rows, num_words=2))


def _reason_words(reason: str) -> str:
    if reason in _REASON_WORDS:
        return _REASON_WORDS[reason]
    kind, _, verdict = reason.partition(":")
    who = "the long trace has" if kind == "long-wrong" else "a short candidate with"
    return f"{who} {_VERDICT_WORDS.get(verdict, verdict)}"


def _hygiene(hits: Rows) -> str:
    title = "Questions left out as copies"
    if not hits:
        return page.section(title, page.missing("None, as far as was looked for."))
    counts = collections.Counter((hit["rule"], hit["where"]) for hit in hits)
    rows = [
        [
            page.cell(str(rule)),
            page.cell(_RULE_WORDS.get(rule, str(rule))),
            page.cell(str(where or "this set")),
            page.cell(str(number)),
        ]
        for (rule, where), number in counts.most_common()
    ]
    head = ["rule", "that is", "against", "pairs"]
    differ = sum(hit["references_differ"] for hit in hits if hit["rule"] == "duplicate")
    parts = [page.table(head, rows, num_words=3)]
    if differ:
        parts.append(page.text("p", f"{differ} duplicates have another reference: one is wrong."))
    parts.append(page.details("Every pair", _pairs(hits), is_open=len(hits) <= 10))
    return page.section(title, *parts)


def _pairs(hits: Rows) -> str:
    shown = "".join(
        page.wrap(
            "div",
            page.text(
                "div",
                f"{hit['id']} is out ({hit['rule']}, {hit['similarity']:.2f}) for {hit['other']}"
                + (f" of {hit['where']}" if hit["where"] else ""),
            )
            + page.text("pre", f"{hit['question']}\n\n{hit['other_question']}"),
            "answer",
        )
        for hit in hits[:MAX_LISTED]
    )
    return shown + _rest(len(hits), "hygiene.jsonl")


def _bad_lines(bad_lines: Rows, unused: Mapping[str, int]) -> str:
    parts = [
        page.text("p", f"{number:,} rows were sound, but of no use: {what}.")
        for what, number in unused.items()
    ]
    if bad_lines:
        told = "\n".join(line["message"] for line in bad_lines[:MAX_LISTED])
        parts += [page.text("pre", told), _rest(len(bad_lines), "bad_lines.jsonl")]
    return page.section("Lines that were not used", *parts or [page.missing("None.")])


def _rest(number: int, file: str) -> str:
    more = number - MAX_LISTED
    return page.text("p", f"{more} more are in {file}.", "soft") if more > 0 else ""


def _origin(summary: Mapping[str, Any], config: str | None) -> str:
    parts = [page.text("p", f"{summary['seconds']:.1f} seconds.")]
    if config is not None:
        parts.append(page.details("The run's config", page.text("pre", config)))
    return page.section("Time and config", *parts)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
