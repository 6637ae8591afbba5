"""P(short trigger | <EASY>): against transformers' own logits, and where nothing can be said."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from l2s_jax.evaluation.forced import describe_after_easy, p_short_after_easy
from l2s_jax.evaluation.report import write_report
from l2s_jax.export.hf import export_hf
from l2s_jax.sampling.controllers.routing import RoutingConfig
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import Request, SamplingConfig
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.policy import load_policy
from tests.evaluation.simulate import simulate_answers, write_run
from tests.export.routed import question, routed_policy

SAMPLING = SamplingConfig(temperature=0.0, max_new_tokens=40, max_rows=64)


def rollouts_of(policy, spelling, sampling=SAMPLING, num=32):
    rng = np.random.default_rng(2)
    requests = [Request(id=str(n), prompt_ids=tuple(question(rng, spelling))) for n in range(num)]
    engine = Engine(policy, sampling, make_mesh(MeshConfig(), jax.devices()[:1]))
    return engine.sample(requests, jax.random.key(0))


def by_definition(model, prompt, easy, short):
    """The product of each piece's probability, fed to transformers one by one."""
    ids, p = [*prompt, *easy], 1.0
    for piece in short:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        p *= float(torch.softmax(logits.double(), dim=-1)[piece])
        ids.append(piece)
    return p


@pytest.mark.parametrize("spelling", ["added", "plain"])
def test_it_is_what_transformers_says_of_the_exported_folder(spelling, tmp_path):
    policy = routed_policy(spelling)
    parts = {"model": policy.model, "params": policy.params, "tokenizer": policy.tokenizer}
    export_hf(tmp_path / "out", **parts, triggers=policy.triggers)
    # As `l2s eval --set model=FOLDER` does: the policy is the exported one.
    rollouts = rollouts_of(load_policy(tmp_path / "out"), spelling)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    easy, short = list(policy.triggers.easy), policy.triggers.short
    checked = []
    for rollout in rollouts:
        got = p_short_after_easy(rollout, "auto", SAMPLING)
        opened = rollout.token_ids[: len(easy)].tolist() == easy
        assert (got is not None) == opened
        if got is not None:
            want = by_definition(model, rollout.prompt_ids.tolist(), easy, short)
            assert got == pytest.approx(want, abs=1e-4)
            checked.append(got)
    assert len(checked) > 8 and max(checked) > 10 * min(checked)  # they differ, and both are right


def test_nothing_is_said_where_the_policy_did_not_choose():
    (rollout,) = [r for r in rollouts_of(routed_policy(), "added") if r.route == "short"][:1]
    assert p_short_after_easy(rollout, "auto", SAMPLING) is not None
    for mode in ("free", "force-long", "force-short"):
        assert p_short_after_easy(rollout, mode, SAMPLING) is None
    for changes in (
        {"routing": RoutingConfig(threshold=0.5)},
        {"routing": RoutingConfig(switch="replace")},
        {"temperature": 0.7},
    ):
        assert p_short_after_easy(rollout, "auto", dataclasses.replace(SAMPLING, **changes)) is None
    cut = dataclasses.replace(
        rollout, logp=rollout.logp[:2], free=rollout.free[:2], token_ids=rollout.token_ids[:2]
    )
    assert p_short_after_easy(cut, "auto", SAMPLING) is None
    untouched = dataclasses.replace(rollout, free=np.ones_like(rollout.free))
    assert p_short_after_easy(untouched, "auto", SAMPLING) is None


def test_the_summary_by_loops():
    answers = simulate_answers(num_per_level=4, seeds=(0,))
    auto = [a for a in answers if a["mode"] == "auto" and a["route"] == "short"]
    probabilities = np.random.default_rng(0).random(len(auto)).tolist()
    marked = [a | {"p_short": p} for a, p in zip(auto, probabilities, strict=True)]
    unmarked = [a | {"p_short": None} for a in answers if a["mode"] == "auto"]
    got = describe_after_easy(marked + unmarked)["p_short_after_easy"]
    ordered = sorted(probabilities)
    place = 0.05 * (len(ordered) - 1)
    low, part = math.floor(place), place - math.floor(place)
    assert got["percentile_5"] == pytest.approx(ordered[low] * (1 - part) + ordered[low + 1] * part)
    assert got["mean"] == pytest.approx(sum(ordered) / len(ordered))
    assert (got["lowest"], got["num_answers"]) == (ordered[0], len(ordered))


def test_what_was_written_unforced_is_read_off_the_text():
    (one,) = [a for a in simulate_answers(num_per_level=1, seeds=(0,)) if a["mode"] == "free"][:1]
    texts = ["<EASY><SHORT> 3", "<EASY>\n<SHORT>\n3", "<EASY> 3 <SHORT>", "<LONG> <SHORT>", "3"]
    got = describe_after_easy([one | {"text": text} for text in texts])
    assert got == {"wrote_short_after_easy": {"share": pytest.approx(2 / 3), "num_answers": 3}}
    assert describe_after_easy([one | {"text": "<LONG>"}]) == {}
    # In the other modes a <SHORT> may be the router's.
    assert describe_after_easy([one | {"text": texts[0], "mode": "auto"}]) == {}


def test_the_report_quotes_it(tmp_path):
    write_run(tmp_path, num_per_level=2)
    page = write_report(tmp_path).read_text("utf-8")
    assert (
        "sft, after an &lt;EASY&gt; of its own: unforced it wrote &lt;SHORT&gt; in 100.0 %" in page
    )
