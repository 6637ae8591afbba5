"""Rounding by chance: only the two neighbours, right on average, exact where it can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.training.rounding import round_by_chance

NUM_DRAWS = 40_000
compiled = jax.jit(round_by_chance)


def neighbours(value):
    """The bfloat16 numbers at or below and above in magnitude, by cutting off float32's tail."""
    bits = np.float32(value).view(np.uint32)
    low = np.uint32(bits & 0xFFFF0000).view(np.float32)
    high = np.uint32((bits & 0xFFFF0000) + 0x10000).view(np.float32)
    return float(low), float(high)


@pytest.mark.parametrize("value", [1.001, -1.001, 0.3, 3e-5, -7.77e20, 1.9999, 2.0**-126 * 1.3])
def test_the_mean_of_many_draws_is_the_value(value):
    exact = jnp.full((NUM_DRAWS,), value, jnp.float32)
    drawn = np.asarray(compiled(jax.random.key(1), exact).astype(jnp.float32), np.float64)
    low, high = neighbours(value)
    assert set(drawn) == {low, high}
    share = (float(np.float32(value)) - low) / (high - low)
    # Five standard deviations of a share of so many draws.
    bound = 5 * np.sqrt(share * (1 - share) / NUM_DRAWS)
    assert abs(np.mean(drawn == high) - share) < bound


def test_what_bfloat16_has_stays():
    values = jnp.asarray([0.0, -0.0, 1.0, -2.5, 2.0**-130, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    exact = jnp.tile(values[:, None], (1, 200))
    drawn = np.asarray(compiled(jax.random.key(2), exact).astype(jnp.float32))
    np.testing.assert_array_equal(drawn, np.asarray(exact))
    np.testing.assert_array_equal(np.signbit(drawn), np.signbit(np.asarray(exact)))


def test_many_small_updates_arrive():
    """1e-4 at a time, below half a step of bfloat16 at 1: rounded to the nearest, it stays 1."""
    num = 400
    start = jnp.ones((256,), jnp.bfloat16)

    def add(weight, step):
        key = jax.random.fold_in(jax.random.key(3), step)
        return round_by_chance(key, weight.astype(jnp.float32) + 1e-4), None

    end, _ = jax.lax.scan(add, start, jnp.arange(num))
    # A draw's deviation is below half a step, 2^-8; over all draws and weights, their mean's.
    bound = 5 * np.sqrt(num) * 2.0**-8 / np.sqrt(start.size)
    assert abs(float(jnp.mean(end.astype(jnp.float32))) - 1.04) < bound
    nearest = start
    for _ in range(3):
        nearest = (nearest.astype(jnp.float32) + 1e-4).astype(jnp.bfloat16)
    np.testing.assert_array_equal(nearest.astype(jnp.float32), 1.0)
