"""The parts of a block that know nothing of other tokens: norm, feed-forward, rotary positions.

Lives here: `RMSNorm`, `SwiGLU`, `rotary_angles`, `rotate`. Not here: attention
(`model/attention.py`), the stack (`model/decoder.py`). Parameter names follow transformers'
Qwen2, whose numbers we match.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from l2s_jax.model.config import ModelConfig

INIT = nn.initializers.normal(0.02)  # Qwen2's initializer_range


class RMSNorm(nn.Module):
    """Input divided by its root mean square, taken in float32, times a learned scale."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("width",))
        scale_D: Any = self.param("scale", ones, (self.cfg.width,))
        x32_BTD = x_BTD.astype(jnp.float32)
        mean_BT1 = jnp.mean(jnp.square(x32_BTD), axis=-1, keepdims=True)
        normed_BTD = x32_BTD * jax.lax.rsqrt(mean_BT1 + self.cfg.rms_eps)
        return (normed_BTD * scale_D[None, None, :]).astype(x_BTD.dtype)


class SwiGLU(nn.Module):
    """Gated feed-forward, down(silu(gate x) * up x)."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        cfg = self.cfg
        into = nn.with_logical_partitioning(INIT, ("width", "ffn"))
        back = nn.with_logical_partitioning(INIT, ("ffn", "width"))
        dense = functools.partial(nn.Dense, use_bias=False, dtype=cfg.compute_dtype)
        gate_BTF = dense(cfg.ffn_width, kernel_init=into, name="gate_proj")(x_BTD)
        up_BTF = dense(cfg.ffn_width, kernel_init=into, name="up_proj")(x_BTD)
        return dense(cfg.width, kernel_init=back, name="down_proj")(nn.silu(gate_BTF) * up_BTF)


def rotary_angles(
    positions_BT: Int[Array, "B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Cosine and sine of the angle that each position turns each pair of entries by.

    Always float32: in bfloat16 position 257 becomes 256 and long contexts drift. The rates are
    rounded step by step as transformers does, hence bit by bit the same: a rate that is off by one
    unit in the last place moves the logits at position 8,000 by more than everything else together.
    Source: RoFormer (arXiv 2104.09864), pairs split by halves as in transformers.
    """
    power_h = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelength_h = (theta ** power_h.astype(np.float64)).astype(np.float32)
    rate_h = np.float32(1) / wavelength_h  # radians per position
    angle_BTh = positions_BT[:, :, None].astype(jnp.float32) * rate_h[None, None, :]
    return jnp.cos(angle_BTh), jnp.sin(angle_BTh)


def rotate(
    x_BTHE: Float[Array, "B T H E"],
    cos_BTh: Float[Array, "B T half"],
    sin_BTh: Float[Array, "B T half"],
) -> Float[Array, "B T H E"]:
    """`x_BTHE` with entry i and entry i + E/2 of each head turned as one pair."""
    first, second = jnp.split(x_BTHE.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTh[:, :, None, :], sin_BTh[:, :, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTHE.dtype)
