"""Reading records and metrics: fields are checked, lines are named."""

import pytest

from l2s_jax.evaluation.records import in_order, read_metrics, read_records
from tests.evaluation.simulate import simulate_answers, write_jsonl


def test_reads_what_was_written(tmp_path):
    answers = simulate_answers(num_per_level=1)
    write_jsonl(tmp_path / "b.jsonl", answers[3:])
    write_jsonl(tmp_path / "a.jsonl", answers[:3])
    assert read_records(tmp_path) == answers
    assert read_records(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_tokens": "12"}, r"sft\.jsonl:2: num_tokens='12' is a str"),
        ({"correct": None}, r"sft\.jsonl:2: correct=None"),
        ({"mode": "force_long"}, r"sft\.jsonl:2: mode='force_long'.*force-long"),
        ({"route": "easy"}, r"sft\.jsonl:2: route='easy'"),
    ],
)
def test_bad_field_is_named(tmp_path, change, message):
    answers = simulate_answers(num_per_level=1)[:2]
    write_jsonl(tmp_path / "sft.jsonl", [answers[0], answers[1] | change])
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path)


def test_missing_field_is_named(tmp_path):
    answer = dict(simulate_answers(num_per_level=1)[0])
    del answer["route"]
    write_jsonl(tmp_path / "sft.jsonl", [answer])
    with pytest.raises(ValueError, match=r"sft\.jsonl:1: .*'route'"):
        read_records(tmp_path)


def test_metrics_need_their_step(tmp_path):
    write_jsonl(tmp_path / "grpo_v2.jsonl", [{"step": 0, "reward": 0.5}])
    write_jsonl(tmp_path / "sft.jsonl", [{"step": 0, "loss": 2.0}])
    assert list(read_metrics(tmp_path)) == ["sft", "grpo_v2"]
    write_jsonl(tmp_path / "sft.jsonl", [{"loss": 2.0}])
    with pytest.raises(ValueError, match=r"sft\.jsonl:1: step=None"):
        read_metrics(tmp_path)


def test_unknown_names_come_last():
    assert in_order({"zeta", "sft", "alpha", "base"}, ("base", "sft")) == [
        "base",
        "sft",
        "alpha",
        "zeta",
    ]
