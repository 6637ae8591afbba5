"""The policy losses against their definitions by loops, and the traps of RL on token lengths."""

import jax
import numpy as np
import pytest

from l2s_jax.objectives.losses import (
    CispoLoss,
    Clip,
    DapoLoss,
    DrGrpoLoss,
    GrpoLoss,
    RlooLoss,
    SequenceRatioLoss,
    ThinklessLoss,
)
from l2s_jax.objectives.objective import Objective
from l2s_jax.objectives.presets import v2
from l2s_jax.objectives.terms import Terms
from tests.objectives.rollouts import TIME, make_terms, on_device, rows_of

CLIP = Clip(low=0.2, high=0.28, dual=1.5)


def clipped_gain(ratio, adv, clip):
    gain = min(ratio * adv, np.clip(ratio, 1 - clip.low, 1 + clip.high) * adv)
    return max(gain, clip.dual * adv) if clip.dual is not None and adv < 0 else gain


def chosen(terms, b):
    return np.flatnonzero(terms.free[b])


def token_gain(loss, terms, b, t):
    ratio = np.exp(np.float64(terms.logp[b, t]) - terms.old_logp[b, t])
    return clipped_gain(ratio, terms.advantages[b], loss.clip)


def grpo(loss, terms):
    rows = [b for b in range(len(terms.free)) if terms.free[b].any()]
    means = [np.mean([token_gain(loss, terms, b, t) for t in chosen(terms, b)]) for b in rows]
    return -sum(means) / terms.num_sequences


def dapo(loss, terms):
    return (
        -sum(token_gain(loss, terms, b, t) for b, t in np.argwhere(terms.free)) / terms.num_tokens
    )


def dr_grpo(loss, terms):
    total = sum(token_gain(loss, terms, b, t) for b, t in np.argwhere(terms.free))
    return -total / terms.num_sequences / terms.max_tokens


def of_rows(loss, terms, reduce):
    total = 0.0
    for b in range(len(terms.free)):
        if terms.free[b].any():
            gaps = [np.float64(terms.logp[b, t]) - terms.old_logp[b, t] for t in chosen(terms, b)]
            total += clipped_gain(np.exp(reduce(gaps)), terms.advantages[b], loss.clip)
    return -total / terms.num_sequences


def sequence_ratio(loss, terms):
    return of_rows(loss, terms, np.mean)


def rloo(loss, terms):
    return of_rows(loss, terms, np.sum)


def cispo(loss, terms):
    total = 0.0
    for b, t in np.argwhere(terms.free):
        ratio = np.exp(np.float64(terms.logp[b, t]) - terms.old_logp[b, t])
        weight = np.clip(ratio, loss.floor, loss.ceiling)
        total += weight * terms.advantages[b] * terms.logp[b, t]
    return -total / terms.num_tokens


def thinkless(loss, terms):
    total = 0.0
    for b in range(len(terms.free)):
        response = [
            token_gain(loss, terms, b, t) for t in chosen(terms, b) if not terms.marker[b, t]
        ]
        control = [token_gain(loss, terms, b, t) for t in chosen(terms, b) if terms.marker[b, t]]
        total += np.mean(response) if response else 0.0
        total += loss.control_weight * sum(control)
    return -total / terms.num_sequences


LOSSES = {
    GrpoLoss(clip=CLIP): grpo,
    DapoLoss(clip=CLIP): dapo,
    DrGrpoLoss(clip=CLIP): dr_grpo,
    SequenceRatioLoss(clip=CLIP): sequence_ratio,
    RlooLoss(clip=CLIP): rloo,
    CispoLoss(floor=0.5, ceiling=1.2): cispo,
    ThinklessLoss(control_weight=0.3, clip=CLIP): thinkless,
}
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
clipped_losses = pytest.mark.parametrize(
    "loss",
    [loss for loss in LOSSES if not isinstance(loss, CispoLoss)],
    ids=lambda loss: type(loss).__name__,
)


def objective_of(loss, **more):
    base = v2()
    return Objective(reward=base.reward, advantage=base.advantage, policy_loss=loss, **more)


def _measure(objective, terms):
    def loss_of(logp, old_logp, advantages):
        moved = terms.replace(logp=logp, old_logp=old_logp, advantages=advantages)
        return objective.loss(moved)

    at = (terms.logp, terms.old_logp, terms.advantages)
    (value, metrics), grads = jax.value_and_grad(loss_of, (0, 1, 2), has_aux=True)(*at)
    return value, metrics, *grads


compiled = jax.jit(_measure, static_argnums=0)


