"""Truncated importance sampling: the sampler's log-probs against the trainer's own."""

import dataclasses

import jax
import numpy as np
import pytest

from l2s_jax.objectives.importance import TruncatedImportance
from l2s_jax.objectives.kl import K3
from l2s_jax.objectives.presets import dapo, v2
from tests.objectives.rollouts import make_terms, on_device

CUT = TruncatedImportance(cap=1.3)


def measure(objective, terms):
    def loss_of(logp, sampler_logp):
        return objective.loss(terms.replace(logp=logp, sampler_logp=sampler_logp))

    terms = on_device(terms)
    at = (terms.logp, terms.sampler_logp)
    (value, metrics), grads = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(*at)
    return value, metrics, *map(np.asarray, grads)


def test_equals_definition_and_leaves_the_kl_term_alone():
    terms = make_terms(0)
    plain = dataclasses.replace(dapo(), kl=K3(weight=0.1))
    value, metrics, grad, sampler_grad = measure(dataclasses.replace(plain, importance=CUT), terms)
    clip = plain.policy_loss.clip
    want, ratios = 0.0, []
    for b, t in np.argwhere(terms.free):
        trust = np.exp(terms.old_logp[b, t] - terms.sampler_logp[b, t])
        ratio = np.exp(terms.logp[b, t] - terms.old_logp[b, t])
        adv = terms.advantages[b]
        gain = min(ratio * adv, np.clip(ratio, 1 - clip.low, 1 + clip.high) * adv)
        gap = terms.ref_logp[b, t] - terms.logp[b, t]
        want += (0.1 * (np.exp(gap) - gap - 1) - min(trust, 1.3) * gain) / terms.num_tokens
        ratios.append(trust)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["max_trainer_to_sampler"], max(ratios), rtol=1e-5)
    assert max(ratios) > 1.3  # something was cut
    np.testing.assert_array_equal(sampler_grad, 0)
    np.testing.assert_array_equal(grad != 0, terms.free)


def test_programs_that_agree_change_nothing():
    terms = make_terms(1)
    terms = terms.replace(sampler_logp=terms.old_logp)
    value, metrics, grad, _ = measure(dataclasses.replace(v2(), importance=CUT), terms)
    want = measure(v2(), terms)
    np.testing.assert_array_equal(value, want[0])
    np.testing.assert_array_equal(grad, want[2])
    np.testing.assert_allclose(metrics["max_trainer_to_sampler"], 1.0)


@pytest.mark.parametrize("gap", [200.0, -200.0])
def test_programs_that_are_far_apart_stay_finite(gap):
    terms = make_terms(2)
    far = terms.replace(sampler_logp=terms.old_logp + np.float32(gap))
    value, _, grad, _ = measure(dataclasses.replace(v2(), importance=CUT), far)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_what_is_missing_or_impossible_is_an_error():
    objective = dataclasses.replace(v2(), importance=CUT)
    assert objective.needs_sampler_logp and not v2().needs_sampler_logp
    with pytest.raises(ValueError, match=r"sampler_logp=None.*needs_sampler_logp"):
        objective.loss(on_device(make_terms(0, sampler_logp=None)))
    with pytest.raises(ValueError, match=r"TruncatedImportance.cap=0.5"):
        TruncatedImportance(cap=0.5)
