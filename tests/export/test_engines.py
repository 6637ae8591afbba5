"""What the card and docs/serving.md say of transformers' ways to generate, and of the numbers."""

import functools

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from l2s_jax.export.engines import UNMEASURED, learned_lines, routing_section
from l2s_jax.export.hf import export_hf
from tests.export.routed import question, routed_policy
from tests.sampling.tiny import vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    policy = routed_policy("added")
    out = tmp_path_factory.mktemp("engines") / "model"
    parts = {"model": policy.model, "params": policy.params, "tokenizer": policy.tokenizer}
    export_hf(out, **parts, triggers=policy.triggers)
    return out


@functools.cache
def torch_model(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@functools.cache
def easy_prompts():
    """Questions behind which the triggers' <EASY> is already written."""
    rng = np.random.default_rng(3)
    easy = routed_policy("added").triggers.easy
    return [[*question(rng, "added"), *easy] for _ in range(6)]


def first_tokens(model, **options):
    generate = functools.partial(model.generate, max_new_tokens=4, **{"do_sample": False} | options)
    return [int(generate(torch.tensor([p]))[0, len(p)]) for p in easy_prompts()]


@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 2}, "assisted"],
    ids=str,
)
def test_every_way_to_generate_is_forced(folder, options):
    model = torch_model(folder)
    if options == "assisted":
        options = {"assistant_model": torch_model(folder, trust_remote_code=True)}
    (short,) = routed_policy("added").triggers.short
    assert first_tokens(model, **options) == [short] * len(easy_prompts())


def test_it_is_the_bias_that_forces(folder):
    (short,) = routed_policy("added").triggers.short
    alone = first_tokens(torch_model(folder), sequence_bias=None)
    assert alone.count(short) < len(easy_prompts()) // 2


def test_trust_changes_nothing(folder):
    trusted = torch_model(folder, trust_remote_code=True)
    assert not (folder / "custom_generate").exists() and not list(folder.glob("*.py"))
    for prompt in easy_prompts()[:4]:
        both = [
            m.generate(torch.tensor([prompt]), max_new_tokens=8)
            for m in (trusted, torch_model(folder))
        ]
        assert torch.equal(*both)


def test_triggers_stay_where_special_tokens_are_skipped(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    easy = list(routed_policy("added").triggers.easy)
    assert tokenizer.decode(easy, skip_special_tokens=True) == "<EASY>"


def test_the_card_quotes_the_measurement():
    _, triggers = vocabulary("plain")
    p = {"mean": 0.98765, "percentile_5": 0.9, "lowest": 0.5, "num_answers": 40}
    wrote = {"share": 0.975, "num_answers": 80}
    modes = {"auto": {"p_short_after_easy": p}, "free": {"wrote_short_after_easy": wrote}}
    summary = {"stages": {"sft": modes, "base": {"auto": {}}}}
    (line,) = learned_lines(summary)
    for part in ("sft", "0.9877", "0.9000", "0.5000", "40 answers", "97.5 % of 80", "Results"):
        assert part in line
    text = routing_section(triggers, summary)
    assert line in text and UNMEASURED not in text and "ordinary text" in text
    assert UNMEASURED in routing_section(triggers, None)
    for engine in ("model.generate", "continuous batching", "vLLM", "llama.cpp", "Two-call recipe"):
        assert engine in text
