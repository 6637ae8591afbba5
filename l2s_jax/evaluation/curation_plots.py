"""Figures of a curation's page.

Lives here: lengths and pass rates as histograms. Not here: the page (`curation_report`), the frame
of a figure (`svg`).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from l2s_jax.evaluation.svg import to_svg

PATH_COLORS = {"long": "#e08a00", "short": "#009e73"}
_SPARE = "#6f7bd9"
_NUM_BINS = 40


def token_histograms(lengths: Mapping[str, Sequence[int]]) -> str:
    """How many paths have so many tokens, a panel per kind of path, on one logarithmic axis."""
    longest = max(max(of_one, default=1) for of_one in lengths.values())
    shortest = min(min(of_one, default=longest) for of_one in lengths.values())
    edges = np.geomspace(max(shortest, 1), max(longest, shortest + 1, 2), _NUM_BINS + 1)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(lengths), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (name, of_one) in zip(axes, lengths.items(), strict=True):
            color = PATH_COLORS.get(name.split()[0], _SPARE)
            # The first and last edge come back from a logarithm: they may cut off their own value.
            ax.hist(np.clip(of_one, edges[0], edges[-1]), bins=edges.tolist(), color=color)
            ax.set_title(name, loc="left")
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        axes[-1].set_xlabel("tokens of the student, thought and answer text")

    label = "Histograms of token lengths, one panel per path"
    return to_svg("lengths", label, draw, width=9.4, height=1.2 + 1.5 * len(lengths))


def pass_rates(rates: Sequence[float]) -> str:
    """How many questions have which share of right short candidates."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        values, counts = np.unique(np.round(rates, 4), return_counts=True)
        gap = min(np.diff(values), default=0.2)
        ax.bar(values, counts, width=0.8 * gap, color=PATH_COLORS["short"])
        ax.set_xlim(-0.12, 1.12)
        ax.set_xlabel("share of the short candidates that are right")
        ax.set_ylabel("questions")
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))

    label = "Questions by the share of right short candidates"
    return to_svg("pass-rates", label, draw, width=9.4, height=2.6)
