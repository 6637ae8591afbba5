"""Float32 to bfloat16 by chance, so that small updates are not lost.

Lives here: `round_by_chance`. Not here: who keeps weights in bfloat16 (`training/optim.py`), the
step that rounds them (`training/step.py`).

A bfloat16 weight of 1 has neighbours 0.0078 above and 0.0039 below: rounded to the nearest, an
update of 1e-4 leaves it where it was, for ever. Rounded up with the probability of what is cut
off, it moves as far on average. Source: Gupta et al., arXiv 1502.02551; for bfloat16 weights
Zamirai et al., arXiv 2010.06192.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float32, Key


def round_by_chance(
    key: Key[Array, ""], exact: Float32[Array, "*shape"]
) -> BFloat16[Array, "*shape"]:
    """One of the two bfloat16 numbers around each value, the mean of the draw being the value.

    A value that bfloat16 has is itself, and what is not finite stays as it is.
    """
    bits = jax.lax.bitcast_convert_type(exact, jnp.uint32)
    # bfloat16 is float32's upper half: noise in the lower one carries over as often as it should.
    noise = jax.random.bits(key, exact.shape, jnp.uint16).astype(jnp.uint32)
    upper = ((bits + noise) >> 16).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(exact), rounded, exact.astype(jnp.bfloat16))
