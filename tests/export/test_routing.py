"""An exported folder in transformers routes as our sampler does, token by token, greedily."""

import functools
import re

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from l2s_jax.export.hf import export_hf
from l2s_jax.sampling.controllers.routing import RoutingConfig
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import Request, SamplingConfig
from l2s_jax.sharding import MeshConfig, make_mesh
from tests.conftest import REPOSITORY
from tests.export.completions_server import completions_server
from tests.export.routed import is_easy, question, routed_policy

NUM_PROMPTS, NUM_TOKENS = 64, 40
SPELLINGS = ("added", "plain")


@pytest.fixture(scope="module", params=SPELLINGS)
def spelling(request):
    return request.param


@pytest.fixture(scope="module")
def folder(spelling, tmp_path_factory):
    policy = routed_policy(spelling)
    out = tmp_path_factory.mktemp("routed") / spelling
    parts = {"model": policy.model, "params": policy.params, "tokenizer": policy.tokenizer}
    export_hf(out, **parts, triggers=policy.triggers)
    return out


@functools.cache
def prompts(spelling):
    rng = np.random.default_rng(11)
    return [question(rng, spelling) for _ in range(NUM_PROMPTS)]


@functools.cache
def ours(spelling, mode):
    """Completions of our engine, forced tokens included."""
    cfg = SamplingConfig(temperature=0.0, max_new_tokens=NUM_TOKENS, max_rows=64)
    engine = Engine(routed_policy(spelling), cfg, make_mesh(MeshConfig(), jax.devices()[:1]))
    requests = [Request(id=str(n), prompt_ids=tuple(p)) for n, p in enumerate(prompts(spelling))]
    return engine.sample(requests, jax.random.key(0), routing=RoutingConfig(modes=(mode,)))


@functools.cache
def torch_model(folder):
    torch.set_num_threads(2)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def theirs(folder, policy, asked, num_tokens, **options):
    """Completions by transformers' own `generate`, left-padded in one batch, cut at the stop."""
    width = max(map(len, asked))
    ids = torch.full((len(asked), width), policy.tokenizer.pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(asked):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    model = torch_model(folder)
    fixed = {"attention_mask": mask, "max_new_tokens": num_tokens, "do_sample": False}
    out = model.generate(ids, **fixed, **options)[:, width:].tolist()
    stops = policy.tokenizer.stop_ids
    ends = [next((n + 1 for n, i in enumerate(row) if i in stops), len(row)) for row in out]
    return [row[:end] for row, end in zip(out, ends, strict=True)]


def opening(policy, mode):
    """What a caller puts behind the prompt to force a route."""
    triggers = policy.triggers
    return {"force-long": triggers.long, "force-short": triggers.easy + triggers.short}[mode]


def later_easy(ids, easy, start):
    """Where, past `start`, the completion has written <EASY> again; None where it has not."""
    found = [n for n in range(start, len(ids) - len(easy) + 1) if ids[n : n + len(easy)] == easy]
    return found[0] + len(easy) if found else None


def assert_equal_but_behind_a_later_easy(got, want, easy):
    """`sequence_bias` acts on every <EASY>, our router on the opening alone: equal up to there."""
    whole = 0
    for mine, other in zip(want, got, strict=True):
        cut = later_easy(mine, easy, len(easy))
        assert other[:cut] == mine[:cut]
        whole += cut is None
    assert whole >= 60


def test_auto(spelling, folder):
    policy = routed_policy(spelling)
    rollouts = ours(spelling, "auto")
    routes = [rollout.route for rollout in rollouts]
    wanted = ["short" if is_easy(p, spelling) else "long" for p in prompts(spelling)]
    assert sum(a == b for a, b in zip(routes, wanted, strict=True)) > 55  # it has learnt to route
    forced = [rollout for rollout in rollouts if not rollout.free.all()]
    assert 16 < len(forced) < 48
    got = theirs(folder, policy, prompts(spelling), NUM_TOKENS)
    want = [rollout.token_ids.tolist() for rollout in rollouts]
    assert_equal_but_behind_a_later_easy(got, want, list(policy.triggers.easy))
    # The bias did it: alone, the model mostly writes something else behind <EASY>.
    alone = theirs(folder, policy, prompts(spelling), NUM_TOKENS, sequence_bias=None)
    assert sum(a != b for a, b in zip(alone, want, strict=True)) > len(forced) // 2


@pytest.mark.parametrize("mode", ["force-long", "force-short"])
def test_forced_by_the_prompt(spelling, folder, mode):
    policy = routed_policy(spelling)
    head = list(opening(policy, mode))
    asked = [[*prompt, *head] for prompt in prompts(spelling)]
    got = [head + row for row in theirs(folder, policy, asked, NUM_TOKENS - len(head))]
    rollouts = ours(spelling, mode)
    assert {rollout.route for rollout in rollouts} == {mode.removeprefix("force-")}
    want = [rollout.token_ids.tolist() for rollout in rollouts]
    assert_equal_but_behind_a_later_easy(got, want, list(policy.triggers.easy))


def test_free(spelling, folder):
    policy = routed_policy(spelling)
    got = theirs(folder, policy, prompts(spelling), NUM_TOKENS, sequence_bias=None)
    assert got == [rollout.token_ids.tolist() for rollout in ours(spelling, "free")]


def recipe(spelling):
    """The code of docs/serving.md, as a reader would copy it: (functions, the call)."""
    text = (REPOSITORY / "docs" / "serving.md").read_text()
    functions, call = re.findall(r"```python(?: shown)?\n(.*?)```", text, re.DOTALL)
    if spelling == "plain":
        added, plain = [line for line in functions.splitlines() if "OPENING = " in line]
        functions = functions.replace(added, "").replace(plain, plain.removeprefix("# "))
    return functions, call


def test_two_calls_route_any_server(spelling, folder, capsys):
    policy = routed_policy(spelling)
    functions, call = recipe(spelling)
    names = {}
    exec(functions, names)
    rollouts = ours(spelling, "auto")[:16]
    assert {rollout.route for rollout in rollouts} == {"short", "long"}
    with completions_server(folder) as server:
        for rollout in rollouts:
            prompt = policy.tokenizer.decode(rollout.prompt_ids.tolist())
            assert policy.tokenizer.encode(prompt) == rollout.prompt_ids.tolist()
            text = names["answer"](server, "any", prompt, max_tokens=NUM_TOKENS)
            want = rollout.token_ids[: -1 if rollout.finish_reason == "stop" else None].tolist()
            assert policy.tokenizer.encode(text)[: len(want)] == want
        names["prompt"] = prompt
        exec(call.replace("http://localhost:8000", server), names)
    assert capsys.readouterr().out.strip() == text.strip()
