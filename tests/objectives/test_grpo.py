"""The clipped losses against their definitions by loops, and the traps of RL on token lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.objectives.grpo import (
    GrpoConfig,
    grpo_loss,
    k3_penalty,
    sequence_ratio_loss,
    token_level_loss,
)

CFG = GrpoConfig(clip_low=0.2, clip_high=0.28)


def gain_by_definition(ratio, adv, cfg):
    return min(ratio * adv, np.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high) * adv)


def grpo_by_definition(logp, old_logp, adv, free, denominator, cfg):
    total = 0.0
    for b in range(len(adv)):
        chosen = np.flatnonzero(free[b])
        for t in chosen:
            ratio = np.exp(logp[b, t] - old_logp[b, t])
            total += gain_by_definition(ratio, adv[b], cfg) / len(chosen)
    return -total / denominator


def token_level_by_definition(logp, old_logp, adv, free, denominator, cfg):
    total = 0.0
    for b, t in np.argwhere(free):
        total += gain_by_definition(np.exp(logp[b, t] - old_logp[b, t]), adv[b], cfg)
    return -total / denominator


def sequence_ratio_by_definition(logp, old_logp, adv, free, denominator, cfg):
    total = 0.0
    for b in range(len(adv)):
        chosen = np.flatnonzero(free[b])
        if len(chosen):
            ratio = np.exp(np.mean(logp[b, chosen]) - np.mean(old_logp[b, chosen]))
            total += gain_by_definition(ratio, adv[b], cfg)
    return -total / denominator


LOSSES = {
    grpo_loss: ("num_sequences", grpo_by_definition),
    token_level_loss: ("num_tokens", token_level_by_definition),
    sequence_ratio_loss: ("num_sequences", sequence_ratio_by_definition),
}
every_loss = pytest.mark.parametrize("loss_fn", LOSSES, ids=lambda fn: fn.__name__)


def inputs(seed, rows=6, time=7):
    """Rollouts of many lengths: of the full one, of one token (stop at 0), and of none."""
    rng = np.random.default_rng(seed)
    logp = -rng.exponential(size=(rows, time))
    old_logp = logp + rng.normal(size=(rows, time)) * 0.3
    lengths = np.array([time, 1, 0, *rng.integers(1, time + 1, rows - 3)])
    free = np.arange(time) < lengths[:, None]
    free[0, 2] = False  # a forced token in the middle
    adv = rng.normal(size=rows)
    return logp.astype(np.float32), old_logp.astype(np.float32), adv.astype(np.float32), free


def measure(loss_fn, logp, old_logp, adv, free, denominator, cfg=CFG):
    arrays = (jnp.asarray(a) for a in (logp, old_logp, adv, free))
    return loss_fn(*arrays, **{LOSSES[loss_fn][0]: jnp.float32(denominator)}, cfg=cfg)


def loss_and_grad(loss_fn, logp, *rest):
    return jax.value_and_grad(lambda logp: measure(loss_fn, logp, *rest)[0])(jnp.asarray(logp))


@every_loss
@pytest.mark.parametrize("seed", range(8))
def test_equals_definition(loss_fn, seed):
    arrays = inputs(seed)
    loss, _ = measure(loss_fn, *arrays, 11.0)
    np.testing.assert_allclose(loss, LOSSES[loss_fn][1](*arrays, 11.0, CFG), rtol=2e-5)


@every_loss
def test_gradient_equals_finite_differences_of_the_definition(loss_fn):
    logp, old_logp, adv, free = (a.astype(np.float64) for a in inputs(3, rows=4, time=4))
    free = free.astype(bool)
    _, grad = loss_and_grad(
        loss_fn, *(a.astype(np.float32) for a in (logp, old_logp, adv)), free, 5.0
    )
    for b, t in np.ndindex(*logp.shape):
        step = np.zeros_like(logp)
        step[b, t] = 1e-6
        rise = [
            LOSSES[loss_fn][1](logp + sign * step, old_logp, adv, free, 5.0, CFG)
            for sign in (1, -1)
        ]
        np.testing.assert_allclose(grad[b, t], (rise[0] - rise[1]) / 2e-6, atol=1e-5)


@every_loss
def test_forced_and_padding_tokens_get_no_gradient_and_the_stop_gets_one(loss_fn):
    logp, old_logp, _, free = inputs(0)
    adv = np.full(len(logp), -1.0, np.float32)
    old_logp = logp + 0.01  # inside the clip
    _, grad = loss_and_grad(loss_fn, logp, old_logp, adv, free, 5.0)
    np.testing.assert_array_equal(np.asarray(grad) != 0, free)  # the last True of a row: its stop


@every_loss
def test_stop_at_position_zero_trains_that_token_alone(loss_fn):
    logp, _, adv, free = inputs(0)
    assert free[1].tolist() == [True] + [False] * 6
    _, grad = loss_and_grad(loss_fn, logp, logp, adv, free, 1.0)
    np.testing.assert_allclose(grad[1], [-adv[1], 0, 0, 0, 0, 0, 0], rtol=1e-6)


@every_loss
@pytest.mark.parametrize("garbage", [-np.inf, np.inf, np.nan, 1e30])
def test_what_stands_at_tokens_that_are_not_free_does_not_matter(loss_fn, garbage):
    logp, old_logp, adv, free = inputs(1)
    want = loss_and_grad(loss_fn, logp, old_logp, adv, free, 5.0)
    dirty_logp = np.where(free, logp, -garbage).astype(np.float32)
    dirty_old = np.where(free, old_logp, garbage).astype(np.float32)
    dirty_adv = np.where(free.any(axis=1), adv, garbage).astype(np.float32)
    got = loss_and_grad(loss_fn, dirty_logp, dirty_old, dirty_adv, free, 5.0)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    metrics = measure(loss_fn, dirty_logp, dirty_old, dirty_adv, free, 5.0)[1]
    assert all(np.isfinite(value) for value in metrics.values())


@every_loss
def test_no_free_token_at_all_is_zero(loss_fn):
    logp, old_logp, adv, free = inputs(2)
    loss, grad = loss_and_grad(loss_fn, logp, old_logp, adv, np.zeros_like(free), 1.0)
    assert loss == 0
    np.testing.assert_array_equal(grad, 0)


@every_loss
def test_halves_add_up_to_the_whole(loss_fn):
    arrays = inputs(4)
    whole, grad = loss_and_grad(loss_fn, *arrays, 9.0)
    metrics = measure(loss_fn, *arrays, 9.0)[1]
    unequal = (slice(0, 2), slice(2, 6))
    halves = [tuple(a[half] for a in arrays) for half in unequal]
    parts = [loss_and_grad(loss_fn, *half, 9.0) for half in halves]
    np.testing.assert_allclose(sum(part[0] for part in parts), whole, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), grad, atol=1e-7)
    for name, value in metrics.items():
        logp, old_logp, adv, free = arrays
        total = sum(
            measure(loss_fn, logp[h], old_logp[h], adv[h], free[h], 9.0)[1][name] for h in unequal
        )
        np.testing.assert_allclose(total, value, rtol=1e-5)


@every_loss
def test_extreme_ratios_keep_loss_and_gradient_finite(loss_fn):
    logp, _, _, free = inputs(5)
    for adv, gap in [(1.0, 200.0), (-1.0, 200.0), (1.0, -200.0), (-1.0, -200.0)]:
        advs = np.full(len(logp), adv, np.float32)
        loss, grad = loss_and_grad(loss_fn, logp, logp - np.float32(gap), advs, free, 5.0)
        assert np.isfinite(loss)
        assert np.isfinite(grad).all()


@every_loss
@pytest.mark.parametrize(
    ("ratio", "adv", "flows"),
    [
        (1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False),
        (1.25, 1.0, True), (0.75, -1.0, False), (1.0, 1.0, True), (1.0, -1.0, True),
    ],
)  # fmt: skip
def test_clip_stops_the_gradient_on_its_side_only(loss_fn, ratio, adv, flows):
    logp = jnp.full((1, 3), -1.0)
    old_logp = logp - np.log(ratio).astype(np.float32)
    free = np.ones((1, 3), bool)
    _, grad = loss_and_grad(loss_fn, logp, old_logp, np.array([adv], np.float32), free, 1.0)
    assert bool(np.all(np.asarray(grad) != 0)) == flows
    assert bool(np.any(np.asarray(grad) != 0)) == flows


@every_loss
def test_metrics_at_the_old_policy_and_away_from_it(loss_fn):
    logp, _, adv, free = inputs(6)
    used = free.any(axis=1).sum() if LOSSES[loss_fn][0] == "num_sequences" else free.sum()
    at_old = measure(loss_fn, logp, logp, adv, free, used)[1]
    away = measure(loss_fn, logp, logp - np.log(2).astype(np.float32), adv, free, used)[1]
    for metrics, want in [(at_old, (0.0, 1.0, 0.0)), (away, (1.0, 2.0, 1 - np.log(2)))]:
        got = [metrics[name] for name in ("clip_fraction", "ratio_mean", "kl_to_old")]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_old_policy_and_advantage_carry_no_gradient():
    logp, old_logp, adv, free = inputs(7)
    for loss_fn in LOSSES:
        for grad in jax.grad(
            lambda old_logp, adv, loss_fn=loss_fn: measure(loss_fn, logp, old_logp, adv, free, 5.0)[
                0
            ],
            argnums=(0, 1),
        )(jnp.asarray(old_logp), jnp.asarray(adv)):
            np.testing.assert_array_equal(grad, 0)


def test_k3_penalty_equals_definition_and_its_gradient_ignores_the_rest():
    logp, ref_logp, _, free = inputs(8)
    dirty = jnp.asarray(np.where(free, ref_logp, -np.inf).astype(np.float32))

    def penalty(logp):
        return k3_penalty(logp, dirty, jnp.asarray(free), num_tokens=jnp.float32(free.sum()))

    want = 0.0
    for b, t in np.argwhere(free):
        delta = ref_logp[b, t] - logp[b, t]
        want += (np.exp(delta) - delta - 1) / free.sum()
    value, grad = jax.value_and_grad(penalty)(jnp.asarray(logp))
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(grad) != 0, free)
    gap = np.where(free, ref_logp - logp, 0)
    np.testing.assert_allclose(grad, (1 - np.exp(gap)) / free.sum(), atol=1e-6)


@pytest.mark.parametrize(
    "field", [{"clip_low": 0.0}, {"clip_low": 1.0}, {"clip_high": 0.0}, {"clip_high": np.inf}]
)
def test_clip_that_clips_nothing_or_everything_is_an_error(field):
    (name, value) = next(iter(field.items()))
    with pytest.raises(ValueError, match=f"GrpoConfig.{name}={value}"):
        GrpoConfig(**field)


def test_clip_is_the_papers_by_default():
    assert (GrpoConfig().clip_low, GrpoConfig().clip_high) == (0.2, 0.2)
