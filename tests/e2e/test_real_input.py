"""The whole path on real material: recorded traces, Qwen2.5's tokenizer, GSM8K, a model folder.

The verbs run as a user starts them, each in a process of its own. Only the weights are not real:
a tiny random Qwen2, trained for a few steps on a few items, so that it knows when to say what.
"""

import json
import math
import pathlib

import pytest

from l2s_jax.cli.main import main
from tests.e2e.real_input import (
    CONFIGS,
    STOP_ID,
    l2s,
    make_qwen_folder,
    run,
    select_traces,
    transformers_answers,
)

NUM_PROMPTS, MAX_TOKENS = 32, 32
MODES = ("auto", "force-long", "force-short", "free")
OPENINGS = {"force-long": ["<LONG>"], "force-short": ["<EASY>", "<SHORT>"]}
EASY, LONG, SHORT, ANSWER = range(151_665, 151_669)  # padding rows of Qwen2.5's embedding


def read_lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def base(work, shared_data) -> pathlib.Path:
    make_qwen_folder(work / "base", shared_data / "tokenizers" / "qwen2.5")
    return work / "base"


@pytest.fixture(scope="module")
def curated(work, base, shared_data) -> pathlib.Path:
    """All recorded traces, curated as the recipe says."""
    traces = shared_data / "traces" / "mip_gsm8k_paired.jsonl"
    run(
        "curate",
        "curate_gsm8k_traces.py",
        work / "all",
        f"source.path={traces}",
        f"tokenizer={base}",
    )
    return work / "all"


@pytest.fixture(scope="module")
def trained(work, base, curated, shared_data) -> pathlib.Path:
    """Stage 1 on three EASY and three regular items, one a step, the route weighed up."""
    traces = shared_data / "traces" / "mip_gsm8k_paired.jsonl"
    few = work / "few.jsonl"
    few.write_text(select_traces(traces, curated / "items", 7), encoding="utf-8")
    argv = ("curate", "--config", CONFIGS / "curate_gsm8k_traces.py", "--workdir", work / "few")
    more = ("--set", f"source.path={few}", f"tokenizer={base}", "num_workers=1")
    assert main([*map(str, argv), *more]) == 0
    told = run(
        "sft",
        "sft_gsm8k_traces.py",
        work / "sft",
        f"model={base}",
        f"data.path={work / 'few'}",
        "data.layout.route_weight=100",
        "data.max_tokens=560",
        "row_length=560",
        "batch_rows=1",
        "num_steps=16",
        "optim.peak_lr=2e-2",
        "optim.warmup_steps=0",
    )
    assert "data.max_tokens=560 leaves out 1 of 7 items" in told
    return work / "sft"


@pytest.fixture(scope="module")
def questions(shared_data) -> list[str]:
    lines = read_lines(shared_data / "benchmarks" / "gsm8k_test.jsonl")
    return [line["question"] for line in lines[:NUM_PROMPTS]]


