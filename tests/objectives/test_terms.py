"""Routing by design: forced markers as draws of a known probability."""

import dataclasses

import jax
import numpy as np
import pytest

from l2s_jax.objectives.presets import adaptthink, v2
from l2s_jax.objectives.terms import log_ratio, routed_by_design
from tests.objectives.rollouts import make_terms, on_device


def gradient(objective, terms):
    def loss_of(logp):
        return objective.loss(terms.replace(logp=logp))[0]

    terms = on_device(terms)
    return np.asarray(jax.grad(loss_of)(terms.logp))


def test_forced_markers_become_free_with_the_designs_log_prob():
    terms = make_terms(0)
    forced = terms.marker & ~terms.free
    assert forced.any() and (terms.marker & terms.free).any()
    after = routed_by_design(on_device(terms), 0.25)
    np.testing.assert_array_equal(after.free, terms.free | forced)
    for name in ("old_logp", "sampler_logp"):
        want = np.where(forced, np.float32(np.log(0.25)), getattr(terms, name))
        np.testing.assert_array_equal(getattr(after, name), want)
    ratio = np.exp(np.asarray(log_ratio(after)))
    np.testing.assert_allclose(ratio[forced], np.exp(terms.logp[forced]) / 0.25, rtol=1e-5)
    assert routed_by_design(on_device(make_terms(0, sampler_logp=None)), 0.25).sampler_logp is None


def test_a_forced_marker_is_trained_by_design_only():
    """Who chose the marker decides: forced, and no design probability, it is in no loss."""
    terms = make_terms(1)
    forced = terms.marker & ~terms.free
    near = terms.replace(
        old_logp=terms.logp + 0.01, advantages=np.full_like(terms.advantages, -1.0)
    )
    assert not gradient(v2(), near)[forced].any()
    near = near.replace(logp=np.where(forced, np.log(np.float32(0.5)), near.logp))
    by_design = dataclasses.replace(v2(), design_probability=0.5)
    assert gradient(by_design, near)[forced].all()
    # Other forced tokens stay out.
    other = ~terms.free & ~terms.marker
    assert not gradient(by_design, near)[other].any()


def test_the_router_moves_towards_the_better_half():
    """Both are right and the bonus decides: short markers are made likelier, long ones less so."""
    rows, time = 4, 3
    marker = np.zeros((rows, time), bool)
    marker[:, 0] = True
    logp = np.full((rows, time), np.log(0.5), np.float32)
    terms = make_terms(0, rows=8).replace(
        logp=logp, old_logp=logp, free=~marker, marker=marker, ref_logp=None,
        sampler_logp=None, advantages=np.asarray([0.05, 0.05, -0.05, -0.05], np.float32),
        num_sequences=np.float32(4.0), num_tokens=np.float32(8.0),
    )  # fmt: skip
    grad = gradient(adaptthink(), terms)
    assert (grad[:2, 0] < 0).all() and (grad[2:, 0] > 0).all()


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_design_that_draws_nothing_is_an_error(probability):
    with pytest.raises(ValueError, match=f"design_probability={probability}"):
        dataclasses.replace(v2(), design_probability=probability)
