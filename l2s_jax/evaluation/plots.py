"""Figures of the report, each as one string of inline SVG.

Lives here: what the figures show. Not here: the numbers (`stats`, `calibration`, `pareto`), the
page and its captions (`report`), the frame of a figure (`svg`).

The colours of the series are Okabe and Ito's (2008), which colour-blind readers can tell apart,
and shape or dash says the same again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from l2s_jax.evaluation.calibration import Bin
from l2s_jax.evaluation.pareto import frontier
from l2s_jax.evaluation.records import MODES, in_order
from l2s_jax.evaluation.svg import INK, PAPER, slug, to_svg

Stages = Mapping[str, Mapping[str, Mapping[str, Any]]]  # stage → mode → summary entry

MODE_COLORS = {
    "auto": "#0072b2",
    "force-long": "#e08a00",
    "force-short": "#009e73",
    "free": "#b5639b",
}
STAGE_MARKERS = {"base": "X", "sft": "o", "grpo_v2": "s", "grpo_plus": "D", "verbatim": "^"}
STAGE_COLORS = {
    "base": "#8a8f98",
    "sft": "#0072b2",
    "grpo_v2": "#e08a00",
    "grpo_plus": "#009e73",
    "verbatim": "#b5639b",
}
_SPARE = ("#c8553d", "#6f7bd9", "#7a8b00", "#4fa3c7")  # names that the tables above lack
_SPARE_MARKERS = ("v", "P", "p", "h")

_CURVES = {
    "loss": "loss, nats per token",
    "reward": "mean reward",
    "accuracy": "accuracy of rollouts",
    "tokens": "tokens per rollout",
    "easy_share": "EASY share",
}
_MAX_CURVE_POINTS = 240


def tradeoff(name: str, stages: Stages) -> str:
    """Accuracy against mean tokens of every stage and mode, with intervals and the frontier.

    `name` tells the figure from another of its kind on the same page.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        points = [
            (stage, mode, entry) for stage, modes in stages.items() for mode, entry in modes.items()
        ]
        _frontier_line(ax, [entry for _, _, entry in points])
        for stage, mode, entry in reversed(points):  # auto comes first and must lie on top
            _point_with_bars(ax, entry, color=_mode_color(mode), marker=_marker(stage))
        ax.set_xlabel("mean generated tokens")
        ax.set_ylabel("accuracy")
        ax.set_xlim(left=0)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        modes = in_order({mode for _, mode, _ in points}, MODES)
        handles = [Line2D([], [], color=_mode_color(m), lw=5, label=m) for m in modes]
        handles += [_marker_handle(stage) for stage in stages]
        handles.append(Line2D([], [], color=INK, lw=1, ls=":", label="frontier"))
        figure.legend(handles=handles, loc="outside right upper")

    label = "Accuracy against mean generated tokens for every stage and mode"
    return to_svg(f"tradeoff-{slug(name)}", label, draw, width=9.4, height=4.0)


def easy_share_by_level(stages: Stages) -> str:
    """Share of questions that mode auto sent down the short path, by level, a line per stage."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for stage, modes in stages.items():
            by_level = modes.get("auto", {}).get("by_level", {})
            share = [entry["easy_share"] for entry in by_level.values()]
            color, marker = _stage_color(stage), _marker(stage)
            ax.plot(list(by_level), share, color=color, marker=marker, label=stage, ms=6, lw=1.8)
        _percent_axis(ax, "level", "EASY share")
        figure.legend(loc="outside right upper")

    label = "Share of questions routed to the short path by difficulty level, per stage"
    return to_svg("easy", label, draw, width=9.4, height=2.9)


def accuracy_by_level(stages: Stages) -> str:
    """Accuracy by level, a panel per stage and a line per mode."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
        for ax, (stage, modes) in zip(axes, stages.items(), strict=True):
            for mode, entry in modes.items():
                _level_line(ax, mode, entry.get("by_level", {}))
            _percent_axis(ax, "level", "accuracy" if ax is axes[0] else "")
            ax.set_title(stage)
        modes = in_order({mode for found in stages.values() for mode in found}, MODES)
        handles = [Line2D([], [], color=_mode_color(m), lw=2, label=m) for m in modes]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))

    label = "Accuracy by difficulty level, one panel per stage, one line per mode"
    return to_svg("levels", label, draw, width=max(4.2, 2.5 * len(stages)), height=3.2)


