"""The optimizer against AdamW as its paper writes it, the schedule at its corners."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2s_jax.model.decoder import abstract_params
from l2s_jax.model.lora import TARGETS, LoraConfig, abstract_adapter
from l2s_jax.training.optim import OptimConfig, decayed, make_optimizer, schedule
from tests.training.tiny import MODEL

NUM_STEPS = 20


def rate_by_definition(cfg: OptimConfig, taken: int) -> float:
    """The learning rate after `taken` steps: a line up, then half a cosine down."""
    if taken < cfg.warmup_steps:
        return cfg.peak_lr * taken / cfg.warmup_steps
    done = (taken - cfg.warmup_steps) / (NUM_STEPS - cfg.warmup_steps)
    fall = 0.5 * (1 + np.cos(np.pi * done))
    return cfg.peak_lr * (cfg.final_fraction + (1 - cfg.final_fraction) * fall)


SHAPES = {"kernel": (3, 4), "embedding": (2, 3), "scale": (5,), "bias": (4,)}
FREE_OF_DECAY = {"scale", "bias"}


def adamw_by_definition(cfg: OptimConfig, params: dict, grads_of_step: list) -> dict:
    """AdamW (Loshchilov & Hutter, algorithm 2) behind a clip by the global norm, float64."""
    params = {name: p.astype(np.float64) for name, p in params.items()}
    first = {name: np.zeros_like(p) for name, p in params.items()}
    second = {name: np.zeros_like(p) for name, p in params.items()}
    for taken, grads in enumerate(grads_of_step):
        norm = np.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in grads.values()))
        shrink = min(1.0, cfg.clip_norm / norm)
        rate, t = rate_by_definition(cfg, taken), taken + 1
        for i, grad in grads.items():
            g = grad * shrink
            first[i] = cfg.b1 * first[i] + (1 - cfg.b1) * g
            second[i] = cfg.b2 * second[i] + (1 - cfg.b2) * g**2
            move = first[i] / (1 - cfg.b1**t) / (np.sqrt(second[i] / (1 - cfg.b2**t)) + 1e-8)
            decay = 0.0 if i in FREE_OF_DECAY else cfg.weight_decay
            params[i] = params[i] - rate * (move + decay * params[i])
    return params


@pytest.mark.parametrize(
    "cfg",
    [
        OptimConfig(peak_lr=0.1, clip_norm=1.0),
        OptimConfig(peak_lr=0.1, warmup_steps=3, b2=0.99, weight_decay=0.1, clip_norm=100.0),
    ],
)
def test_equals_adamw(cfg):
    rng = np.random.default_rng(0)

    def draw():
        return {name: rng.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}

    # Parameters away from zero: float32 knows 1 - b2 to four places, an update no better.
    params = {name: np.sign(p) + p for name, p in draw().items()}
    grads_of_step = [draw() for _ in range(6)]
    optimizer = make_optimizer(cfg, NUM_STEPS)
    got = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(got)
    for grads in grads_of_step:
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, grads), state, got)
        got = optax.apply_updates(got, updates)
    want = adamw_by_definition(cfg, params, grads_of_step)
    for name in SHAPES:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-5, atol=1e-6)


def test_decay_leaves_norms_biases_and_constants_alone():
    """In the boxes of an abstract model, where shardings are made, and for what an adapter has."""
    cfg = dataclasses.replace(MODEL, tied=False, qk_norm=True, mlp_bias=True, o_bias=True)
    boxed = abstract_params(cfg) | {"lora": abstract_adapter(cfg, LoraConfig(), num_rows=3)}
    found = {True: set(), False: set()}
    for path, is_decayed in jax.tree_util.tree_leaves_with_path(decayed(boxed)):
        names = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
        found[is_decayed].add(tuple(names[-2:]))
    norms = ("input_norm", "post_norm", "final_norm", "q_norm", "k_norm")
    assert found[False] == (
        {(norm, "scale") for norm in norms}
        | {(linear, "bias") for linear in TARGETS}
        | {(linear, "scale") for linear in TARGETS}
    )
    assert {names[-1] for names in found[True]} >= {
        "lm_head",
        "head_rows",
        "kernel",
        "embedding",
        "a",
        "b",
        "token_rows",
    }


def test_bfloat16_weights_keep_float32_moments():
    params = {"kernel": jnp.ones((2, 3), jnp.bfloat16)}
    optimizer = make_optimizer(OptimConfig(weights="bfloat16"), NUM_STEPS)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    moving = [leaf for leaf in jax.tree.leaves((updates, state)) if leaf.ndim]
    assert len(moving) == 3 and {leaf.dtype for leaf in moving} == {jnp.dtype("float32")}


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_schedule_by_definition(warmup, final):
    cfg = OptimConfig(peak_lr=2e-3, warmup_steps=warmup, final_fraction=final)
    rate = schedule(cfg, NUM_STEPS)
    got = [float(rate(taken)) for taken in range(NUM_STEPS + 1)]
    want = [rate_by_definition(cfg, taken) for taken in range(NUM_STEPS + 1)]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-10)
    assert got[0] == (0.0 if warmup else np.float32(2e-3))
    assert got[warmup] == max(got) == np.float32(2e-3)
    assert got[-1] == pytest.approx(2e-3 * final, abs=1e-10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peak_lr": 0.0}, "peak_lr=0.0"),
        ({"peak_lr": float("nan")}, "peak_lr=nan"),
        ({"clip_norm": -1.0}, "clip_norm=-1"),
        ({"final_fraction": 1.5}, r"final_fraction=1\.5"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1"),
        ({"b1": 1.0}, r"b1=1\.0"),
        ({"b2": -0.5}, r"b2=-0\.5"),
    ],
)
def test_faulty_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**fields)


def test_a_warm_up_must_end():
    schedule(OptimConfig(warmup_steps=4), 5)
    with pytest.raises(ValueError, match="warmup_steps=5, but the run has 5 steps"):
        schedule(OptimConfig(warmup_steps=5), 5)
