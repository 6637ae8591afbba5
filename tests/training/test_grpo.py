"""Stage 2: sampler and trainer agree, forced tokens are not trained, what a run refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.data.arithmetic import ArithmeticProblems
from l2s_jax.objectives.presets import V2, Plus, PlusLinear
from l2s_jax.sampling.controllers.routing import RoutingConfig
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import SamplingConfig, ask
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.grpo import (
    GrpoRun,
    PackedSizes,
    completion_logp,
    loss_of,
    prepare,
    run,
    sample_step,
)
from l2s_jax.training.optim import OptimConfig
from l2s_jax.training.policy import save_policy
from l2s_jax.training.rollouts import build_batch, group_modes
from l2s_jax.verify.math import Verifier
from tests.training.tiny import taught_policy, untaught_policy

POLICY = taught_policy()
SOURCES = ("auto", "forced_pair", "mixed")
GROUP, WIDTH, NUM_PROMPTS = 4, 24, 8
SIZES = PackedSizes(row_length=128, row_quantum=1)
SAMPLING = SamplingConfig(num_samples=GROUP, max_new_tokens=WIDTH, max_rows=32)


def grpo_run(**changes) -> GrpoRun:
    cfg = GrpoRun(
        model="nowhere",
        problems=ArithmeticProblems(num_per_level=4, levels=(3, 5)),
        preset=V2(),
        sampling=SAMPLING,
        prompts_per_step=NUM_PROMPTS,
        num_steps=4,
        save_every=2,
        num_workers=1,
    )
    return dataclasses.replace(cfg, **changes)


@functools.cache
def sample(source, temperature):
    cfg = grpo_run(rollouts=source, sampling=dataclasses.replace(SAMPLING, temperature=temperature))
    engine = Engine(POLICY, cfg.sampling, make_mesh(MeshConfig(), jax.devices()[:1]))
    requests = ask(cfg.problems.load(), POLICY.tokenizer)
    return sample_step(cfg, engine, requests, POLICY.params, step=3)


def batch_of(rollouts, advantages=None):
    rng = np.random.default_rng(0)
    chosen = rng.normal(size=len(rollouts)) if advantages is None else advantages
    made = build_batch(rollouts, chosen, row_length=128, row_quantum=1, max_tokens=WIDTH)
    return jax.tree.map(jnp.asarray, made)


def half(batch, rows):
    """Some rollouts of a batch, with the denominator of all; the packed rows stay."""
    parts = {
        name: getattr(batch, name)[rows] for name in ("places", "old_logp", "advantages", "free")
    }
    return batch.replace(**parts)


compiled_logp = jax.jit(completion_logp, static_argnums=(0, 3))


def script_of(rollout, mode):
    """Which tokens of a rollout a controller wrote, told from its mode and its tokens alone."""
    triggers, forced = POLICY.triggers, np.zeros(rollout.num_tokens, bool)
    ids = rollout.token_ids
    if mode == "force-long":
        forced[0] = True
        assert ids[0] == triggers.long[0]
    elif mode == "force-short":
        forced[:2] = True
        assert tuple(ids[:2]) == triggers.easy + triggers.short
    elif ids[0] == triggers.easy[0] and rollout.num_tokens > 1:
        forced[1] = True
        assert ids[1] == triggers.short[0]
    return forced


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("source", SOURCES)
def test_trainer_reads_what_the_sampler_wrote(source, temperature):
    rollouts = sample(source, temperature)
    batch = batch_of(rollouts)
    logp = np.asarray(compiled_logp(POLICY.model, POLICY.params, batch, temperature))
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}  # both ends are looked at
    modes = group_modes(source, GROUP)
    assert {"short", "long"} <= {r.route for r in rollouts}
    for row, rollout in enumerate(rollouts):
        here = slice(0, rollout.num_tokens)
        np.testing.assert_allclose(logp[row, here], rollout.logp, rtol=0, atol=1e-4)
        forced = script_of(rollout, modes[rollout.sample])
        np.testing.assert_array_equal(np.asarray(batch.free)[row, here], ~forced)
        assert not np.asarray(batch.free)[row, rollout.num_tokens :].any()


@pytest.mark.parametrize("preset", [V2(), Plus(), PlusLinear(max_tokens=WIDTH)], ids=repr)
def test_gradient_stops_at_forced_tokens_and_reaches_the_stop(preset):
    rollouts = sample("mixed", 1.0)
    batch = batch_of(rollouts)

    def loss(logp_BT):
        return preset.loss(
            logp_BT,
            batch.old_logp,
            batch.advantages,
            batch.free,
            num_sequences=batch.num_sequences,
        )[0]

    grad = np.asarray(jax.grad(loss)(batch.old_logp))  # the policy is still the sampler's
    np.testing.assert_array_equal(grad[~np.asarray(batch.free)], 0.0)
    for row, rollout in enumerate(rollouts):
        if rollout.finish_reason == "stop":
            assert rollout.token_ids[-1] == POLICY.tokenizer.stop_ids[0]
            assert rollout.free[-1] and grad[row, rollout.num_tokens - 1] != 0


def test_parameters_do_not_feel_forced_tokens():
    """Another behaviour log-prob where a controller wrote: the same gradient to the last bit."""
    batch = batch_of(sample("mixed", 1.0))
    grad = jax.jit(jax.grad(lambda p, b: loss_of(POLICY.model, V2(), 1.0)(p, b)[0]))
    other = jnp.where(batch.free, batch.old_logp, 50.0)
    got = grad(POLICY.params, batch.replace(old_logp=other))
    want = grad(POLICY.params, batch)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert float(jnp.max(jnp.abs(want["embed"]["embedding"]))) > 1e-4
    halves = [grad(POLICY.params, half(batch, h)) for h in (slice(0, 16), slice(16, 32))]
    jax.tree.map(
        lambda w, a, b: np.testing.assert_allclose(a + b, w, rtol=1e-5, atol=1e-7), want, *halves
    )


def test_loss_reports_the_gap_between_the_policies():
    batch = batch_of(sample("auto", 1.0))
    loss = jax.jit(loss_of(POLICY.model, V2(), 1.0))
    assert loss(POLICY.params, batch)[1]["max_log_ratio"] < 1e-4
    moved = jax.tree.map(lambda leaf: leaf * 1.05, POLICY.params)
    assert loss(moved, batch)[1]["max_log_ratio"] > 1e-2


def test_draws_are_named_by_seed_and_step():
    first, cfg = sample("auto", 1.0), grpo_run()
    engine = Engine(POLICY, SAMPLING, make_mesh(MeshConfig(), jax.devices()[:1]))
    requests = ask(cfg.problems.load(), POLICY.tokenizer)

    def again(cfg, step):
        return sample_step(cfg, engine, requests, POLICY.params, step)

    def ids(rollouts):
        return [tuple(r.token_ids) for r in rollouts]

    assert ids(again(cfg, 3)) == ids(first)
    assert ids(again(cfg, 4)) != ids(first)
    assert ids(again(dataclasses.replace(cfg, seed=1), 3)) != ids(first)


@pytest.mark.parametrize("source", SOURCES)
def test_signal_of_a_step(source):
    cfg, rollouts = grpo_run(rollouts=source), sample(source, 1.0)
    problems = cfg.problems.load()
    with Verifier(1, 5.0) as verifier:
        batch, signal = prepare(cfg, rollouts, problems, verifier, SIZES)
    assert batch.places.shape == (NUM_PROMPTS * GROUP, WIDTH)
    assert batch.tokens.size < batch.places.size * 1.5  # packed: little more than what was written
    assert signal["tokens"] == pytest.approx(np.mean([r.num_tokens for r in rollouts]))
    assert signal["truncated"] == np.mean([r.finish_reason == "length" for r in rollouts])
    auto = [r for r in rollouts if group_modes(source, GROUP)[r.sample] == "auto"]
    if auto:
        assert signal["easy_share"] == np.mean([r.route == "short" for r in auto])
    else:
        assert "easy_share" not in signal


def test_easy_share_where_easy_is_taken_back():
    """The switch "replace" leaves a forced token in front of what the policy chose to be short."""
    cfg = grpo_run(sampling=dataclasses.replace(SAMPLING, routing=RoutingConfig(switch="replace")))
    engine = Engine(POLICY, cfg.sampling, make_mesh(MeshConfig(), jax.devices()[:1]))
    problems = cfg.problems.load()
    rollouts = sample_step(cfg, engine, ask(problems, POLICY.tokenizer), POLICY.params, 3)
    short = [r for r in rollouts if r.route == "short"]
    assert short and not any(r.free[0] for r in short)
    with Verifier(1, 5.0) as verifier:
        _, signal = prepare(cfg, rollouts, problems, verifier, SIZES)
    assert signal["easy_share"] == len(short) / len(rollouts)


def sampling(**changes):
    return {"sampling": dataclasses.replace(SAMPLING, **changes)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_per_step": 0}, "prompts_per_step=0"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"seed": -1}, "seed=-1"),
        ({"verify_seconds": 0.0}, r"verify_seconds=0\.0"),
        ({"refresh_every": 0}, "refresh_every=0"),
        ({"refresh_every": 4}, "save_every=2 is no multiple of refresh_every=4"),
        (sampling(temperature=0.0), r"temperature=0\.0"),
        (sampling(top_p=0.9), r"top_p=0\.9"),
        (sampling(num_samples=1), "num_samples=1.*no group"),
        ({"rollouts": "mixed"} | sampling(num_samples=6), "num_samples=6"),
        (sampling(routing=RoutingConfig(modes=("force-long",))), r"routing\.modes"),
        ({"preset": PlusLinear(max_tokens=99)}, "max_tokens=99 is not.*max_new_tokens=24"),
        ({"optim": OptimConfig(warmup_steps=9)}, "warmup_steps=9"),
    ],
)
def test_faulty_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        grpo_run(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nowhere"}, "no folder nowhere"),
        ({"model": "untaught"}, "does not know the triggers.*l2s sft"),
        ({"prompts_per_step": 32}, "prompts_per_step=32, but there are 8 problems"),
        ({"prompts_per_step": 3}, "=12 rows cannot be shared by 8 devices"),
        (sampling(max_new_tokens=124), "8 prompts leave no room for max_new_tokens=124"),
    ],
)
def test_what_cannot_start_leaves_nothing(tmp_path, monkeypatch, changes, message):
    """All of it is found before the first step, not when a long prompt comes up."""
    monkeypatch.chdir(tmp_path)
    save_policy("taught", POLICY)
    save_policy("untaught", untaught_policy())
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(grpo_run(**{"model": "taught"} | changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