def calibration(bins_by_stage: Mapping[str, Sequence[Bin]]) -> str:
    """Share of right short answers against p(EASY); a dot's area is its number of questions."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(bins_by_stage), sharey=True, squeeze=False)[0]
        for ax, (stage, bins) in zip(axes, bins_by_stage.items(), strict=True):
            filled = [one for one in bins if one.count]
            ax.plot([0, 1], [0, 1], color=INK, lw=1, ls=":")
            x, y = [one.p_easy for one in filled], [one.short_right for one in filled]
            size = 320 * np.array([one.count for one in filled]) / sum(b.count for b in filled)
            ax.plot(x, y, color=_stage_color(stage), lw=1.2, alpha=0.6)
            ax.scatter(x, y, s=20 + size, color=_stage_color(stage), alpha=0.85, clip_on=False)
            ax.set_xlim(-0.04, 1.04)
            ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            _percent_axis(ax, "p(EASY)", "short path right" if ax is axes[0] else "")
            ax.set_title(stage)

    label = "Reliability of the router: share of right short answers against p(EASY), per stage"
    return to_svg("gate", label, draw, width=max(3.4, 2.5 * len(bins_by_stage)), height=3.0)


def has_curves(rows: Sequence[Mapping[str, Any]]) -> bool:
    """True where some row has a number that `training_curves` draws."""
    return bool(_curve_names(rows))


def training_curves(stage: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Training metrics of one stage against the step, a panel per metric, a line per seed."""

    def draw(figure: Figure) -> None:
        names = _curve_names(rows)
        axes = figure.subplots(1, len(names), squeeze=False)[0]
        for ax, name in zip(axes, names, strict=True):
            for seed in sorted({row.get("seed", 0) for row in rows}):
                mine = [row for row in rows if row.get("seed", 0) == seed and name in row]
                step, value = _thinned(mine, name)
                ax.plot(step, value, color=_stage_color(stage), lw=1.4, alpha=0.75)
            ax.set_title(_CURVES[name])
            ax.set_xlabel("step")
            ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
            ax.margins(x=0.02)

    num_panels = len(_curve_names(rows))
    label = f"Training curves of {stage}"
    return to_svg(f"curves-{slug(stage)}", label, draw, width=3.2 * num_panels, height=2.4)


def _point_with_bars(ax: Axes, entry: Mapping[str, Any], *, color: str, marker: str) -> None:
    x, y = entry["tokens"], entry["accuracy"]
    (x_low, x_high) = entry.get("tokens_ci", (x, x))
    (y_low, y_high) = entry.get("accuracy_ci", (y, y))
    # An interval need not hold its mean to the last digit; a bar of negative length is refused.
    spread = np.maximum([[x - x_low, x_high - x], [y - y_low, y_high - y]], 0.0)
    style: dict[str, Any] = {"color": color, "elinewidth": 1.1, "zorder": 3}
    ax.errorbar(x, y, xerr=spread[0][:, None], yerr=spread[1][:, None], fmt="none", **style)
    ax.plot(x, y, marker, color=color, ms=8, mec=PAPER, mew=0.9, zorder=4)


def _frontier_line(ax: Axes, entries: Sequence[Mapping[str, Any]]) -> None:
    tokens_N = np.array([entry["tokens"] for entry in entries], np.float64)
    accuracy_N = np.array([entry["accuracy"] for entry in entries], np.float64)
    kept = frontier(tokens_N, accuracy_N)
    x, y = np.append(tokens_N[kept], tokens_N.max()), accuracy_N[kept]
    ax.step(x, np.append(y, y[-1]), where="post", color=INK, lw=1, ls=":", zorder=2)


def _level_line(ax: Axes, mode: str, by_level: Mapping[str, Mapping[str, Any]]) -> None:
    accuracy = np.array([entry["accuracy"] for entry in by_level.values()])
    low_high = np.array(
        [entry.get("accuracy_ci", [entry["accuracy"]] * 2) for entry in by_level.values()]
    ).reshape(-1, 2)
    levels, color = list(by_level), _mode_color(mode)
    ax.fill_between(levels, low_high[:, 0], low_high[:, 1], color=color, alpha=0.15, lw=0)
    ax.plot(levels, accuracy, color=color, marker="o", ms=4, lw=1.8)


def _percent_axis(ax: Axes, x_label: str, y_label: str) -> None:
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    ax.set_ylim(-0.04, 1.04)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _curve_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [name for name in _CURVES if any(_is_number(row.get(name)) for row in rows)]
    # The value of a clipped surrogate says nothing about progress; the reward does.
    return [name for name in names if not (name == "loss" and "reward" in names)]


def _thinned(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values, each the mean of a run of neighbours where there are too many to draw."""
    points = np.array([(row["step"], row[name]) for row in rows if _is_number(row[name])], float)
    num_parts = min(len(points), _MAX_CURVE_POINTS)
    means = [part.mean(axis=0) for part in np.array_split(points, num_parts)] if num_parts else []
    return [float(mean[0]) for mean in means], [float(mean[1]) for mean in means]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _mode_color(mode: str) -> str:
    return _pick(mode, MODE_COLORS, _SPARE)


def _stage_color(stage: str) -> str:
    return _pick(stage, STAGE_COLORS, _SPARE)


def _marker(stage: str) -> str:
    return _pick(stage, STAGE_MARKERS, _SPARE_MARKERS)


def _pick(name: str, table: Mapping[str, str], spare: Sequence[str]) -> str:
    # By the letters and not by the order of asking, so that all figures of a page agree.
    return table.get(name) or spare[sum(name.encode()) % len(spare)]


def _marker_handle(stage: str) -> Line2D:
    return Line2D([], [], color=INK, marker=_marker(stage), ls="", ms=6, label=stage)