def measure(loss, terms: Terms):
    """Value, metrics, and the gradient with respect to the log-probs; no other carries one."""
    value, metrics, grad, *others = compiled(objective_of(loss), on_device(terms))
    for other in others:
        np.testing.assert_array_equal(other, 0)
    return value, metrics, np.asarray(grad)


@every_loss
@pytest.mark.parametrize("seed", range(8))
def test_equals_definition(loss, seed):
    terms = make_terms(seed)
    np.testing.assert_allclose(measure(loss, terms)[0], LOSSES[loss](loss, terms), rtol=2e-5)


@clipped_losses
def test_gradient_equals_finite_differences_of_the_definition(loss):
    terms = make_terms(3)
    grad = measure(loss, terms)[2]
    exact = terms.replace(logp=terms.logp.astype(np.float64))
    for b, t in np.argwhere(terms.free):
        rise = []
        for sign in (1, -1):
            moved = exact.logp.copy()
            moved[b, t] += sign * 1e-6
            rise.append(LOSSES[loss](loss, exact.replace(logp=moved)))
        np.testing.assert_allclose(grad[b, t], (rise[0] - rise[1]) / 2e-6, atol=1e-5)


def test_cispo_teaches_beyond_its_clip_and_its_ratio_carries_no_gradient():
    loss, terms = CispoLoss(floor=0.5, ceiling=1.2), make_terms(3)
    ratio = np.exp(terms.logp - terms.old_logp)
    want = -np.clip(ratio, 0.5, 1.2) * terms.advantages[:, None] / terms.num_tokens
    grad = measure(loss, terms)[2]
    np.testing.assert_allclose(grad[terms.free], want[terms.free], rtol=1e-5)
    assert (ratio[terms.free] > 1.2).any()


@every_loss
def test_forced_and_padding_tokens_get_no_gradient_and_the_stop_gets_one(loss):
    terms = make_terms(0)
    bad = np.full_like(terms.advantages, -1.0)
    near = terms.replace(advantages=bad, old_logp=terms.logp + 0.01)  # inside every clip
    np.testing.assert_array_equal(measure(loss, near)[2] != 0, terms.free)


@every_loss
def test_stop_at_position_zero_trains_that_token_alone(loss):
    terms = make_terms(0)
    assert terms.free[1].tolist() == [True] + [False] * (TIME - 1)
    at_old = terms.replace(old_logp=terms.logp)
    weight = {DapoLoss: 23.0, CispoLoss: 23.0, DrGrpoLoss: 7.0 * TIME}.get(type(loss), 7.0)
    want = [-terms.advantages[1] / weight] + [0.0] * (TIME - 1)
    np.testing.assert_allclose(measure(loss, at_old)[2][1], want, rtol=1e-5)


@every_loss
@pytest.mark.parametrize("garbage", [-np.inf, np.inf, 0.0, 1e30])
def test_what_stands_at_tokens_that_are_not_free_does_not_matter(loss, garbage):
    terms = make_terms(1)
    fields = ("logp", "old_logp", "ref_logp", "sampler_logp")
    dirty = {name: np.where(terms.free, getattr(terms, name), garbage) for name in fields}
    filled = np.where(terms.free.any(axis=1), terms.advantages, garbage)
    changed = terms.replace(**{name: a.astype(np.float32) for name, a in dirty.items()})
    got = measure(loss, changed.replace(advantages=filled.astype(np.float32)))
    jax.tree.map(np.testing.assert_array_equal, got, measure(loss, terms))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))


@every_loss
def test_all_forced_is_zero(loss):
    terms = make_terms(2)
    value, metrics, grad = measure(loss, terms.replace(free=np.zeros_like(terms.free)))
    assert value == 0 and set(map(float, metrics.values())) == {0.0}
    np.testing.assert_array_equal(grad, 0)


@every_loss
@pytest.mark.parametrize("field", ["logp", "old_logp", "advantages"])
def test_nan_that_was_chosen_is_seen(loss, field):
    """The step's guard can only refuse what reaches the loss."""
    terms = make_terms(2)
    planted = getattr(terms, field).copy()
    planted[0, ...] = np.nan
    assert np.isnan(measure(loss, terms.replace(**{field: planted}))[0])


@every_loss
def test_unequal_parts_add_up_to_the_whole(loss):
    terms = make_terms(4)
    value, metrics, grad = measure(loss, terms)
    parts = [measure(loss, rows_of(terms, rows)) for rows in (slice(0, 2), slice(2, 8))]
    np.testing.assert_allclose(sum(part[0] for part in parts), value, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([part[2] for part in parts]), grad, atol=1e-7)
    for name in metrics:
        total = sum(part[1][name] for part in parts)
        np.testing.assert_allclose(total, metrics[name], rtol=1e-5, atol=1e-7)


