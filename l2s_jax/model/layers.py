"""The parts of a block that know nothing of other tokens: norm, feed-forward, rotary positions.

Lives here: `RMSNorm`, `project`, `Linear`, `SwiGLU`, `rotary_angles`, `rotate`. Not here: attention
(`model/attention.py`), the stack (`model/decoder.py`), how adapters are made (`model/lora.py`).
Parameter names follow transformers' Qwen2, whose numbers we match.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from l2s_jax.model.config import ModelConfig, RopeScaling

INIT = nn.initializers.normal(0.02)  # Qwen2's initializer_range
# Computed again in the backward pass: cheaper than keeping what lies between input and output, and
# that was two fifths of a pass's memory (LOG.md, 2026-11-27).
again = functools.partial(jax.checkpoint, prevent_cse=False)


class RMSNorm(nn.Module):
    """Input divided by its root mean square over the last axis, in float32, times a scale."""

    eps: float
    axis: str | None = "width"  # logical axis of the scale

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        ones = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
        scale_D: Any = self.param("scale", ones, (x.shape[-1],))
        return _normed(x, scale_D, self.eps)


@functools.partial(again, static_argnums=(2,))
def _normed(
    x: Float[Array, "*batch D"], scale_D: Float[Array, " D"], eps: float
) -> Float[Array, "*batch D"]:
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    normed = x32 * jax.lax.rsqrt(mean + eps)
    return (normed * jnp.expand_dims(scale_D, range(x.ndim - 1))).astype(x.dtype)


@jax.custom_vjp
def project(x_BTI: Float[Array, "B T I"], kernel_IO: Float[Array, "I O"]) -> Float[Array, "B T O"]:
    """x W, with the kernel's gradient as one product that comes out as the kernel lies.

    The gradient that JAX derives is the product turned round and transposed; for it XLA's CPU
    backend writes out a transposed copy of the gradient of `x W`, and multiplies at half the speed.
    """
    return x_BTI @ kernel_IO


def _project_forward(x_BTI: Array, kernel_IO: Array) -> tuple[Array, tuple[Array, Array]]:
    return project(x_BTI, kernel_IO), (x_BTI, kernel_IO)


def _project_backward(kept: tuple[Array, Array], grad_BTO: Array) -> tuple[Array, Array]:
    x_BTI, kernel_IO = kept
    return grad_BTO @ kernel_IO.T, jnp.tensordot(x_BTI, grad_BTO, axes=((0, 1), (0, 1)))


project.defvjp(_project_forward, _project_backward)


class Linear(nn.Module):
    """x W, plus a bias, plus the low-rank x A B of an adapter where the collection `lora` has one.

    The adapter is never declared here: a model without one has neither its parameters nor its cost.
    """

    features: int
    axes: tuple[str, str]  # logical axes of the kernel
    dtype: Any
    use_bias: bool = False

    @nn.compact
    def __call__(self, x_BTI: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        init = nn.with_logical_partitioning(INIT, self.axes)
        kernel_IO: Any = self.param("kernel", init, (x_BTI.shape[-1], self.features))
        x_BTI = x_BTI.astype(self.dtype)
        out_BTO = project(x_BTI, kernel_IO.astype(self.dtype))
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            bias_O: Any = self.param("bias", zeros, (self.features,))
            out_BTO += bias_O.astype(self.dtype)[None, None]
        if self.has_variable("lora", "a"):
            a_IR, b_RO = (self.get_variable("lora", name).astype(self.dtype) for name in "ab")
            scale = jax.lax.stop_gradient(self.get_variable("lora", "scale")).astype(self.dtype)
            out_BTO += (x_BTI @ a_IR) @ b_RO * scale
        return out_BTO


class SwiGLU(nn.Module):
    """Gated feed-forward, down(silu(gate x) * up x)."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        cfg = self.cfg

        def linear(name: str, features: int, *axes: str) -> Linear:
            dtype, bias = cfg.compute_dtype, cfg.mlp_bias
            return Linear(features, (axes[0], axes[1]), dtype, use_bias=bias, name=name)

        gate_BTF = linear("gate_proj", cfg.ffn_width, "width", "ffn")(x_BTD)
        up_BTF = linear("up_proj", cfg.ffn_width, "width", "ffn")(x_BTD)
        down = linear("down_proj", cfg.width, "ffn", "width")
        return down(_gated(gate_BTF, up_BTF))


@again
def _gated(gate_BTF: Float[Array, "B T F"], up_BTF: Float[Array, "B T F"]) -> Array:
    return nn.silu(gate_BTF) * up_BTF


def rotary_rates(
    head_dim: int, theta: float, scaling: RopeScaling | None
) -> Float[np.ndarray, "h"]:
    """Radians per position of each pair of entries, float32.

    Rounded step by step as transformers does (torch divides a number by an array by way of the
    inverse), hence the same bit by bit: a fast pair's rate that is off by one unit in the last
    place moves the logits at position 8,000 by more than everything else together. The power
    alone is exact to the last place here, and in torch's vector loop not always (1 pair of 64 at
    base 1e6 is one unit off there, a slow one).
    """
    one = np.float32(1)
    power_h = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelength_h = (theta ** power_h.astype(np.float64)).astype(np.float32)
    rate_h = one / wavelength_h
    if scaling is None:
        return rate_h
    full_turn_h = one / rate_h * np.float32(2 * math.pi)  # positions
    low = np.float32(scaling.original_positions / scaling.low_freq_factor)
    high = np.float32(scaling.original_positions / scaling.high_freq_factor)
    spread = np.float32(scaling.high_freq_factor - scaling.low_freq_factor)
    factor = np.float32(scaling.factor)
    share_h = one / full_turn_h * np.float32(scaling.original_positions)
    share_h = (share_h - np.float32(scaling.low_freq_factor)) / spread
    blend_h = (one - share_h) * rate_h / factor + share_h * rate_h
    slow_h, fast_h = full_turn_h > low, full_turn_h < high
    return np.where(slow_h, rate_h / factor, np.where(fast_h, rate_h, blend_h))


def rotary_angles(
    positions_BT: Int[Array, "B T"],
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Cosine and sine of the angle that each position turns each pair of entries by.

    Always float32: in bfloat16 position 257 becomes 256 and long contexts drift.
    Sources: RoFormer (arXiv 2104.09864), pairs split by halves as in transformers; the scaling of
    Llama 3.1 (arXiv 2407.21783).
    """
    rate_h = rotary_rates(head_dim, theta, scaling)
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
