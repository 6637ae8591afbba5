"""The report of a run: one HTML file that needs nothing else.

Lives here: what the page says, section by section, and writing it. Not here: how it looks
(`page`), its figures (`plots`), its numbers (`stats`, `calibration`, `summary`), and two
long sections: the router (`routing`), the answers in full (`showcase`).

Reads a folder with `summary.json`, `records/*.jsonl` and `metrics/*.jsonl`. A part whose data is
missing says so in one line; only the summary must be there.
"""

import dataclasses
import functools
import html
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from l2s_jax.data.store import replace_file
from l2s_jax.evaluation import page, pareto, plots, routing, showcase, stats
from l2s_jax.evaluation.calibration import Switch, pair_stages
from l2s_jax.evaluation.records import (
    STAGES,
    Answer,
    group_by,
    in_order,
    read_metrics,
    read_records,
)
from l2s_jax.evaluation.summary import read_summary

STAGE_WORDS = {
    "base": "before any training on routes",
    "sft": "stage 1, supervised, matched layout",
    "grpo_v2": "stage 2, rewarded for right answers only",
    "grpo_plus": "stage 2, rewarded for right and for short answers",
    "verbatim": "stage 1, supervised, the paper's own layout",
}
_MODE_WORDS = {
    "auto": "the model's first token chooses: this is the method",
    "force-long": "every question takes the long path",
    "force-short": "every question takes the short path",
    "free": "nothing is inserted after the first token; the model may write both paths",
}
_READING = (
    "Up and to the left is better. Colour is the mode, shape the stage; bars are 95 % intervals."
    " Above the dotted line nothing was measured."
)
_WHAT = (
    "A reasoning model that always thinks at length pays for easy questions what only hard ones"
    " need. AutoL2S teaches one model a long and a short way of reasoning and lets its first token"
    " choose between them: <LONG> goes on as usual, <EASY> makes the sampler open the short path."
    " This page shows what the choice saves in generated tokens and what it costs in accuracy on"
    " the test questions, wrong answers included."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """All that one page is made of."""

    summary: Mapping[str, Any]
    answers: Sequence[Answer]
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]

    @functools.cached_property
    def stages(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Stage → mode → summary entry, in the order of the page."""
        stages = self.summary["stages"]
        return {name: stages[name] for name in in_order(stages, STAGES)}

    @property
    def own_stages(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Without the paper's layout, which has a section of its own; alone it takes the stage."""
        own = {name: modes for name, modes in self.stages.items() if name != "verbatim"}
        return own or self.stages

    @functools.cached_property
    def answers_of(self) -> dict[str, dict[str, list[Answer]]]:
        """Stage → mode → answers."""
        by_stage = group_by(self.answers, lambda answer: answer["stage"])
        return {
            stage: group_by(by_stage[stage], lambda answer: answer["mode"])
            for stage in in_order(by_stage, STAGES)
        }

    @functools.cached_property
    def paired(self) -> dict[str, list[Switch]]:
        """Stage → questions that were answered in all modes that judge its router."""
        return pair_stages(self.answers_of)


def write_report(workdir: pathlib.Path) -> pathlib.Path:
    """Path of the `report.html` written into `workdir` from what lies there."""
    if not workdir.is_dir():
        raise ValueError(
            f"workdir={str(workdir)!r}: no such folder. Give the workdir of a run that was"
            " evaluated (`l2s eval` or `l2s demo`)."
        )
    material = Material(
        summary=read_summary(workdir / "summary.json"),
        answers=read_records(workdir / "records"),
        metrics=read_metrics(workdir / "metrics"),
    )
    path = workdir / "report.html"
    replace_file(path, render(material).encode())
    return path


def render(material: Material) -> str:
    """The whole page."""
    title = str(material.summary.get("title", "AutoL2S: long or short, the model decides"))
    body = [
        page.text("h1", title),
        page.text("p", _WHAT, "lead"),
        _headline(material),
        _bars(material.summary.get("bars")),
        _stage_table(material),
        _tradeoff(material),
        _levels(material),
        routing.section(material.paired),
        _layouts(material),
        _completions(material),
        _curves(material),
        _origin(material.summary),
    ]
    return page.frame(title, "\n".join(body))


# ---- headline and bars ----


def _headline(material: Material) -> str:
    title = "Tokens saved, and at what price"
    tiles = [
        _tile(stage, modes, material)
        for stage, modes in material.own_stages.items()
        if {"auto", "force-long"} <= modes.keys()
    ]
    if not tiles:
        return page.section(title, page.missing("No stage was run in both auto and force-long."))
    intro = "Mode auto, where the model chooses its path, against always thinking long."
    return page.section(
        title, page.text("p", intro, "soft"), page.wrap("div", "".join(tiles), "tiles")
    )


def _tile(stage: str, modes: Mapping[str, Mapping[str, Any]], material: Material) -> str:
    auto, long = modes["auto"], modes["force-long"]
    words = f", {STAGE_WORDS[stage]}" if stage in STAGE_WORDS else ""
    interval = _difference_interval(material, (stage, "auto"), (stage, "force-long"))
    notes = [
        f"{auto['tokens']:.1f} tokens an answer instead of {long['tokens']:.1f}",
        f"{page.percent(auto['accuracy'])} right instead of {page.percent(long['accuracy'])}:"
        f" {page.points(auto['accuracy'] - long['accuracy'])} points{interval}",
    ]
    before = material.stages.get("sft", {}).get("auto")
    if stage.startswith("grpo") and before:
        gain = page.points(auto["accuracy"] - before["accuracy"])
        notes.append(f"Against sft in auto: {_change(auto, before)}, {gain} points")
    return page.wrap(
        "div",
        page.wrap("div", page.text("strong", stage) + html.escape(words), "name")
        + page.text("b", _change(auto, long))
        + "".join(page.text("div", note, "note") for note in notes),
        "tile",
    )


def _change(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    change = ours["tokens"] / theirs["tokens"] - 1 if theirs["tokens"] else 0.0
    return f"{page.signed(100 * change, 0)} % tokens"


def _difference_interval(material: Material, ours: tuple[str, str], theirs: tuple[str, str]) -> str:
    """The paired interval of an accuracy difference in words; empty where records don't pair."""
    pair = [material.answers_of.get(stage, {}).get(mode, []) for stage, mode in (ours, theirs)]
    problems = [{(answer["seed"], answer["id"]) for answer in answers} for answers in pair]
    if not problems[0] or problems[0] != problems[1]:
        return ""
    difference = stats.paired_difference(pair[0], pair[1], stats.right)
    return f" (95 % interval {page.points(difference.low)} to {page.points(difference.high)})"


def _bars(bars: Sequence[Mapping[str, Any]] | None) -> str:
    title = "What the run was held to"
    if not bars:
        return page.section(title, page.missing("The summary names no bars."))
    num_held = sum(bool(bar["holds"]) for bar in bars)
    rows = [
        [
            page.cell(str(bar["name"])),
            page.pill("✓ held", "good") if bar["holds"] else page.pill("✗ not held", "bad"),
            page.cell(_plain(bar["value"])),
            page.cell(_plain(bar["bar"])),
            page.cell(str(bar.get("note") or "")),
        ]
        for bar in bars
    ]
    head = ["bar", "", "measured", "asked for", "note"]
    intro = f"{num_held} of {len(bars)} held."
    return page.section(title, page.text("p", intro), page.table(head, rows, num_words=5))


def _plain(value: Any) -> str:
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)


# ---- stages and modes ----


def _stage_table(material: Material) -> str:
    rows, starts = [], set()
    for stage, modes in material.stages.items():
        starts.add(len(rows))
        long_tokens = modes.get("force-long", {}).get("tokens")
        for index, (mode, entry) in enumerate(modes.items()):
            rows.append(_stage_row("" if index else stage, mode, entry, long_tokens))
    head = ["stage", "mode", "accuracy", "tokens", "of force-long", "EASY", "cut off", "questions"]
    words = "Small print: 95 % intervals, bootstrap over questions. EASY: sent down the short path."
    cut = " Cut off: stopped by the token limit, which counts as wrong."
    return page.section(
        "Every stage in every mode",
        _glossary({name: STAGE_WORDS.get(name, "") for name in material.stages}),
        page.table(head, rows, num_words=2, group_starts=frozenset(starts)),
        page.text("p", words + cut, "soft"),
        *[page.text("p", line, "soft") for line in _unforced(material)],
        page.details("What the modes mean", _glossary(_MODE_WORDS)),
    )


def _unforced(material: Material) -> Iterator[str]:
    """A line for each stage that says how surely it opens the short path without a router."""
    for stage, modes in material.stages.items():
        p = modes.get("auto", {}).get("p_short_after_easy")
        wrote = modes.get("free", {}).get("wrote_short_after_easy")
        said = [] if p is None else [_p_short(p)]
        if wrote is not None:
            said.append(
                f"unforced it wrote <SHORT> in {page.percent(wrote['share'])} of"
                f" {wrote['num_answers']}"
            )
        if said:
            yield f"{stage}, after an <EASY> of its own: {'; '.join(said)}."


def _p_short(p: Mapping[str, Any]) -> str:
    return (
        f"P(<SHORT>) is {p['mean']:.3f} in the mean and {p['percentile_5']:.3f} at the 5th"
        f" percentile of {p['num_answers']} answers"
    )


def _stage_row(
    stage: str, mode: str, entry: Mapping[str, Any], long_tokens: float | None
) -> list[str]:
    return [
        page.cell(stage),
        page.cell(mode),
        page.cell(
            page.percent(entry["accuracy"]), page.span(entry.get("accuracy_ci"), as_percent=True)
        ),
        page.cell(f"{entry['tokens']:.1f}", page.span(entry.get("tokens_ci"))),
        page.cell(f"{100 * entry['tokens'] / long_tokens:.0f} %" if long_tokens else "–"),
        page.cell(_share(entry, "easy_share")),
        page.cell(_share(entry, "truncated")),
        page.cell(str(entry.get("num_questions", "–")), _count_seeds(entry.get("seeds"))),
    ]


def _count_seeds(seeds: Sequence[int] | None) -> str:
    if not seeds:
        return ""
    return f"over {len(seeds)} seeds" if len(seeds) > 1 else "in 1 seed"


def _share(entry: Mapping[str, Any], field: str) -> str:
    return page.percent(entry[field]) if field in entry else "–"


def _glossary(words: Mapping[str, str]) -> str:
    pairs = [page.text("dt", name) + page.text("dd", said) for name, said in words.items() if said]
    return page.wrap("dl", "".join(pairs)) if pairs else ""


def _tradeoff(material: Material) -> str:
    stages = material.own_stages
    max_tokens = max(entry["tokens"] for modes in stages.values() for entry in modes.values())
    areas = ", ".join(
        f"{stage} {_area(list(modes.values()), max_tokens):.3f}" for stage, modes in stages.items()
    )
    caption = (
        f"{_READING} Mean accuracy that a budget buys, over budgets up to {max_tokens:.1f} tokens"
        f" (area under a stage's own frontier): {areas}."
    )
    figure = page.figure(plots.tradeoff("all", stages), caption)
    return page.section("Accuracy against length", figure)


def _area(entries: Sequence[Mapping[str, Any]], max_tokens: float) -> float:
    tokens_N = np.array([entry["tokens"] for entry in entries], np.float64)
    accuracy_N = np.array([entry["accuracy"] for entry in entries], np.float64)
    return pareto.area(tokens_N, accuracy_N, max_tokens=max_tokens)


def _levels(material: Material) -> str:
    title = "By difficulty"
    stages = {
        stage: modes
        for stage, modes in material.stages.items()
        if any(entry.get("by_level") for entry in modes.values())
    }
    if not stages:
        return page.section(title, page.missing("The questions of this run have no levels."))
    routed = {stage: modes for stage, modes in stages.items() if "auto" in modes}
    parts = [_easy_figure(routed)] if routed else [page.missing("Mode auto was not run.")]
    caption = "Accuracy by level; the bands are 95 % intervals."
    parts.append(page.figure(plots.accuracy_by_level(stages), caption))
    parts.append(page.details("Accuracy and tokens by level", _level_table(stages)))
    return page.section(title, *parts)


def _easy_figure(stages: plots.Stages) -> str:
    trends = {name: _trend(modes["auto"].get("by_level", {})) for name, modes in stages.items()}
    said = ", ".join(f"{name} {trend}" for name, trend in trends.items())
    caption = (
        "Share of questions that mode auto sends down the short path. A router that knows what is"
        f" hard falls to the right. Rank correlation with the level: {said}."
    )
    return page.figure(plots.easy_share_by_level(stages), caption)


def _trend(by_level: Mapping[str, Mapping[str, Any]]) -> str:
    trend = stats.level_trend(by_level, "easy_share")
    return (
        "undefined (one level, or always the same)" if math.isnan(trend) else page.signed(trend, 2)
    )


def _level_table(stages: plots.Stages) -> str:
    entries = [entry for modes in stages.values() for entry in modes.values()]
    levels = list(dict.fromkeys(k for entry in entries for k in entry.get("by_level", {})))
    rows, starts = [], set()
    for stage, modes in stages.items():
        starts.add(len(rows))
        for index, (mode, entry) in enumerate(modes.items()):
            cells = [_level_cell(entry.get("by_level", {}).get(level)) for level in levels]
            rows.append([page.cell("" if index else stage), page.cell(mode), *cells])
    head = ["stage", "mode", *(f"level {level}" for level in levels)]
    return page.table(head, rows, num_words=2, group_starts=frozenset(starts))


def _level_cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return page.cell("–")
    return page.cell(page.percent(entry["accuracy"]), f"{entry['tokens']:.1f}")


# ---- layouts, completions, curves, origin ----


def _layouts(material: Material) -> str:
    title = "Training layouts: matched beside the paper's"
    ours, theirs = material.stages.get("sft"), material.stages.get("verbatim")
    if not ours or not theirs:
        return page.section(title, page.missing("This run trained only one of the two layouts."))
    intro = (
        "verbatim trains the short path with the long one in sight, as the paper writes its"
        " sequences; matched hides the long path, so that training looks like inference."
    )
    rows = [
        [page.cell(mode), *_layout_cells(ours[mode]), *_layout_cells(theirs[mode])]
        for mode in ours
        if mode in theirs
    ]
    head = ["mode", "matched: accuracy", "tokens", "verbatim: accuracy", "tokens"]
    drawn = plots.tradeoff("layouts", {"sft": ours, "verbatim": theirs})
    return page.section(
        title,
        page.text("p", intro),
        page.table(head, rows),
        page.figure(drawn, _READING),
    )


def _layout_cells(entry: Mapping[str, Any]) -> list[str]:
    interval = page.span(entry.get("accuracy_ci"), as_percent=True)
    return [
        page.cell(page.percent(entry["accuracy"]), interval),
        page.cell(f"{entry['tokens']:.1f}"),
    ]


def _completions(material: Material) -> str:
    title = "Answers in full, wrong ones first"
    if not material.answers:
        return page.section(title, page.missing("No records: `records/*.jsonl` is not there."))
    intro = "Picked by a hash of the question's id and seed, not by eye."
    stages = [
        page.details(
            f"{stage}: wrong {showcase.wrong_shares(modes)}",
            showcase.stage_markup(modes, material.paired.get(stage, ())),
            is_open=index == 0,
        )
        for index, (stage, modes) in enumerate(material.answers_of.items())
    ]
    return page.section(title, page.text("p", intro, "soft"), *stages)


def _curves(material: Material) -> str:
    title = "Training"
    drawn = {name: rows for name, rows in material.metrics.items() if plots.has_curves(rows)}
    if not drawn:
        return page.section(title, page.missing("No training metrics: `metrics/*.jsonl`."))
    return page.section(
        title,
        page.text(
            "p", "A line for each seed; long runs are averaged over neighbouring steps.", "soft"
        ),
        *[
            page.text("h3", name) + page.wrap("figure", plots.training_curves(name, drawn[name]))
            for name in drawn
        ],
    )


def _origin(summary: Mapping[str, Any]) -> str:
    seeds, notes = summary.get("seeds", []), summary.get("notes") or []
    parts = [page.text("p", f"Seeds: {', '.join(map(str, seeds)) or 'not recorded'}.")]
    parts += [page.text("p", str(note)) for note in ([notes] if isinstance(notes, str) else notes)]
    rows = [[page.cell(name), page.cell(value)] for name, value in _times(summary.get("seconds"))]
    parts.append(page.table(["part", "time"], rows) if rows else page.missing("No times recorded."))
    return page.section("Seeds, notes and time", *parts)


def _times(seconds: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name and duration of every part, nested ones as "a / b"."""
    for name, value in (seconds or {}).items():
        if isinstance(value, Mapping):
            yield from _times(value, f"{prefix}{name} / ")
        else:
            minutes, rest = divmod(round(value), 60)
            yield prefix + name, f"{minutes} min {rest:02d} s" if minutes else f"{value:.1f} s"
