"""`l2s generate`: prompts of every form in, one record per answer out, in order."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from l2s_jax.cli.main import main
from l2s_jax.data.arithmetic import make_tokenizer
from l2s_jax.model.config import ModelConfig
from l2s_jax.sampling.policy import Policy
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.tokens.triggers import TriggerStarts
from l2s_jax.training.policy import save_policy, teach_triggers
from l2s_jax.training.state import fresh_params

FIELDS = ["id", "sample", "text", "token_ids", "route", "p_easy", "forced", "logp", "finish_reason"]
QUESTION = "3+4"
BUDGET = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> pathlib.Path:
    """Random policies: `routed`, `plain` (no triggers), `bare` (no tokenizer either)."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer()
    shape = ModelConfig(
        vocab_size=32,
        width=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        ffn_width=16,
        max_positions=64,
    )
    params = fresh_params(shape, jax.random.key(0), make_mesh(MeshConfig()))
    plain = Policy(model=shape, params=params, tokenizer=tokenizer, triggers=None)
    save_policy(folder / "plain", plain)
    save_policy(folder / "routed", teach_triggers(plain, "added", TriggerStarts()))
    shutil.copytree(folder / "plain", folder / "bare")
    shutil.rmtree(folder / "bare" / "tokenizer")
    return folder


def write_prompts(folder: pathlib.Path, prompts: list[dict]) -> pathlib.Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return path


