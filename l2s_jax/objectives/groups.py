"""Statistics of the samples of one prompt, exact where all of them are equal.

Lives here: what rewards and advantages both need. Not here: what is done with it.

Shape letters: B rows = N prompts times G samples, each prompt's samples side by side.

Why not `mean` and `std`: the mean of seven times 0.1 is not 0.1 in float32, so that a group
without any signal has a deviation of 1e-9, which a guard of 1e-6 turns into an advantage.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


def split_groups(value_B: Shaped[Array, " B"], group_size: int) -> Shaped[Array, "N G"]:
    """Returns the rows as one line per prompt."""
    if group_size < 1 or value_B.shape[0] % group_size:
        raise ValueError(
            f"group_size={group_size} does not divide {value_B.shape[0]} rows."
            " Every prompt needs the same number of samples, side by side."
        )
    return value_B.reshape(-1, group_size)


def masked_mean_std(
    value_NG: Float[Array, "N G"], used_NG: Bool[Array, "N G"], ddof: int = 0
) -> tuple[Float[Array, "N 1"], Float[Array, "N 1"]]:
    """Returns mean and standard deviation of the used samples of each group, by exact rules.

    Equal values: the value itself and 0. No sample used: 0 and 0. The sum of squares is divided
    by the number of samples less `ddof`; where nothing is left, the deviation is 0.
    """
    count_N1 = jnp.sum(used_NG, axis=-1, keepdims=True).astype(jnp.float32)
    kept_NG = jnp.where(used_NG, value_NG, 0.0)
    low_N1 = jnp.min(value_NG, axis=-1, keepdims=True, initial=jnp.inf, where=used_NG)
    high_N1 = jnp.max(value_NG, axis=-1, keepdims=True, initial=-jnp.inf, where=used_NG)
    mean_N1 = jnp.sum(kept_NG, axis=-1, keepdims=True) / jnp.maximum(count_N1, 1.0)
    mean_N1 = jnp.where(low_N1 == high_N1, low_N1, mean_N1)
    square_NG = jnp.where(used_NG, (value_NG - mean_N1) ** 2, 0.0)
    freedom_N1 = jnp.maximum(count_N1 - ddof, 1.0)
    return mean_N1, jnp.sqrt(jnp.sum(square_NG, axis=-1, keepdims=True) / freedom_N1)


def group_means(value_B: Float[Array, " B"], group_size: int) -> Float[Array, " N"]:
    """Returns the mean of each prompt's samples, such as O1-Pruner's reference length."""
    value_NG = split_groups(value_B, group_size)
    return masked_mean_std(value_NG, jnp.ones_like(value_NG, bool))[0][:, 0]


def flat_groups(value_NG: Float[Array, "N G"]) -> Bool[Array, "N 1"]:
    """True where all samples of a prompt have one value, so that there is nothing to prefer."""
    return jnp.max(value_NG, axis=-1, keepdims=True) == jnp.min(value_NG, axis=-1, keepdims=True)