@pytest.fixture(scope="module")
def answers(work, trained, questions) -> dict[str, list[dict]]:
    """What `l2s generate` writes, by mode."""
    prompts = work / "prompts.jsonl"
    lines = [{"id": str(n), "question": question} for n, question in enumerate(questions)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    argv = ("generate", "--model", trained, "--prompts", prompts, "--temperature", "0")
    argv = tuple(map(str, (*argv, "--max-new-tokens", MAX_TOKENS)))
    found = {}
    for mode in MODES:
        out = work / f"{mode}.jsonl"
        more = ("--mode", mode, "--out", str(out))
        if mode == "auto":
            l2s(*argv, *more)
        else:  # in this process: the modes share one program
            assert main([*argv, *more]) == 0
        found[mode] = read_lines(out)
    return found


@pytest.fixture(scope="module")
def exported(work, trained) -> pathlib.Path:
    l2s("export", "--checkpoint", trained, "--out", work / "hf")
    return work / "hf"


def test_every_recorded_trace_is_judged(curated):
    summary = json.loads((curated / "summary.json").read_text())
    assert (summary["num_problems"], summary["num_items"], summary["num_easy"]) == (582, 553, 501)
    assert summary["tokens"]["long_of_easy"]["mean"] > 8 * summary["tokens"]["short"]["mean"]


def test_stage_1_learns(trained):
    losses = [line["loss"] for line in read_lines(trained / "metrics.jsonl")]
    assert len(losses) == 16
    assert losses[-1] < 0.8 * losses[0]


def test_every_mode_does_what_it_says(answers):
    assert all(len(records) == NUM_PROMPTS for records in answers.values())
    # Both routes are taken, or the comparisons with transformers would show half of it.
    routes = [record["route"] for record in answers["auto"]]
    assert min(routes.count("short"), routes.count("long")) >= 1, routes
    for record in answers["auto"]:
        first = record["token_ids"][0]
        assert record["route"] == {EASY: "short", LONG: "long"}.get(first, "none")
        assert record["forced"] == ([1] if first == EASY else [])
        assert first != EASY or record["token_ids"][1] == SHORT
        # sequence_bias would force SHORT after this one too, and we only after the first token.
        assert EASY not in record["token_ids"][1:]
    for record in answers["force-long"]:
        assert (record["token_ids"][0], record["forced"], record["route"]) == (LONG, [0], "long")
    for record in answers["force-short"]:
        assert record["token_ids"][:2] == [EASY, SHORT]
        assert (record["forced"], record["route"]) == ([0, 1], "short")
    assert all(record["forced"] == [] for record in answers["free"])


def test_some_answers_end_and_some_are_cut(answers):
    """Both ends are compared below, and the stop is part of the answer."""
    for records in answers.values():
        ended = [record for record in records if record["finish_reason"] == "stop"]
        assert 1 <= len(ended) < NUM_PROMPTS
        assert all(record["token_ids"][-1] == STOP_ID for record in ended)


@pytest.mark.parametrize("mode", MODES)
def test_transformers_writes_the_same_tokens(mode, answers, exported, questions):
    # In auto the folder's own generation_config routes; elsewhere nothing may be inserted.
    options = {} if mode == "auto" else {"sequence_bias": None}
    opening = OPENINGS.get(mode, [])
    theirs = transformers_answers(exported, questions, opening, MAX_TOKENS, **options)
    assert theirs == [record["token_ids"] for record in answers[mode]]


def test_stage_2_runs_on_questions_in_prose(work, trained, shared_data):
    problems = shared_data / "benchmarks" / "gsm8k_train.jsonl"
    run(
        "grpo",
        "grpo_gsm8k.py",
        work / "grpo",
        f"model={trained}",
        f"problems.path={problems}",
        "problems.limit=8",
        "rollouts=forced_pair",
        "sampling.num_samples=4",
        "sampling.max_new_tokens=16",
        "sampling.max_rows=8",
        "prompts_per_step=2",
        "num_steps=2",
        "optim.warmup_steps=0",
    )
    first, second = read_lines(work / "grpo" / "metrics.jsonl")
    assert all(map(math.isfinite, (*first.values(), *second.values())))
    assert first["max_log_ratio"] <= 1e-4  # the sampler's policy is the trainer's
    assert 0 < first["tokens"] <= 16


def test_evaluation_leaves_out_what_was_trained_on(work, trained, shared_data, capsys):
    """The traces answer questions of the very benchmark."""
    problems = shared_data / "benchmarks" / "gsm8k_test.jsonl"
    argv = ["eval", "--config", str(CONFIGS / "eval_gsm8k.py"), "--workdir", str(work / "eval")]
    assignments = [
        f"model={trained}",
        f"problems.path={problems}",
        f"problems.exclude={work / 'all'}",
        "problems.limit=4",
        "sampling.max_new_tokens=8",
        "sampling.max_rows=4",
        "num_workers=1",
    ]
    assert main([*argv, "--set", *assignments]) == 0
    assert "4 problems, 4 left out" in capsys.readouterr().err
    [records] = (work / "eval" / "records").iterdir()
    asked = {(record["mode"], record["id"]) for record in read_lines(records)}
    kept = {f"gsm8k-test-{n}" for n in (1, 4, 6, 7)}
    assert asked == {(mode, id) for mode in MODES for id in kept}
