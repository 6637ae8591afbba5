"""Group statistics against numpy, and their exactness where a group is flat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.objectives.groups import flat_groups, group_means, masked_mean_std, split_groups


@pytest.mark.parametrize("ddof", [0, 1])
def test_equals_numpy(ddof):
    rng = np.random.default_rng(0)
    value, used = rng.normal(size=(5, 6)).astype(np.float32), rng.uniform(size=(5, 6)) < 0.6
    used[:, :2] = True
    mean, std = masked_mean_std(jnp.asarray(value), jnp.asarray(used), ddof)
    for n in range(5):
        np.testing.assert_allclose(mean[n, 0], value[n, used[n]].mean(), rtol=1e-5)
        np.testing.assert_allclose(std[n, 0], value[n, used[n]].std(ddof=ddof), rtol=1e-5)


@pytest.mark.parametrize("size", range(1, 40))
def test_equal_values_have_exactly_their_mean_and_no_deviation(size):
    value = jnp.full((3, size), jnp.asarray([0.1, 1 / 3, 7e5])[:, None], jnp.float32)
    mean, std = jax.jit(masked_mean_std)(value, jnp.ones_like(value, bool))
    np.testing.assert_array_equal(mean, value[:, :1])
    np.testing.assert_array_equal(std, 0)
    assert flat_groups(value).all()


def test_nothing_used_is_zero():
    mean, std = masked_mean_std(jnp.ones((2, 3)), jnp.zeros((2, 3), bool), 1)
    np.testing.assert_array_equal(jnp.concatenate([mean, std]), 0)


def test_groups_are_contiguous_rows():
    np.testing.assert_array_equal(group_means(jnp.arange(6.0), 3), [1.0, 4.0])


@pytest.mark.parametrize("group_size", [0, 4])
def test_rows_that_do_not_divide_are_an_error(group_size):
    with pytest.raises(ValueError, match=f"group_size={group_size}"):
        split_groups(jnp.arange(6.0), group_size)
