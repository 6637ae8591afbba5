"""Stage 2: sampler and trainer agree, forced tokens are not trained, what a run refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.decoder import forward, logits
from l2s_jax.model.seen import Seen
from l2s_jax.objectives.presets import adaptthink, l1_max, plus, plus_linear, tldr, v2
from l2s_jax.objectives.terms import Terms
from l2s_jax.sampling.controllers.routing import RoutingConfig
from l2s_jax.training.asking import AskBudget, AskLevels
from l2s_jax.training.grpo import run
from l2s_jax.training.optim import OptimConfig
from l2s_jax.training.policy import save_policy
from l2s_jax.training.rollouts import build_batch, group_modes
from l2s_jax.training.scoring import completion_logp, loss_of
from tests.training.stage2 import GROUP, NUM_PROMPTS, POLICY, SAMPLING, WIDTH, gatherer, grpo_run
from tests.training.tiny import untaught_policy

SOURCES = ("auto", "forced_pair", "mixed")


@functools.cache
def gathered(source, temperature):
    cfg = grpo_run(rollouts=source, sampling=dataclasses.replace(SAMPLING, temperature=temperature))
    with gatherer(cfg) as gather:
        return gather(3, POLICY.params)


def sample(source, temperature):
    return gathered(source, temperature).groups.rollouts


def batch_of(rollouts, advantages=None):
    rng = np.random.default_rng(0)
    chosen = rng.normal(size=len(rollouts)) if advantages is None else advantages
    made = build_batch(rollouts, chosen, row_length=128, row_quantum=1, max_tokens=WIDTH)
    return jax.tree.map(jnp.asarray, made)


def half(batch, rows):
    """Some rollouts of a batch, with the denominator of all; the packed rows stay."""
    parts = {
        name: getattr(batch, name)[rows]
        for name in ("places", "old_logp", "advantages", "free", "marker")
    }
    return batch.replace(**parts)


def test_branches_of_a_trunk_are_as_rollouts_on_their_own():
    """Log-probs, and gradients of a sum in which every one has a weight of its own."""
    rollouts = sample("mixed", 1.0)[:8]
    batch = batch_of(rollouts)
    assert batch.branches.max() >= 3
    weights = jnp.where(batch.free, np.random.default_rng(1).normal(size=batch.free.shape), 0.0)
    ids, at, targets = np.zeros((8, 64), int), *np.zeros((2, 8, WIDTH), int)
    for row, one in enumerate(rollouts):
        both, begin = [*one.prompt_ids, *one.token_ids], len(one.prompt_ids) - 1
        ids[row, : len(both)], at[row] = both, begin + np.arange(WIDTH)
        targets[row, : one.num_tokens] = one.token_ids

    def packed(params):
        logp = completion_logp(POLICY.model, params, batch, 1.0)
        return jnp.sum(weights * logp), jnp.where(batch.free, logp, 0.0)

    def plain(params):
        positions, seen = jnp.broadcast_to(jnp.arange(64), ids.shape), Seen(jnp.ones((8, 64), int))
        hidden = forward(POLICY.model, params, jnp.asarray(ids), positions, seen=seen)
        logp = jax.nn.log_softmax(logits(params, hidden))[np.arange(8)[:, None], at, targets]
        return jnp.sum(weights * logp), jnp.where(batch.free, logp, 0.0)

    with_gradients = [jax.jit(jax.value_and_grad(f, has_aux=True)) for f in (packed, plain)]
    ((_, got), grads), ((_, want), wanted) = (run(POLICY.params) for run in with_gradients)
    np.testing.assert_allclose(got, want, atol=1e-5)
    most = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * most)


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
        forced = script_of(rollout, modes[rollout.sample])
        wrote = np.where(forced, 0, rollout.logp)  # what a controller wrote never meets the head
        np.testing.assert_allclose(logp[row, here], wrote, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(batch.free)[row, here], ~forced)
        assert not np.asarray(batch.free)[row, rollout.num_tokens :].any()


@pytest.mark.parametrize("preset", [v2, plus, plus_linear])
def test_gradient_stops_at_forced_tokens_and_reaches_the_stop(preset):
    rollouts = sample("mixed", 1.0)
    batch = batch_of(rollouts)

    def loss(logp_BT):
        terms = Terms(
            logp=logp_BT,
            old_logp=batch.old_logp,
            advantages=batch.advantages,
            free=batch.free,
            marker=batch.marker,
            num_sequences=batch.num_sequences,
            num_tokens=batch.num_tokens,
            max_tokens=batch.max_tokens,
        )
        return preset().loss(terms)[0]

    grad = np.asarray(jax.grad(loss)(batch.old_logp))  # the policy is still the sampler's
    np.testing.assert_array_equal(grad[~np.asarray(batch.free)], 0.0)
    for row, rollout in enumerate(rollouts):
        if rollout.finish_reason == "stop":
            assert rollout.token_ids[-1] == POLICY.tokenizer.stop_ids[0]
            assert rollout.free[-1] and grad[row, rollout.num_tokens - 1] != 0


def test_parameters_do_not_feel_forced_tokens():
    """Another behaviour log-prob where a controller wrote: the same gradient to the last bit."""
    batch = batch_of(sample("mixed", 1.0))
    grad = jax.jit(jax.grad(lambda p, b: loss_of(POLICY.model, v2(), 1.0)(p, b)[0]))
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
    loss = jax.jit(loss_of(POLICY.model, v2(), 1.0))
    metrics = loss(POLICY.params, batch)[1]
    assert 0 < metrics["log_ratio"] <= metrics["max_log_ratio"] < 1e-4
    moved = jax.tree.map(lambda leaf: leaf * 1.05, POLICY.params)
    metrics = loss(moved, batch)[1]
    assert metrics["max_log_ratio"] > 1e-2 and metrics["log_ratio"] > 1e-3
    free = np.asarray(batch.free)
    gaps = np.abs(np.asarray(compiled_logp(POLICY.model, moved, batch, 1.0)) - batch.old_logp)[free]
    np.testing.assert_allclose(metrics["log_ratio"], gaps.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["max_log_ratio"], gaps.max(), rtol=1e-5)


def test_draws_are_named_by_seed_and_step():
    first, cfg = sample("auto", 1.0), grpo_run()

    def again(cfg, step):
        with gatherer(cfg) as gather:
            return gather(step, POLICY.params).groups.rollouts

    def ids(rollouts):
        return [(r.id, *r.token_ids) for r in rollouts]

    assert ids(again(cfg, 3)) == ids(first)
    assert ids(again(cfg, 4)) != ids(first)
    assert ids(again(dataclasses.replace(cfg, seed=1), 3)) != ids(first)


@pytest.mark.parametrize("source", SOURCES)
def test_signal_of_a_step(source):
    step = gathered(source, 1.0)
    rollouts, batch, signal = step.groups.rollouts, step.batch, step.metrics
    assert batch.places.shape == (NUM_PROMPTS * GROUP, WIDTH)
    assert batch.tokens.size < batch.places.size * 1.5  # packed: little more than what was written
    assert signal["tokens"] == pytest.approx(np.mean([r.num_tokens for r in rollouts]))
    assert signal["truncated"] == np.mean([r.finish_reason == "length" for r in rollouts])
    auto = [r for r in rollouts if group_modes(source, GROUP)[r.sample] == "auto"]
    if auto:
        assert signal["easy_share"] == np.mean([r.route == "short" for r in auto])
    else:
        assert "easy_share" not in signal
    for route in ("short", "long"):
        lengths = [r.num_tokens for r in rollouts if r.route == route]
        assert signal[f"route/{route}/tokens"] == pytest.approx(np.mean(lengths))
    assert set(step.seconds) == {"rollout", "verify", "prepare"}
    assert step.num_row_steps >= step.num_sampled == sum(r.num_tokens for r in rollouts)


@pytest.mark.parametrize("source", SOURCES)
def test_who_chose_the_marker_decides_whether_it_is_in_the_loss(source):
    step, modes = gathered(source, 1.0), group_modes(source, GROUP)
    triggers, batch = POLICY.triggers, step.batch
    num_inside = 0
    for row, rollout in enumerate(step.groups.rollouts):
        opens = rollout.token_ids[0] in (triggers.easy[0], triggers.long[0])
        here = batch.marker[row]
        assert here.sum() == opens and here[0] == opens
        if opens:  # the policy's own first token, or one that a mode forced
            assert batch.free[row, 0] == (modes[rollout.sample] == "auto")
            num_inside += int(batch.free[row, 0])
    assert step.metrics["marker_in_loss"] == num_inside / len(step.groups.rollouts)
    assert (num_inside > 0) == (source != "forced_pair")


def test_easy_share_where_easy_is_taken_back():
    """The switch "replace" leaves a forced token in front of what the policy chose to be short."""
    routing = RoutingConfig(switch="replace")
    with gatherer(grpo_run(sampling=dataclasses.replace(SAMPLING, routing=routing))) as gather:
        step = gather(3, POLICY.params)
    rollouts = step.groups.rollouts
    short = [row for row, r in enumerate(rollouts) if r.route == "short"]
    assert short and not any(rollouts[row].free[0] for row in short)
    assert not step.batch.marker[short].any()  # nothing is left of the choice
    assert step.metrics["easy_share"] == len(short) / len(rollouts)


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
        (sampling(top_k=20, min_p=0.1), r"top_k=20, min_p=0\.1\. Ratios"),
        (sampling(banned_ids=(3,)), r"banned_ids=\(3,\)"),
        (sampling(num_samples=1), "num_samples=1.*no group"),
        ({"rollouts": "mixed"} | sampling(num_samples=6), "num_samples=6"),
        (sampling(routing=RoutingConfig(modes=("force-long",))), r"routing\.modes"),
        ({"optim": OptimConfig(warmup_steps=9)}, "warmup_steps=9"),
        ({"preset": adaptthink()}, "rollouts='auto' forces none"),
        (
            {
                "preset": dataclasses.replace(adaptthink(), design_probability=0.7),
                "rollouts": "mixed",
            },
            "design_probability=0.7.*'mixed'.*Set 0.5",
        ),
        ({"preset": tldr()}, "Tldr has 3 levels"),
        ({"preset": tldr(), "asking": AskLevels(words=("{question} a", "{question}"))}, "3 levels"),
        ({"preset": l1_max()}, "L1Max holds lengths against a budget"),
        ({"preset": l1_max(), "asking": AskLevels()}, "L1Max holds lengths against a budget"),
        ({"preset": l1_max(), "asking": AskBudget(low=4, high=25)}, "up to 25 tokens"),
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
