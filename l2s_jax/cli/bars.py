"""What the demo promises, held against what it measured.

Lives here: the bars and their judgement. Not here: how anything was measured (`cli/demo.py`).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from l2s_jax.evaluation.stats import level_trend

ROUNDING = 1e-9  # 0.92 - 0.95 is a little below -0.03 in floating point, and is three points
Stages = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """One promise: a measured value, what it must reach, and whether it does."""

    name: str
    value: float
    bar: str
    holds: bool
    note: str = ""


def judge_bars(stages: Stages) -> list[Bar]:
    """The demo's bars, in the order of the method; stages are those of `summary.json`."""
    sft, plus, v2 = stages["sft"], stages["grpo_plus"]["auto"], stages["grpo_v2"]["auto"]
    auto, long, short = sft["auto"], sft["force-long"], sft["force-short"]
    trend = level_trend(auto["by_level"], "easy_share")
    # The same share at every level has no rank correlation, and JSON no number for that.
    no_trend = math.isnan(trend)
    trend = 0.0 if no_trend else trend
    return [
        _at_least("stage 1: accuracy, long path forced", long["accuracy"], 0.95),
        _at_least(
            "stage 1: auto's accuracy less force-long's", auto["accuracy"] - long["accuracy"], -0.03
        ),
        _at_least("stage 1: tokens saved by auto", 1 - auto["tokens"] / long["tokens"], 0.35),
        _at_least(
            "stage 1: auto's accuracy less force-short's",
            auto["accuracy"] - short["accuracy"],
            0.10,
        ),
        Bar(
            name="stage 1: EASY share against level (Spearman)",
            value=trend,
            bar="≤ -0.9",
            holds=trend <= -0.9 + ROUNDING,
            note="the share is the same at every level" if no_trend else "",
        ),
        _at_least(
            "v2: accuracy less stage 1's", v2["accuracy"] - auto["accuracy"], 0.0, "auto, greedy"
        ),
        _at_least(
            "plus: tokens saved against stage 1's auto", 1 - plus["tokens"] / auto["tokens"], 0.15
        ),
        _at_least("plus: accuracy less stage 1's", plus["accuracy"] - auto["accuracy"], -0.01),
    ]


def _at_least(name: str, value: float, floor: float, note: str = "") -> Bar:
    holds = value >= floor - ROUNDING
    return Bar(name=name, value=value, bar=f"≥ {floor:g}", holds=holds, note=note)
