"""One step: the same on one device and on eight, whole and in halves; what is donated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.optim import OptimConfig, make_optimizer
from l2s_jax.training.sft import loss_of
from l2s_jax.training.state import abstract_state, begin_state, fresh_params, state_shardings
from l2s_jax.training.step import check_rows, compile_step, place_batch
from tests.training.tiny import (
    MESHES,
    MODEL,
    assert_trees_equal,
    make_batches,
    rows_of,
    taught_policy,
)

OPTIM = OptimConfig(peak_lr=1e-2, weight_decay=0.01)
NUM_STEPS = 4
ONE_DEVICE = make_mesh(MeshConfig(), jax.devices()[:1])


@functools.cache
def program(name):
    """Optimizer, shardings and compiled step on a mesh; compiling is most of what tests cost."""
    mesh = ONE_DEVICE if name == "one device" else make_mesh(MESHES[name])
    policy, optimizer = taught_policy(), make_optimizer(OPTIM, 10)
    places = state_shardings(policy.model, optimizer, mesh)
    return optimizer, places, compile_step(loss_of(policy.model), optimizer, places)


def begin(name):
    optimizer, places, _ = program(name)
    return begin_state(taught_policy().params, optimizer, places)


def train(name, num_steps=NUM_STEPS):
    """(state, metrics of every step)."""
    _, places, step_fn = program(name)
    state, batches, history = begin(name), make_batches(), []
    for step in range(num_steps):
        state, metrics = step_fn(state, place_batch(batches[step], places))
        history.append(jax.device_get(metrics))  # waits: eight devices on few cores must not race
    return state, history


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_train_as_one(name):
    (wanted, wanted_history), (state, history) = train("one device"), train(name)
    losses = [metrics["loss"] for metrics in history]
    np.testing.assert_allclose(losses, [m["loss"] for m in wanted_history], rtol=1e-5)
    # Adam divides by a root that may be near zero: what rounding does there is bounded by the rate.
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5),
        jax.device_get(state.params),
        jax.device_get(wanted.params),
    )
    assert int(state.step) == NUM_STEPS and losses[-1] < losses[0]


def test_parameters_stay_where_the_mesh_puts_them():
    state, _ = train("all axes", num_steps=1)
    q_proj = state.params["layers"]["attention"]["q_proj"]["kernel"]
    moments = state.opt_state[1][0].mu["layers"]["attention"]["q_proj"]["kernel"]
    assert q_proj.sharding.spec == moments.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert {shard.data.shape for shard in q_proj.addressable_shards} == {(2, 8, 8)}


@functools.cache
def compiled_gradient():
    return jax.jit(jax.grad(lambda params, b: loss_of(taught_policy().model)(params, b)[0]))


def gradient(rows):
    return compiled_gradient()(taught_policy().params, rows_of(make_batches()[0], rows))


def test_halves_of_a_batch_add_up():
    whole, first, second = map(gradient, (slice(None), slice(0, 4), slice(4, 8)))
    assert float(jnp.max(jnp.abs(whole["embed"]["embedding"]))) > 1e-3
    jax.tree.map(
        lambda w, a, b: np.testing.assert_allclose(a + b, w, rtol=1e-5, atol=1e-7),
        whole,
        first,
        second,
    )


def test_the_state_is_donated_and_the_starting_policy_is_not():
    """Stage 2 samples from the parameters that it started from, long after the first step."""
    params, (_, places, step_fn) = taught_policy().params, program("data")
    before, state = jax.tree.map(np.array, params), begin("data")
    after, _ = step_fn(state, place_batch(make_batches()[0], places))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    assert_trees_equal(params, before)
    assert not np.array_equal(after.params["embed"]["embedding"], before["embed"]["embedding"])


def test_a_host_copy_survives_the_next_steps():
    """The refreshed sampler's weights are such a copy."""
    state, (_, places, step_fn) = begin("data"), program("data")
    held = jax.device_get(state.params)
    kept = jax.tree.map(np.array, held)
    for step in range(2):
        state, metrics = step_fn(state, place_batch(make_batches()[step], places))
        jax.block_until_ready(metrics)
    assert_trees_equal(held, kept)


def test_parameters_are_born_the_same_on_every_mesh():
    one = fresh_params(MODEL, jax.random.key(7), ONE_DEVICE)
    assert_trees_equal(fresh_params(MODEL, jax.random.key(7), make_mesh(MESHES["all axes"])), one)


def described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_an_abstract_state_is_described_as_the_real_one(weights):
    """What is planned for is what a run has: shapes, types and places."""
    optimizer, places, _ = program("all axes")
    mesh = places.step.mesh
    real = begin_state(taught_policy().params, optimizer, places, weights=weights)
    planned = abstract_state(taught_policy().model, optimizer, mesh, weights=weights)
    assert described(planned) == described(real)


def test_metrics_carry_loss_and_gradient_norm():
    _, [metrics] = train("one device", num_steps=1)
    names = {"loss", "nll", "trained_tokens", "grad_norm", "skipped", "skips_in_a_row"}
    assert names <= set(metrics) and metrics["skipped"] == metrics["skips_in_a_row"] == 0
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient(slice(None)))))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def test_rows_must_share_out():
    _, places, _ = program("all axes")
    check_rows("SftRun.batch_rows", 8, places)
    with pytest.raises(ValueError, match=r"SftRun\.batch_rows=6 .* 4 devices .*multiple of 4"):
        check_rows("SftRun.batch_rows", 6, places)