@every_loss
@pytest.mark.parametrize(("adv", "gap"), [(1, 200), (-1, 200), (1, -200), (-1, -200)])
def test_extreme_ratios_keep_loss_and_gradient_finite(loss, adv, gap):
    terms = make_terms(5)
    advs = np.full_like(terms.advantages, adv)
    value, metrics, grad = measure(
        loss, terms.replace(advantages=advs, old_logp=terms.logp - np.float32(gap))
    )
    assert np.isfinite(value) and np.isfinite(grad).all()
    assert all(np.isfinite(metric) for metric in metrics.values())


def one_ratio(ratio, adv):
    terms = make_terms(0)
    free = np.zeros_like(terms.free)
    free[0, 1] = True  # of one token, product and mean are one
    old = terms.logp - np.log(ratio).astype(np.float32)
    return terms.replace(free=free, old_logp=old, advantages=np.full_like(terms.advantages, adv))


@clipped_losses
@pytest.mark.parametrize(
    ("ratio", "adv", "flows"),
    [
        (1.4, 1.0, False), (1.4, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False),
        (1.25, 1.0, True), (0.75, -1.0, False), (1.0, 1.0, True), (1.0, -1.0, True),
        (1.6, -1.0, False),  # beyond the dual clip
    ],
)  # fmt: skip
def test_clip_stops_the_gradient_on_its_side_only(loss, ratio, adv, flows):
    assert bool(measure(loss, one_ratio(ratio, adv))[2][0, 1] != 0) == flows


@every_loss
def test_metrics_at_the_old_policy_and_away_from_it(loss):
    """Means over rollouts, whatever the loss weighs: 6 of the 7 counted rows hold a free token."""
    terms = make_terms(6)
    held = terms.free.any(axis=1).sum()
    at_old = measure(loss, terms.replace(old_logp=terms.logp))[1]
    single = one_ratio(2.0, 1.0)
    away = measure(loss, single)[1]
    for metrics, count, want in [
        (at_old, held, (0.0, 1.0, 0.0)),
        (away, 1, (1.0, 2.0, 1 - np.log(2))),
    ]:
        got = [metrics[name] * 7.0 / count for name in ("clip_fraction", "ratio_mean", "kl_to_old")]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_weight_of_the_marker_falls_with_length_unless_thinkless_weighs_it():
    """The trap of route credit: in a mean over tokens a short rollout moves the router more."""
    free = np.arange(TIME) < np.array([[2], [7]])
    marker = free & (np.arange(TIME) == 0)
    logp = np.full((2, TIME), -1.0, np.float32)
    terms = make_terms(0, rows=8).replace(
        logp=logp, old_logp=logp, ref_logp=None, sampler_logp=None, free=free, marker=marker,
        advantages=np.ones(2, np.float32), num_sequences=np.float32(2.0),
    )  # fmt: skip
    np.testing.assert_allclose(measure(GrpoLoss(), terms)[2][:, 0], [-1 / 4, -1 / 14], rtol=1e-6)
    grad = measure(ThinklessLoss(), terms)[2]
    np.testing.assert_allclose(grad[:, 0], [-1e-3 / 2, -1e-3 / 2], rtol=1e-6)
    np.testing.assert_allclose(grad[:, 1], [-1 / 2, -1 / 12], rtol=1e-6)


def test_gspo_s_clip_is_narrow_and_o1_pruner_s_is_not():
    terms = one_ratio(1.001, 1.0)
    narrow = SequenceRatioLoss(clip=Clip(low=3e-4, high=4e-4))
    assert measure(narrow, terms)[2][0, 1] == 0
    assert measure(SequenceRatioLoss(), terms)[2][0, 1] != 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Clip(low=0.0), r"Clip.low=0.0"),
        (lambda: Clip(low=1.0), r"Clip.low=1.0"),
        (lambda: Clip(high=0.0), r"Clip.high=0.0"),
        (lambda: Clip(high=np.inf), r"Clip.high=inf"),
        (lambda: Clip(dual=1.1), r"Clip.dual=1.1"),
        (lambda: CispoLoss(floor=1.0), r"CispoLoss.floor=1.0"),
        (lambda: CispoLoss(ceiling=1.0), r"CispoLoss.ceiling=1.0"),
        (lambda: ThinklessLoss(control_weight=0.0), r"ThinklessLoss.control_weight=0.0"),
    ],
)
def test_impossible_settings_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_clip_is_the_papers_by_default():
    assert (Clip().low, Clip().high, Clip().dual) == (0.2, 0.2, None)
