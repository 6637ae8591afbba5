import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from l2s_jax.config import from_json, load_config, override, to_json
from l2s_jax.curation.reject import CurateRun, run
from l2s_jax.data.arithmetic import ArithmeticProblems, ArithmeticTeachers
from l2s_jax.data.recorded import RecordedTraces
from l2s_jax.data.store import read_items, read_manifest
from l2s_jax.tokens.tokenizer import load_tokenizer
from l2s_jax.verify.answers import answer_or_text, final_answer
from l2s_jax.verify.math import equivalent
from l2s_jax.verify.second import second_opinion

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "curate_gsm8k_traces.py"
ARITHMETIC = CurateRun(
    source=ArithmeticTeachers(problems=ArithmeticProblems(num_per_level=40)),
    tokenizer=None,
    min_regular_share=0.0,
)


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


def test_arithmetic_world(tmp_path):
    run(ARITHMETIC, tmp_path)
    items, summary = read_items(tmp_path / "items"), summary_of(tmp_path)
    problems = {problem.id: problem for problem in ARITHMETIC.source.load()}
    assert [item.id for item in items] == list(problems)
    for item in items:
        tried = ARITHMETIC.source.short_candidates(problems[item.id], 8)
        right = [trace for trace in tried if trace.answer == item.reference]
        assert (item.num_trials, item.num_right) == (8, len(right))
        shortest = min((len(t.thought.split()) for t in right), default=None)
        assert shortest == (len(item.short.split()) if item.is_easy else None)
        assert not item.is_easy or item.short_answer == item.reference
    assert summary["num_easy"] == sum(item.is_easy for item in items)
    by_level = summary["easy_share_by_level"]
    assert by_level["3"] > by_level["8"]  # what is EASY was found, nobody said it
    assert summary["acceptance_by_teacher"]["steps"]["share"] == 1.0
    assert sum(summary["rejections"].values()) == 8 * len(items) - summary["num_easy"]


def test_a_second_run_writes_the_same_items(tmp_path):
    for name in ("a", "b", "a"):  # the last over a finished one
        run(ARITHMETIC, tmp_path / name)
    manifests = [read_manifest(tmp_path / name / "items") for name in ("a", "b")]
    assert manifests[0] == manifests[1]
    assert len(list((tmp_path / "a" / "items").iterdir())) == 2


def test_unverified_ablation_keeps_the_first_candidate(tmp_path):
    run(dataclasses.replace(ARITHMETIC, num_candidates=0), tmp_path)
    items = read_items(tmp_path / "items")
    assert all(item.is_easy for item in items)
    assert any(item.short_answer != item.reference for item in items)
    assert list(summary_of(tmp_path)["acceptance_by_teacher"]) == ["steps"]


