"""Skipped steps: nothing changes, all is counted and saved, too many in a row end the run."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.objectives.outcomes import Outcomes
from l2s_jax.objectives.presets import plus, v2
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.grpo import loss_of
from l2s_jax.training.guard import FOLDER, Guard
from l2s_jax.training.optim import OptimConfig, make_optimizer
from l2s_jax.training.policy import save_policy
from l2s_jax.training.rollouts import build_batch
from l2s_jax.training.sft import CuratedItems, SftRun, run
from l2s_jax.training.state import begin_state, state_shardings
from l2s_jax.training.step import compile_step, place_batch
from tests.training.tiny import (
    MODEL,
    assert_trees_equal,
    made_up,
    taught_policy,
    write_curation,
)

GROUP = 4
OPTIM = OptimConfig(peak_lr=1e-2, weight_decay=0.1)


@functools.cache
def program(weights="float32"):
    """Optimizer, places and compiled step of stage 2, two micro-batches, on eight devices."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    optimizer = make_optimizer(OPTIM, 10)
    places = state_shardings(MODEL, optimizer, mesh)
    inner = loss_of(MODEL, plus(), 1.0)

    def loss(params, batch):
        """The objective's, and a term that is 0 with a gradient of 0 * inf where `marker` is."""
        value, metrics = inner(params, batch)
        zero = jnp.sum(params["final_norm"]["scale"]) * 0.0
        unmarked = 1.0 - jnp.any(batch.marker)
        return value + jnp.sqrt(zero + unmarked) - unmarked, metrics

    return optimizer, places, compile_step(loss, optimizer, places, num_microbatches=2)


def begin(weights="float32"):
    optimizer, places, _ = program()
    return begin_state(taught_policy().params, optimizer, places, weights=weights)


