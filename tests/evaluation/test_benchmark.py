"""A benchmark run: whole records, the shape of the summary, who counts as right."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from l2s_jax.data.arithmetic import ArithmeticProblems
from l2s_jax.data.sources import JsonlProblems
from l2s_jax.evaluation.benchmark import EvalRun, answer_all, run, write_records
from l2s_jax.evaluation.records import Answer, read_records
from l2s_jax.evaluation.summary import read_summary
from l2s_jax.sampling.controllers.routing import MODES, RoutingConfig
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import SamplingConfig
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.policy import save_policy
from l2s_jax.verify.math import Verifier
from tests.training.tiny import taught_policy, untaught_policy

PROBLEMS = ArithmeticProblems(split="test", num_per_level=4, levels=(3, 5))
SAMPLING = SamplingConfig(temperature=0.0, max_new_tokens=16, max_rows=8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(config, workdir) of a whole run."""
    root = tmp_path_factory.mktemp("eval")
    save_policy(root / "policy", taught_policy())
    cfg = EvalRun(
        model=str(root / "policy"), problems=PROBLEMS, sampling=SAMPLING, seed=3, num_workers=1
    )
    run(cfg, root / "run")
    return cfg, root / "run"


def test_one_whole_record_per_answer(finished):
    _, workdir = finished
    assert [path.name for path in (workdir / "records").iterdir()] == ["sft-3.jsonl"]
    answers = read_records(workdir / "records")  # checks every field's type and words
    problems = {problem.id: problem for problem in PROBLEMS.load()}
    wanted = [(mode, id) for mode in MODES for id in problems]
    assert [(answer["mode"], answer["id"]) for answer in answers] == wanted
    for answer in answers:
        problem = problems[answer["id"]]
        assert set(answer) == set(Answer.__annotations__)
        assert (answer["stage"], answer["seed"]) == ("sft", 3)
        assert answer["reference"] == problem.answer and answer["level"] == problem.level
        assert answer["question"] == problem.question
        assert 1 <= answer["num_tokens"] <= SAMPLING.max_new_tokens
        assert not (answer["correct"] and answer["finish_reason"] == "length")
        if answer["mode"].startswith("force"):
            assert answer["route"] == answer["mode"].removeprefix("force-")
            assert answer["text"].startswith("<LONG>" if answer["route"] == "long" else "<EASY>")


def test_the_summary_covers_every_mode_and_level(finished):
    _, workdir = finished
    summary = read_summary(workdir / "summary.json")
    assert summary["seeds"] == [3] and summary["seconds"]["eval"] > 0
    assert list(summary["stages"]) == ["sft"] and set(summary["stages"]["sft"]) == set(MODES)
    answers = read_records(workdir / "records")
    for mode, entry in summary["stages"]["sft"].items():
        mine = [answer for answer in answers if answer["mode"] == mode]
        assert entry["tokens"] == pytest.approx(np.mean([a["num_tokens"] for a in mine]))
        assert entry["num_questions"] == 8 and set(entry["by_level"]) == {"3", "5"}
        assert {"accuracy", "accuracy_ci", "easy_share"} <= set(entry)
    assert summary["stages"]["sft"]["force-short"]["easy_share"] == 1.0


def test_weights_may_be_cut_over_devices(finished, tmp_path):
    cfg, workdir = finished
    cut = dataclasses.replace(cfg, mesh=MeshConfig(fsdp=2, tensor=2), dtype="float32")
    run(cut, tmp_path)
    for a, b in zip(
        read_records(tmp_path / "records"), read_records(workdir / "records"), strict=True
    ):
        floats = {"p_easy": a["p_easy"], "p_short": a["p_short"]}
        assert a == b | floats
        assert floats == pytest.approx({name: b[name] for name in floats}, abs=1e-5)


