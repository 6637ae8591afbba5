"""Figures: well-formed, deterministic, self-contained, and able to stand side by side."""

import re
import xml.etree.ElementTree as ET

import pytest

from l2s_jax.evaluation import calibration, plots
from l2s_jax.evaluation.summary import build_summary
from tests.evaluation.simulate import simulate_answers, simulate_metrics


@pytest.fixture(scope="module")
def figures() -> dict[str, str]:
    answers = simulate_answers(num_per_level=4) + simulate_answers("odd $x$ <b>", num_per_level=4)
    return draw_all(build_summary(answers, {}, [0, 1, 2])["stages"], answers)


def draw_all(stages, answers) -> dict[str, str]:
    modes = {
        mode: [a for a in answers if a["mode"] == mode and a["stage"] == "sft"]
        for mode in stages["sft"]
    }
    gates = calibration.judged_gates(calibration.pair(modes))
    return {
        "tradeoff": plots.tradeoff("all", stages),
        "easy": plots.easy_share_by_level(stages),
        "levels": plots.accuracy_by_level(stages),
        "gate": plots.calibration({"sft": calibration.reliability(*gates)}),
        "sft": plots.training_curves("sft", simulate_metrics("sft")),
        "grpo": plots.training_curves("grpo_v2", simulate_metrics("grpo_v2", num_steps=500)),
    }


def test_are_well_formed_and_labelled(figures):
    for svg in figures.values():
        root = ET.fromstring(svg)
        assert root.attrib["role"] == "img" and root.attrib["aria-label"]
    assert "<b>" not in figures["tradeoff"] and "odd $x$ &lt;b&gt;" in figures["tradeoff"]


def test_ids_are_unique_across_figures(figures):
    ids = [name for svg in figures.values() for name in re.findall(r'\bid="([^"]*)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in figures.values():
        known = set(re.findall(r'\bid="([^"]*)"', svg))
        asked = set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', svg))
        assert {a or b for a, b in asked} <= known


def test_links_nowhere_and_follows_the_page(figures):
    for svg in figures.values():
        assert not re.search(r'(?<!xmlns=")(?<!xlink=")https?://', svg)
        assert "var(--ink" in svg and "#010203" not in svg


def test_same_input_same_bytes():
    rows = simulate_metrics("sft")
    assert plots.training_curves("sft", rows) == plots.training_curves("sft", rows)


def test_curves_show_what_there_is():
    svg = plots.training_curves("grpo_v2", simulate_metrics("grpo_v2"))
    assert "mean reward" in svg and "EASY share" in svg and "nats" not in svg
    assert "loss, nats per token" in plots.training_curves("sft", simulate_metrics("sft"))
    assert not plots.has_curves([{"step": 0, "seconds": 1.0}])
    assert not plots.has_curves([{"step": 0, "loss": float("nan")}])


def test_entry_without_intervals_or_levels_is_drawn():
    stages = {"sft": {"auto": {"accuracy": 0.9, "tokens": 20.0}}}
    assert plots.tradeoff("bare", stages).startswith("<svg")
