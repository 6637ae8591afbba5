"""The three estimators of KL, as numbers and as losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.objectives.kl import K1, K2, K3, RatioK3, k1, k2, k3
from l2s_jax.objectives.losses import DrGrpoLoss, GrpoLoss, ThinklessLoss
from l2s_jax.objectives.objective import Objective
from l2s_jax.objectives.presets import v2
from tests.objectives.rollouts import make_terms, on_device

NUMBERS = {K1: lambda d: d, K2: lambda d: d**2 / 2, K3: lambda d: np.exp(-d) - 1 + d}
PULLS = {K1: lambda d: d, K2: lambda d: d, K3: lambda d: 1 - np.exp(-d)}
every_penalty = pytest.mark.parametrize("penalty", NUMBERS)


def with_kl(kl, loss=None):
    base = v2()
    return Objective(
        reward=base.reward, advantage=base.advantage, policy_loss=loss or GrpoLoss(), kl=kl
    )


def measure(objective, terms):
    terms = on_device(terms)

    def loss_of(logp, ref_logp):
        return objective.loss(terms.replace(logp=logp, ref_logp=ref_logp))

    both = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    (value, metrics), grads = both(terms.logp, terms.ref_logp)
    return value, metrics, *map(np.asarray, grads)


def gaps(terms):
    return np.float64(terms.logp) - terms.ref_logp


@every_penalty
@pytest.mark.parametrize(
    "loss", [GrpoLoss(), DrGrpoLoss(), ThinklessLoss()], ids=lambda loss: type(loss).__name__
)
def test_is_averaged_as_the_loss_is(penalty, loss):
    """With advantages of 0 the KL term is all that is left."""
    terms = make_terms(1)
    terms = terms.replace(advantages=np.zeros_like(terms.advantages))
    value, metrics, grad, ref_grad = measure(with_kl(penalty(weight=0.1), loss), terms)
    free, weights = terms.free, np.asarray(loss.weights(on_device(terms)))
    want, per_rollout = 0.0, 0.0
    for b, t in np.argwhere(free):
        number = NUMBERS[penalty](gaps(terms)[b, t])
        want += 0.1 * weights[b, t] * number
        per_rollout += number / free[b].sum() / terms.num_sequences
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl_to_ref"], per_rollout, rtol=1e-5)
    pull = np.where(free, PULLS[penalty](gaps(terms)), 0.0)
    np.testing.assert_allclose(grad, 0.1 * weights * pull, atol=1e-6)
    np.testing.assert_array_equal(ref_grad, 0)


def test_equal_policies_pay_nothing_and_k3_is_never_negative():
    gap = jnp.asarray([[0.0, -1.5, 2.0, 30.0, -1e-4]])
    np.testing.assert_array_equal([k1(gap)[0, 0], k2(gap)[0, 0], k3(gap)[0, 0]], 0)
    assert np.all(np.asarray(k3(gap)) >= 0)


def test_numbers_and_gradients_as_expectations():
    """Over all tokens of a vocabulary, weighted by the policy: which estimator is unbiased."""
    rng = np.random.default_rng(0)
    logits, ref = jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.normal(size=5))
    ref_logp = jax.nn.log_softmax(ref)

    def kl(logits):
        logp = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logp) * (logp - ref_logp))

    def expected(estimate):
        def value(logits):
            logp = jax.nn.log_softmax(logits)
            # What was drawn does not move: the gradient of a loss on samples.
            return jnp.sum(
                jax.lax.stop_gradient(jnp.exp(logp)) * estimate((logp - ref_logp)[None])[0]
            )

        return jax.value_and_grad(value)(logits)

    (one, one_grad), (two, two_grad), (three, three_grad) = map(expected, (k1, k2, k3))
    np.testing.assert_allclose([one, three], kl(logits), rtol=1e-5)
    assert abs(two - kl(logits)) > 1e-2
    true = jax.grad(kl)(logits)
    np.testing.assert_allclose(two_grad, true, atol=1e-6)
    np.testing.assert_allclose(one_grad, 0, atol=1e-6)  # k1 as a loss does not see the reference
    assert np.max(np.abs(three_grad - true)) > 1e-2


def test_ratio_k3_is_unbiased_where_another_policy_drew():
    """Over a vocabulary, weighted by the old policy: number and gradient are those of the KL."""
    rng = np.random.default_rng(1)
    logits, old, ref = (jnp.asarray(rng.normal(size=(1, 5)), jnp.float32) for _ in range(3))
    old_logp, ref_logp = jax.nn.log_softmax(old), jax.nn.log_softmax(ref)

    def kl(logits):
        logp = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logp) * (logp - ref_logp))

    def expected(penalty):
        terms = on_device(make_terms(0)).replace(
            old_logp=old_logp, ref_logp=ref_logp, free=jnp.ones((1, 5), bool)
        )

        def value(logits):
            moved = terms.replace(logp=jax.nn.log_softmax(logits))
            return jnp.sum(jnp.exp(old_logp) * penalty(weight=1.0).penalty(moved))

        return jax.value_and_grad(value)(logits)

    number, grad = expected(RatioK3)
    np.testing.assert_allclose(number, kl(logits), rtol=1e-5)
    np.testing.assert_allclose(grad, jax.grad(kl)(logits), atol=1e-6)
    biased, biased_grad = expected(K3)
    assert abs(biased - number) > 1e-2 and np.max(np.abs(biased_grad - grad)) > 1e-2


@pytest.mark.parametrize("penalty", [*NUMBERS, RatioK3])
def test_extreme_gaps_stay_finite(penalty):
    terms = make_terms(2)
    for gap in (200.0, -200.0):
        far = terms.replace(ref_logp=terms.logp + np.float32(gap))
        value, _, grad, _ = measure(with_kl(penalty(weight=0.1)), far)
        assert np.isfinite(value) and np.isfinite(grad).all()


def test_a_reference_that_is_missing_is_an_error():
    objective = with_kl(K3(weight=0.1))
    assert objective.needs_reference and not v2().needs_reference
    with pytest.raises(ValueError, match=r"ref_logp=None.*needs_reference"):
        objective.loss(on_device(make_terms(0, ref_logp=None)))


@pytest.mark.parametrize("penalty", [*NUMBERS, RatioK3])
@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan])
def test_a_weight_that_does_nothing_is_an_error(penalty, weight):
    with pytest.raises(ValueError, match=f"{penalty.__name__}.weight={weight}"):
        penalty(weight=weight)