def batch_of(seed, **planted):
    rollouts = [made_up(seed, str(i // GROUP), 3, 5 + i) for i in range(2 * GROUP)]
    advantages = np.random.default_rng(seed).normal(size=len(rollouts))
    made = build_batch(
        rollouts, advantages, row_length=24, row_quantum=4, max_tokens=13, num_microbatches=2
    )
    return dataclasses.replace(made, **planted)


def nan_reward():
    """Advantages of which one prompt's reward is no number."""
    outcomes = Outcomes(
        correct=np.arange(8) % 2 == 0,
        num_tokens=np.arange(5, 13, dtype=np.int32),
        stopped=np.ones(8, bool),
        short=np.zeros(8, bool),
        level=np.zeros(8, np.int32),
        max_tokens=np.zeros(8, np.int32),
        limit=13,
    )
    rewards, _ = v2().rewards(outcomes, group_size=GROUP)
    poisoned = rewards.at[5].set(jnp.nan)
    advantages = np.asarray(v2().advantage(poisoned, outcomes, group_size=GROUP))
    assert np.isnan(advantages[5])
    return {"advantages": advantages}


def nan_logp():
    free = np.asarray(batch_of(1).free)
    logp = np.array(batch_of(1).old_logp)
    logp[tuple(np.argwhere(free)[-1])] = np.nan
    return {"old_logp": logp}


def nan_gradient():
    marker = np.zeros_like(batch_of(1).free)
    marker[0, 0] = True
    return {"marker": marker}


def step(state, batch):
    _, places, step_fn = program()
    after, metrics = step_fn(state, place_batch(batch, places))
    return after, jax.device_get(metrics)


@pytest.mark.parametrize("planted", [nan_reward, nan_logp, nan_gradient])
def test_a_step_without_numbers_changes_nothing(planted):
    state, _ = step(begin(), batch_of(0))
    before = jax.tree.map(np.array, jax.device_get((state.params, state.opt_state)))
    state, metrics = step(state, batch_of(1, **planted()))
    assert metrics["skipped"] == metrics["skips_in_a_row"] == 1
    # The loss alone does not tell: here it is finite, and a gradient is not.
    assert np.isfinite(metrics["loss"]) == (planted is nan_gradient)
    assert not np.isfinite(metrics["grad_norm"])
    assert_trees_equal((state.params, state.opt_state), before)
    assert int(state.step) == 2 and int(state.skipped) == 1

    # It goes on as if the batch had never been.
    state, metrics = step(state, batch_of(2))
    assert metrics["skipped"] == metrics["skips_in_a_row"] == int(state.skipped) == 0
    want, _ = step(begin(), batch_of(0))
    want, _ = step(want, batch_of(2))
    assert_trees_equal((state.params, state.opt_state), (want.params, want.opt_state))
    assert not np.array_equal(state.params["embed"]["embedding"], before[0]["embed"]["embedding"])


def test_skips_in_a_row_are_counted():
    state, counts = begin(), []
    for batch in [nan_logp(), nan_reward(), {}, nan_gradient()]:
        state, metrics = step(state, batch_of(1, **batch))
        counts.append(int(metrics["skips_in_a_row"]))
    assert counts == [1, 2, 0, 1]


def test_bfloat16_weights_are_trained_and_kept_when_skipped():
    state = begin("bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    before = jax.tree.map(np.array, jax.device_get(state.params))
    state, _ = step(state, batch_of(1, **nan_logp()))
    assert_trees_equal(state.params, before)
    state, _ = step(state, batch_of(1))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    exact, _ = step(begin(), batch_of(1, **nan_logp()))
    exact, _ = step(exact, batch_of(1))
    pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(exact.params), strict=True)
    for got, want in pairs:
        # Start and end are rounded to eight bits each; where a gradient is near 0, its sign may
        # differ, and a step of Adam has the length of the rate.
        np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2.0**-6, atol=2e-2)


def metrics_of(skips):
    return {"skipped": float(skips > 0), "skips_in_a_row": skips, "loss": np.nan, "grad_norm": 1.0}


def test_batches_are_saved_and_a_budget_ends_the_run(tmp_path, capsys):
    guard, batch = Guard(tmp_path, max_skips=3), batch_of(1, **nan_logp())
    for number, skips in enumerate([0, 1, 2, 0, 1, 2], start=1):
        guard.watch(number, batch, metrics_of(skips))
    names = [f"step_00000{n}.npz" for n in (2, 3, 5)]
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == names  # one step late
    guard.settle()
    guard.settle()  # nothing is left to look at
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4 and "step 6 was skipped: loss=nan, grad_norm=1.0" in told[-1]
    guard.watch(7, batch, metrics_of(3))
    with pytest.raises(FloatingPointError, match=r"step 7 .*number 3 in a row.*max_skips=3"):
        guard.settle()
    saved = np.load(tmp_path / FOLDER / "step_000007.npz")
    assert set(saved) == {
        field.name for field in dataclasses.fields(batch) if getattr(batch, field.name) is not None
    }
    for name in saved:
        np.testing.assert_array_equal(saved[name], getattr(batch, name))


def test_a_run_that_cannot_go_on_says_so(tmp_path):
    """From weights of which one is no number."""
    policy = taught_policy()
    scale = np.array(policy.params["final_norm"]["scale"])
    scale[3] = np.nan
    broken = policy.params | {"final_norm": {"scale": jnp.asarray(scale)}}
    save_policy(tmp_path / "broken", dataclasses.replace(policy, params=broken))
    cfg = SftRun(
        model=str(tmp_path / "broken"),
        data=CuratedItems(path=str(write_curation(tmp_path / "items"))),
        row_length=64,
        batch_rows=8,
        num_steps=10,
        log_every=1,
        max_skips=2,
    )
    with pytest.raises(FloatingPointError, match="number 2 in a row, and max_skips=2"):
        run(cfg, tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / FOLDER).iterdir())
    assert names == ["step_000001.npz", "step_000002.npz"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["skipped"] == 1 and "loss" not in json.loads(lines[0])
