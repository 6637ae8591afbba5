"""The demo's bars, judged at their very edges."""

import copy
import dataclasses
import json
import math

import pytest

from l2s_jax.cli.bars import judge_bars


def entry(accuracy, tokens, shares=(0.9, 0.7, 0.5, 0.3)):
    by_level = {str(3 + i): {"easy_share": share} for i, share in enumerate(shares)}
    return {"accuracy": accuracy, "tokens": tokens, "by_level": by_level}


# Every bar exactly at its edge, in numbers whose differences round away from it.
EDGE = {
    "sft": {
        "auto": entry(0.94, 65.0),
        "force-long": entry(0.97, 100.0),
        "force-short": entry(0.84, 20.0),
    },
    "grpo_v2": {"auto": entry(0.94, 60.0)},
    "grpo_plus": {"auto": entry(0.93, 55.25)},
}
NAMES = [bar.name for bar in judge_bars(EDGE)]


def judged(**changes):
    """Names of the bars that fail; changes are `stage__mode={field: value}`."""
    stages = copy.deepcopy(EDGE)
    for place, fields in changes.items():
        stage, mode = place.split("__")
        stages[stage][mode.replace("_", "-")].update(fields)
    return [NAMES.index(bar.name) for bar in judge_bars(stages) if not bar.holds]


def test_all_hold_at_the_edge():
    exact = copy.deepcopy(EDGE)
    exact["sft"]["force-long"]["accuracy"] = 0.95
    assert judge_bars(exact)[0].holds
    assert 0.94 - 0.97 < -0.03 and 0.94 - 0.84 < 0.1  # what floating point makes of it
    assert judged() == []


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"sft__force_long": {"accuracy": 0.949}}, [0]),
        ({"sft__force_long": {"accuracy": 0.971}}, [1]),
        ({"sft__force_long": {"tokens": 99.0}}, [2]),
        ({"sft__force_short": {"accuracy": 0.841}}, [3]),
        ({"sft__auto": {"by_level": entry(0, 0, (0.3, 0.5, 0.7, 0.9))["by_level"]}}, [4]),
        ({"grpo_v2__auto": {"accuracy": 0.939}}, [5]),
        ({"grpo_plus__auto": {"tokens": 55.5}}, [6]),
        ({"grpo_plus__auto": {"accuracy": 0.929}}, [7]),
    ],
)
def test_each_fails_alone_just_past_its_edge(changes, failing):
    assert judged(**changes) == failing


def trend_bar(shares):
    stages = copy.deepcopy(EDGE)
    stages["sft"]["auto"] = entry(0.92, 65.0, shares)
    return judge_bars(stages)[4]


def test_the_trend_is_of_ranks():
    assert trend_bar((0.9, 0.89, 0.2, 0.1)).value == pytest.approx(-1.0)
    one_swap = trend_bar((0.8, 0.9, 0.5, 0.3))
    assert one_swap.value == pytest.approx(-0.8) and not one_swap.holds


def test_a_constant_share_has_no_trend_and_is_no_nan():
    bar = trend_bar((0.5, 0.5, 0.5, 0.5))
    assert not bar.holds and "same at every level" in bar.note
    assert not any(math.isnan(b.value) for b in judge_bars(EDGE))
    json.dumps(dataclasses.asdict(bar), allow_nan=False)