def generate(model: pathlib.Path, prompts: pathlib.Path, *options: str) -> list[dict]:
    out = prompts.with_name("answers.jsonl")
    argv = ["generate", "--model", str(model), "--prompts", str(prompts), "--out", str(out)]
    assert main([*argv, "--max-new-tokens", str(BUDGET), *options]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture
def prompts(tmp_path) -> pathlib.Path:
    ids = make_tokenizer().ask(QUESTION)
    messages = [{"role": "user", "content": QUESTION}]
    forms = [{"question": QUESTION}, {"messages": messages}, {"token_ids": ids}, {"prompt": "3+4="}]
    return write_prompts(tmp_path, [{"id": f"p{n}"} | form for n, form in enumerate(forms)])


def test_records_are_whole_and_in_order(models, prompts, capsys):
    records = generate(models / "routed", prompts, "--samples", "3")
    assert capsys.readouterr().out == ""
    assert [(r["id"], r["sample"]) for r in records] == [
        (f"p{n}", sample) for n in range(4) for sample in range(3)
    ]
    for record in records:
        assert list(record) == FIELDS
        assert len(record["token_ids"]) == len(record["logp"]) <= BUDGET
        assert np.isfinite(record["logp"]).all()
        assert set(record["forced"]) <= set(range(len(record["token_ids"])))
        assert (record["finish_reason"] == "length") == (len(record["token_ids"]) == BUDGET)


def test_question_messages_and_token_ids_are_one_prompt(models, prompts):
    first, second, third, raw = generate(models / "routed", prompts, "--temperature", "0")
    same = ("text", "token_ids", "logp")
    assert [first[f] for f in same] == [second[f] for f in same] == [third[f] for f in same]
    assert raw["token_ids"] != first["token_ids"]


@pytest.mark.parametrize(
    ("mode", "route", "forced", "opening"),
    [
        ("force-long", "long", [0], "<LONG>"),
        ("force-short", "short", [0, 1], "<EASY><SHORT>"),
    ],
)
def test_forced_routes_are_told(models, prompts, mode, route, forced, opening):
    for record in generate(models / "routed", prompts, "--mode", mode):
        assert (record["route"], record["forced"]) == (route, forced)
        assert record["text"].replace(" ", "").startswith(opening)


def test_the_seed_and_the_id_name_the_draws(models, prompts, tmp_path):
    model = models / "routed"
    first = generate(model, prompts)
    assert generate(model, prompts) == first
    assert generate(model, prompts, "--seed", "1") != first
    assert generate(model, prompts, "--temperature", "0.2") != first
    alone = write_prompts(tmp_path, [{"id": "p2", "token_ids": make_tokenizer().ask(QUESTION)}])
    [record] = generate(model, alone)
    assert record["token_ids"] == first[2]["token_ids"]


def test_weights_may_be_cut_and_rounded(models, prompts):
    whole = generate(models / "routed", prompts, "--temperature", "0")
    cut = generate(models / "routed", prompts, "--temperature", "0", "--tensor", "2")
    assert [r["token_ids"] for r in cut] == [r["token_ids"] for r in whole]
    options = ("--temperature", "0", "--dtype", "bfloat16")
    rounded = generate(models / "routed", prompts, *options)
    first = [[r["logp"][0] for r in records] for records in (whole, rounded)]
    assert first[0] != first[1]
    np.testing.assert_allclose(*first, atol=0.02)


def test_exported_and_imported_again_it_answers_the_same(models, prompts, tmp_path, capsys):
    hf, back = tmp_path / "hf", tmp_path / "back"
    assert main(["export", "--checkpoint", str(models / "routed"), "--out", str(hf)]) == 0
    assert main(["import", "--hf", str(hf), "--out", str(back)]) == 0
    assert capsys.readouterr().out == ""
    answers = [
        generate(model, prompts, "--samples", "2") for model in (models / "routed", hf, back)
    ]
    assert answers[0] == answers[1] == answers[2]


def test_a_template_that_refuses_names_the_prompt(models, prompts, tmp_path, capsys):
    shutil.copytree(models / "routed", tmp_path / "strict")
    template = tmp_path / "strict" / "tokenizer" / "chat_template.jinja"
    assert template.exists()
    template.write_text("{{ raise_exception('roles must alternate') }}")
    argv = ["generate", "--model", str(tmp_path / "strict"), "--prompts", str(prompts)]
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "prompt 'p0': the chat template" in captured.err
    assert "roles must alternate" in captured.err


def test_without_triggers_and_without_tokenizer(models, prompts, tmp_path):
    records = generate(models / "plain", prompts, "--mode", "free")
    assert {(r["route"], r["p_easy"], *r["forced"]) for r in records} == {("none", None)}
    assert all(isinstance(r["text"], str) for r in records)
    ids = write_prompts(tmp_path, [{"id": "a", "token_ids": [5, 6, 7]}])
    [record] = generate(models / "bare", ids, "--mode", "free")
    assert record["text"] is None
    assert len(record["token_ids"]) == BUDGET  # nothing tells it where to stop


@pytest.mark.parametrize(
    ("model", "prompt", "options", "parts"),
    [
        ("none", {"question": "1+1"}, [], ["none", "folder"]),
        ("plain", {"question": "1+1"}, [], ["--mode auto", "--mode free", "l2s sft"]),
        ("bare", {"question": "1+1"}, ["--mode", "free"], ["'a'", "token_ids"]),
        ("routed", {"question": ""}, [], ["prompts.jsonl:1", "question"]),
        ("routed", {"question": "1+1", "prompt": "x"}, [], ["'a'", "exactly one"]),
        ("routed", {"token_ids": [5] * 60}, [], ["'a'", "60", "64"]),
        ("routed", {"token_ids": [5_000]}, [], ["'a'", "5000"]),
        ("routed", {"question": "1+1"}, ["--temperature", "-1"], ["temperature=-1"]),
        ("routed", {"question": "1+1"}, ["--top-p", "0"], ["top_p=0"]),
        ("routed", {"question": "1+1"}, ["--samples", "0"], ["--samples 0"]),
        ("routed", {"question": "1+1"}, ["--max-new-tokens", "0"], ["max_new_tokens=0"]),
        ("routed", {"question": "1+1"}, ["--tensor", "3"], ["tensor=3", "8"]),
    ],
)
def test_mistakes_name_their_cure_and_write_nothing(
    model, prompt, options, parts, models, tmp_path, capsys
):
    path = write_prompts(tmp_path, [{"id": "a"} | prompt])
    argv = ["generate", "--model", str(models / model), "--prompts", str(path)]
    assert main([*argv, "--out", str(tmp_path / "out.jsonl"), *options]) == 2
    captured = capsys.readouterr()
    [message] = [line for line in captured.err.splitlines() if line.startswith("l2s generate: ")]
    for part in parts:
        assert part.replace("'a'", "a") in message.replace("'a'", "a")
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]