def test_max_items(tmp_path):
    run(dataclasses.replace(ARITHMETIC, max_items=5), tmp_path)
    assert len(read_items(tmp_path / "items")) == 5
    assert summary_of(tmp_path)["num_items"] == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_candidates": -1}, "0 takes one unverified"),
        ({"min_regular_share": 1.0}, "min_regular_share=1.0"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"verify_seconds": 0.0}, "verify_seconds=0.0"),
        ({"max_items": 0}, "max_items=0"),
        ({"source": RecordedTraces(path="x", long_teacher="y")}, "tokenizer=null"),
    ],
)
def test_configs_that_cannot_work(change, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(ARITHMETIC, **change)


def test_config_survives_json():
    for cfg in (ARITHMETIC, load_config(RECIPE)):
        assert from_json(CurateRun, json.loads(json.dumps(to_json(cfg)))) == cfg


@pytest.fixture(scope="module")
def real_run(shared_data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("curate")
    cfg = override(
        load_config(RECIPE),
        [
            f"source.path={shared_data / 'traces' / 'mip_gsm8k_paired.jsonl'}",
            f"tokenizer={shared_data / 'tokenizers' / 'qwen2.5'}",
        ],
    )
    run(cfg, workdir)
    return cfg, workdir


def test_real_traces(real_run):
    cfg, workdir = real_run
    items, summary = read_items(workdir / "items"), summary_of(workdir)
    assert summary["num_problems"] == 582
    assert len(items) > 540
    assert summary["easy_share"] > 0.9
    assert summary["acceptance_by_teacher"]["deepseek-ai/DeepSeek-R1"]["share"] > 0.94
    assert summary["tokens"]["short"]["mean"] < 0.2 * summary["tokens"]["long_of_easy"]["mean"]
    tokenizer = load_tokenizer(cfg.tokenizer)
    problems = {problem.id: problem for problem in cfg.source.load()}
    for item in items:
        assert equivalent(item.reference, final_answer(item.long_answer)).equivalent
        assert second_opinion(item.reference, final_answer(item.long_answer)) is True
        assert "think>" not in item.long
        if not item.is_easy:
            continue
        assert equivalent(item.reference, final_answer(item.short_answer)).equivalent
        assert second_opinion(item.reference, final_answer(item.short_answer)) is True
        right = [
            len(tokenizer.encode(trace.thought)) + len(tokenizer.encode(trace.answer))
            for trace in cfg.source.short_candidates(problems[item.id], 3)
            if equivalent(item.reference, answer_or_text(trace.answer)).equivalent
        ]
        kept = len(tokenizer.encode(item.short)) + len(tokenizer.encode(item.short_answer))
        assert kept == min(right)


def test_no_kept_trace_is_one_that_the_file_calls_wrong(real_run):
    cfg, workdir = real_run
    labels = {}
    for line in pathlib.Path(cfg.source.path).read_text().splitlines():
        row = json.loads(line)
        labels.setdefault(row["qid"], {})[row["model"]] = (row.get("correct"), row["response"])
    for item in read_items(workdir / "items"):
        for model, (correct, response) in labels[item.id].items():
            taken = model == cfg.source.long_teacher or (
                item.is_easy
                and model in cfg.source.short_teachers
                and response.strip().startswith(item.short)
            )
            assert not taken or correct is not False, (item.id, model)


def test_without_an_item_there_is_an_error_and_no_file(tmp_path):
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(record("1", "thinker", "long", "Hm.</think>It is 5.", 11)) + "\n")
    source = RecordedTraces(path=str(path), long_teacher="thinker")
    with pytest.raises(ValueError, match="long-wrong:different"):
        run(CurateRun(source=source, tokenizer="arithmetic"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def record(id, model, kind, response, final_start=None):
    fixed = {"qid": f"q{id}", "question": f"{id}. 2+2?", "answer": "4"}
    given = {"id": f"{id}-{model}", "model": model, "kind": kind, "response": response}
    return fixed | given | {"final_start": final_start}


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="finds the worker through /proc")
def test_killed_in_the_middle_and_run_again(tmp_path, shared_data):
    """The hostile pair holds the run in a worker; SIGKILL finds it there."""
    traces, workdir, seconds = tmp_path / "traces.jsonl", tmp_path / "out", 1.5
    rows = []
    for i in range(3):
        rows.append(record(str(i), "thinker", "long", r"Hm.</think>It is \boxed{4}.", 11))
        rows.append(record(str(i), "terse", "short", "2+2.\nSo \\boxed{9^{9^{9^{9}}}}"))
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = tmp_path / "curate.py"
    script.write_text(
        "import sys\n"
        "from l2s_jax.curation.reject import CurateRun, run\n"
        "from l2s_jax.data.recorded import RecordedTraces\n"
        "source = RecordedTraces(path=sys.argv[1], long_teacher='thinker')\n"
        f"run(CurateRun(source=source, tokenizer=sys.argv[3], verify_seconds={seconds},"
        " num_workers=1), sys.argv[2])\n"
    )
    tokenizer = str(shared_data / "tokenizers" / "qwen2.5")
    command = [sys.executable, str(script), str(traces), str(workdir), tokenizer]
    env = os.environ | {"PYTHONPATH": str(ROOT)}

    first = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    worker = wait_for_child(first.pid)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (workdir / "items" / "manifest.json").exists()
    assert not (workdir / "summary.json").exists()
    deadline = time.monotonic() + seconds + 20
    while pathlib.Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not pathlib.Path(f"/proc/{worker}").exists()  # the orphan ended by itself

    subprocess.run(command, env=env, stderr=subprocess.DEVNULL, check=True, timeout=120)
    assert summary_of(workdir)["rejections"] == {"wrong:timeout": 3}
    assert [item.is_easy for item in read_items(workdir / "items")] == [False] * 3


def wait_for_child(pid):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            for child in task.read_text().split():
                if "l2s_jax.verify.worker" in pathlib.Path(f"/proc/{child}/cmdline").read_text():
                    time.sleep(1.0)  # let it import and take the pair
                    return int(child)
        time.sleep(0.05)
    raise AssertionError("no worker was started")
