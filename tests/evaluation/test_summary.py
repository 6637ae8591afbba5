"""The summary file: order, seeds, and what is refused."""

import json

import pytest

from l2s_jax.evaluation.stats import summarize
from l2s_jax.evaluation.summary import build_summary, read_summary
from tests.evaluation.simulate import simulate_answers


def test_stages_and_modes_in_order():
    answers = simulate_answers("verbatim", num_per_level=2) + simulate_answers(num_per_level=2)
    got = build_summary(answers[::-1], {"train": 1.5}, [0, 1, 2])
    assert list(got["stages"]) == ["sft", "verbatim"]
    assert list(got["stages"]["sft"]) == ["auto", "force-long", "force-short", "free"]
    assert got["seconds"] == {"train": 1.5} and got["seeds"] == [0, 1, 2]
    auto = [a for a in answers if a["stage"] == "sft" and a["mode"] == "auto"]
    assert got["stages"]["sft"]["free"]["wrote_short_after_easy"]["share"] == 1.0
    assert got["stages"]["sft"]["auto"] == summarize(auto) | {"seeds": [0, 1, 2]}


def test_survives_json(tmp_path):
    summary = build_summary(simulate_answers(num_per_level=2), {}, [0, 1, 2])
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary))
    assert read_summary(path) == summary


def test_fewer_seeds_are_said_and_strange_ones_refused():
    answers = simulate_answers(num_per_level=2, seeds=(1,))
    assert build_summary(answers, {}, [0, 1])["stages"]["sft"]["auto"]["seeds"] == [1]
    with pytest.raises(ValueError, match=r"sft auto.*seeds \[1\].*\[0\]"):
        build_summary(answers, {}, [0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not found.*l2s eval"),
        ("{", "not JSON"),
        ("[]", "stages=None"),
        ('{"stages": {}}', "stages={}"),
        ('{"stages": {"sft": []}}', r"stages\.sft=\[\]"),
        ('{"stages": {"sft": {"auto": {"accuracy": 1}}}}', r"stages\.sft\.auto\.tokens=None"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_summary(path)
