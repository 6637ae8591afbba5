"""`l2s demo --quick` as a user runs it: one process, a folder, and what lies there afterwards."""

import json
import subprocess
import sys

import numpy as np
import pytest

from l2s_jax.training.policy import load_policy

MODES = {"auto", "force-long", "force-short", "free"}
STAGES = {"sft", "grpo_v2", "grpo_plus", "verbatim"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory, user_environment):
    """The workdir of a finished demo and what it told."""
    workdir = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "l2s_jax", "demo", "--quick", "--workdir", str(workdir)]
    done = subprocess.run(
        command, env=user_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert not done.stdout
    return workdir, done.stderr


@pytest.fixture(scope="module")
def summary(demo):
    return json.loads((demo[0] / "summary.json").read_text())


def test_summary_has_every_stage_and_mode(summary):
    assert set(summary["stages"]) == STAGES
    for modes in summary["stages"].values():
        assert set(modes) == MODES
        for entry in modes.values():
            assert 0 <= entry["accuracy_ci"][0] <= entry["accuracy"] <= entry["accuracy_ci"][1] <= 1
            assert entry["tokens"] > 0 and 0 <= entry["easy_share"] <= 1
            assert set(entry["by_level"]) == {"3", "4", "5", "6", "7", "8"}
    assert summary["seeds"] == [7]
    assert summary["seconds"]["total"] > 0


def test_the_method_works_even_when_quick(summary):
    sft = summary["stages"]["sft"]
    assert sft["force-long"]["accuracy"] > 0.9
    assert sft["auto"]["tokens"] < 0.8 * sft["force-long"]["tokens"]
    assert sft["force-short"]["accuracy"] < sft["auto"]["accuracy"] - 0.1
    assert sft["force-short"]["easy_share"] == 1 and sft["force-long"]["easy_share"] == 0


def test_bars_are_judged_and_told(demo, summary):
    assert len(summary["bars"]) == 8
    for bar in summary["bars"]:
        assert ("held" if bar["holds"] else "NOT HELD") in demo[1]
        assert bar["name"] in demo[1]


def test_report_is_one_page_with_the_answers(demo):
    page = (demo[0] / "report.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "<svg" in page and "&lt;EASY&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_sampler_and_trainer_agree(demo):
    for stage in ("grpo_v2", "grpo_plus"):
        lines = (demo[0] / "seed7" / stage / "metrics.jsonl").read_text().splitlines()
        first = json.loads(lines[0])
        # At the first step the policy is the one that sampled.
        assert first["step"] == 1 and first["max_log_ratio"] <= 1e-4


def test_exported_folder_is_the_last_policy(demo):
    ours = load_policy(demo[0] / "seed7" / "grpo_plus")
    theirs = load_policy(demo[0] / "hf")
    assert theirs.triggers == ours.triggers and theirs.model == ours.model
    np.testing.assert_array_equal(
        theirs.params["layers"]["mlp"]["up_proj"]["kernel"],
        ours.params["layers"]["mlp"]["up_proj"]["kernel"],
    )


def test_the_card_quotes_the_evaluation(demo, summary):
    card = (demo[0] / "hf" / "README.md").read_text()
    auto = summary["stages"]["grpo_plus"]["auto"]
    assert "Nothing was measured" not in card
    assert f"{auto['tokens']:.1f}" in card