def test_again_it_writes_the_same(finished):
    cfg, workdir = finished
    before = (workdir / "records" / "sft-3.jsonl").read_bytes()
    run(cfg, workdir)
    assert (workdir / "records" / "sft-3.jsonl").read_bytes() == before
    assert {path.name for path in workdir.iterdir()} == {"records", "summary.json"}


def ask_all(policy, problems, mode, sampling=SAMPLING):
    engine = Engine(policy, sampling, make_mesh(MeshConfig(), jax.devices()[:1]))
    with Verifier(1, 5.0) as verifier:
        return answer_all(engine, problems, verifier, mode=mode, stage="base", seed=0)


def test_threshold_and_switch_are_obeyed():
    """An evaluation may sweep the gate; only the modes are its own."""
    shares = []
    for threshold in (0.0, 1.0):
        routing = RoutingConfig(threshold=threshold)
        answers = ask_all(
            taught_policy(), PROBLEMS.load(), "auto", dataclasses.replace(SAMPLING, routing=routing)
        )
        shares.append(np.mean([answer["route"] == "short" for answer in answers]))
    assert shares == [1.0, 0.0]
    routing = RoutingConfig(switch="replace")
    answers = ask_all(
        taught_policy(),
        PROBLEMS.load(),
        "force-short",
        dataclasses.replace(SAMPLING, routing=routing),
    )
    assert all(answer["text"].startswith("<SHORT>") for answer in answers)


def test_a_model_without_triggers_is_judged_by_all_it_writes():
    """It cannot write the answer trigger; its baseline would be 0 % whatever it says."""
    problems = PROBLEMS.load()
    first = ask_all(untaught_policy(), problems, "free")
    said = [answer for answer in first if answer["finish_reason"] == "stop"]
    # The same questions again, with what it says for their reference.
    agreeable = [
        dataclasses.replace(problem, answer=answer["text"].strip() or "nothing")
        for problem, answer in zip(problems, first, strict=True)
    ]
    again = ask_all(untaught_policy(), agreeable, "free")
    right = [answer["id"] for answer in again if answer["correct"]]
    assert right == [a["id"] for a in said if 0 < len(a["text"].strip()) <= 40]
    with pytest.raises(ValueError, match="need a model that knows the triggers"):
        ask_all(untaught_policy(), problems, "auto")


def test_samples_of_a_question_are_records_of_their_own():
    sampling = dataclasses.replace(SAMPLING, num_samples=2, temperature=1.0)
    answers = ask_all(taught_policy(), PROBLEMS.load()[:4], "free", sampling)
    assert len(answers) == 8 and len({answer["id"] for answer in answers}) == 4
    assert all(answer["p_easy"] is None or 0 <= answer["p_easy"] <= 1 for answer in answers)


def test_records_are_json_and_replaced_whole(tmp_path):
    answers = ask_all(taught_policy(), PROBLEMS.load()[:4], "auto")
    write_records(tmp_path, "sft-0", answers)
    write_records(tmp_path, "sft-0", answers[:2])
    lines = (tmp_path / "records" / "sft-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [a["id"] for a in answers[:2]]
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["sft-0.jsonl"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": ()}, r"modes=\(\)"),
        ({"modes": ("auto", "auto")}, "each once"),
        ({"stage": "a/b"}, "stage='a/b'"),
        ({"stage": ""}, "stage=''"),
        ({"num_workers": 0}, "num_workers=0"),
        (
            {"sampling": SamplingConfig(routing=RoutingConfig(modes=("free",)))},
            r"EvalRun\.modes decides",
        ),
    ],
)
def test_faulty_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        EvalRun(model="nowhere", problems=PROBLEMS, **changes)


def test_a_missing_benchmark_leaves_nothing(tmp_path):
    save_policy(tmp_path / "policy", taught_policy())
    problems = JsonlProblems(path=str(tmp_path / "none.jsonl"))
    cfg = EvalRun(model=str(tmp_path / "policy"), problems=problems)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        run(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()
