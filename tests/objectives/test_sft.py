"""Stage 1's loss against its definition, and what must not leak into it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.objectives.sft import sft_loss


def loss_by_definition(logp, weights, num_tokens):
    total = 0.0
    for b, t in np.argwhere(weights):
        total -= weights[b, t] * logp[b, t]
    return total / num_tokens


def inputs(seed):
    rng = np.random.default_rng(seed)
    logp = -rng.exponential(size=(4, 6)).astype(np.float32)
    weights = (rng.uniform(size=(4, 6)) < 0.6) * rng.uniform(0.5, 2.0, (4, 6))
    weights[3] = 0  # a row without a trained token
    return logp, weights.astype(np.float32)


def measure(logp, weights, num_tokens):
    return sft_loss(jnp.asarray(logp), jnp.asarray(weights), num_tokens=jnp.float32(num_tokens))


@pytest.mark.parametrize("seed", range(4))
def test_equals_definition(seed):
    logp, weights = inputs(seed)
    loss, metrics = measure(logp, weights, weights.sum())
    np.testing.assert_allclose(loss, loss_by_definition(logp, weights, weights.sum()), rtol=1e-5)
    assert metrics["trained_tokens"] == np.count_nonzero(weights)


def test_what_padding_holds_does_not_matter():
    logp, weights = inputs(0)
    dirty = np.where(weights == 0, np.resize([-np.inf, np.nan, np.inf], logp.shape), logp)

    def grad(logp):
        return jax.value_and_grad(lambda logp: measure(logp, weights, 10.0)[0])(jnp.asarray(logp))

    got, want = grad(dirty.astype(np.float32)), grad(logp)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    np.testing.assert_array_equal(got[1] == 0, weights == 0)


def test_halves_add_up_to_the_whole():
    logp, weights = inputs(1)
    whole, _ = measure(logp, weights, weights.sum())
    parts = [measure(logp[half], weights[half], weights.sum())[0] for half in ([0, 1], [2, 3])]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)
