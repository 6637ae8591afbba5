"""Loss and gradients do not depend on how a step is cut: micro-batches, devices, packing, blocks.

The model is small and has 9,000 words, so that log-probs take two blocks of the vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from l2s_jax.data.packing import build_row
from l2s_jax.model.decoder import init_params, logits
from l2s_jax.model.routes import attend_on
from l2s_jax.objectives.presets import dapo
from l2s_jax.objectives.sft import sft_loss
from l2s_jax.sharding import MeshConfig, make_mesh, replicated
from l2s_jax.training.grpo import loss_of as policy_loss_of
from l2s_jax.training.microbatches import gradients
from l2s_jax.training.optim import OptimConfig, make_optimizer
from l2s_jax.training.rollouts import build_batch
from l2s_jax.training.sft import batch_hidden, scorer
from l2s_jax.training.sft import loss_of as sft_loss_of
from l2s_jax.training.state import TrainState, state_shardings
from l2s_jax.training.step import place_batch
from tests.training.tiny import MODEL, made_up, make_batches, make_examples

WORDS = dataclasses.replace(MODEL, vocab_size=9000)
MESHES = {
    "one": (MeshConfig(), 1),
    "data": (MeshConfig(), 8),
    "fsdp and tensor": (MeshConfig(data=1, fsdp=4, tensor=2), 8),
    "all axes": (MeshConfig(data=2, fsdp=2, tensor=2), 8),
    "time": (MeshConfig(data=2, context=2), 4),
    "time and heads": (MeshConfig(data=1, fsdp=2, tensor=2, context=2), 8),
}


@functools.cache
def params():
    """Some that have opinions: matrices four times as large as at birth."""
    fresh = nn.unbox(jax.jit(init_params, static_argnums=0)(WORDS, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path[-1].key == "scale" else leaf * 4, fresh
    )


@functools.cache
def places_of(name):
    cfg, num_devices = MESHES[name]
    mesh = make_mesh(cfg, jax.devices()[:num_devices])
    return state_shardings(WORDS, make_optimizer(OptimConfig(), 2), mesh)


def cut_over(name):
    """What a loss must know of its mesh."""
    mesh = places_of(name).step.mesh
    return attend_on(mesh), mesh


def made(loss_fn, batch, name="one", num=1):
    """(loss, metrics, gradients) on a mesh, in micro-batches."""
    places = places_of(name)
    program = jax.jit(lambda p, b: gradients(loss_fn, p, b, places, num))
    return jax.device_get(
        program(jax.device_put(params(), places.params), place_batch(batch, places))
    )


def assert_same(got, want):
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    assert set(got[1]) == set(want[1])
    for name, value in want[1].items():
        np.testing.assert_allclose(got[1][name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(want[2])) > 1e-2
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5), got[2], want[2]
    )


def sft_batch():
    return make_batches()[0]


@functools.cache
def whole_sft():
    return made(sft_loss_of(WORDS), sft_batch())


@pytest.mark.parametrize(
    ("name", "num"),
    [
        ("one", 4),
        ("data", 1),
        ("fsdp and tensor", 2),
        ("all axes", 2),
        ("time", 1),
        ("time and heads", 2),
    ],
)
def test_stage_1_is_the_same_however_it_is_cut(name, num):
    loss = sft_loss_of(WORDS, None, *cut_over(name))
    assert_same(made(loss, sft_batch(), name, num), whole_sft())


@pytest.mark.parametrize(("name", "num"), [("one", 1), ("one", 4), ("all axes", 2)])
def test_a_validation_tells_what_a_step_would(name, num):
    """The same metrics, without the gradients."""
    places = places_of(name)
    score = scorer(WORDS, places.step.mesh, None, num)
    put = jax.device_put(params(), places.params)
    got = jax.device_get(score(put, {}, place_batch(sft_batch(), places)))
    _, want, _ = whole_sft()
    assert set(got) == set(want)
    for metric, value in want.items():
        np.testing.assert_allclose(got[metric], value, rtol=1e-5, atol=1e-5, err_msg=metric)


def test_blocks_are_the_same_as_all_logits_at_once():
    """Every position meets the whole head, and autodiff does the rest."""

    def loss(params, batch):
        all_BTV = logits(params, batch_hidden(WORDS, params, batch))
        logp_BTV = jax.nn.log_softmax(all_BTV, axis=-1)
        logp_BT = jnp.take_along_axis(logp_BTV, batch.targets[..., None], axis=-1)[..., 0]
        return sft_loss(logp_BT, batch.weights, num_tokens=batch.num_tokens)

    value, metrics, grads = whole_sft()
    full = made(loss, sft_batch())
    assert_same((value, {name: metrics[name] for name in full[1]}, grads), full)


def test_packed_rows_train_as_rows_of_their_own():
    """The examples of a packed batch, each alone in a row."""
    batch = sft_batch()
    by_tokens = {tuple(e.tokens): e for e in make_examples()}
    alone = []
    for row, segments in zip(batch.tokens, batch.segment_ids, strict=True):
        for segment in range(1, segments.max() + 1):
            alone.append(build_row([by_tokens[tuple(row[segments == segment])]], 64))
    assert len(alone) > len(batch.tokens)
    fields = {name: np.stack([row[name] for row in alone]) for name in alone[0]}
    single = dataclasses.replace(batch, **fields)
    assert_same(made(sft_loss_of(WORDS), single), whole_sft())


@functools.cache
def rollouts():
    """Behaviour log-probs near those of a random model, so that not every ratio is clipped."""
    rng = np.random.default_rng(2)
    logp = [rng.normal(-9.1, 0.3, 8 + i).astype(np.float32) for i in range(8)]
    return [made_up(5, str(i), 6, 8 + i, logp=logp[i]) for i in range(8)]


def policy_batch(row_length, num=1):
    advantages = np.random.default_rng(1).normal(size=8)
    sizes = {"row_length": row_length, "row_quantum": 8, "max_tokens": 15}
    return build_batch(rollouts(), advantages, **sizes, num_microbatches=num)


@functools.cache
def whole_policy():
    whole = made(policy_loss_of(WORDS, dapo(), 0.7), policy_batch(64))
    assert 0 < whole[1]["clip_fraction"] < 1
    return whole


@pytest.mark.parametrize(
    ("name", "num", "row_length"),
    [("one", 1, 20), ("one", 4, 64), ("all axes", 2, 64), ("time", 2, 64)],
)
def test_stage_2_is_the_same_however_it_is_cut(name, num, row_length):
    """At a row length of 20 each rollout has a row of its own."""
    batch = policy_batch(row_length, num)
    segments = int(batch.segment_ids.max())
    assert (segments == 1) == (row_length == 20)
    loss = policy_loss_of(WORDS, dapo(), 0.7, *cut_over(name))
    assert_same(made(loss, batch, name, num), whole_policy())


def test_parts_add_up_by_their_names():
    """By hand: sums of sums, the greatest of `max_`, and a scalar that every part reads whole."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    x, weights = np.arange(12, dtype=np.float32).reshape(6, 2), jnp.asarray([2.0, -1.0])
    places = TrainState(*[{"w": replicated(mesh)}] * 4)
    places = dataclasses.replace(places, step=replicated(mesh))

    def loss(params, batch):
        dot_B = batch["x"] @ params["w"]
        told = {"rows": dot_B.size * 1.0, "max_dot": jnp.max(dot_B), "max_low": -jnp.max(dot_B)}
        return jnp.sum(dot_B**2) / batch["count"], told

    batch = {"x": x, "count": np.float32(6)}
    run = jax.jit(lambda p, b: gradients(loss, p, b, places, 3))
    value, metrics, grads = run({"w": weights}, place_batch(batch, places))
    dots, slope = [], np.zeros(2)
    for row in x:
        dots.append(2 * row[0] - row[1])
        slope += 2 * dots[-1] * row / 6
    np.testing.assert_allclose(value, sum(d**2 for d in dots) / 6, rtol=1e-6)
    np.testing.assert_allclose(grads["w"], slope, rtol=1e-6)
    assert metrics == {"rows": 6, "max_dot": max(dots), "max_low": -max(dots[:2])}
