import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.layers import RMSNorm, SwiGLU, rotary_angles, rotate
from tests.model.test_config import TINY

CFG = ModelConfig(**TINY)


def test_rms_norm_by_definition():
    rng = np.random.default_rng(0)
    x_BTD, scale_D = rng.normal(size=(2, 3, 32)).astype(np.float32), rng.normal(size=32)
    got = RMSNorm(CFG.rms_eps).apply(
        {"params": {"scale": jnp.asarray(scale_D, jnp.float32)}}, jnp.asarray(x_BTD)
    )
    for b, t in np.ndindex(2, 3):
        want = x_BTD[b, t] / np.sqrt((x_BTD[b, t] ** 2).mean() + CFG.rms_eps) * scale_D
        np.testing.assert_allclose(got[b, t], want, rtol=1e-5, atol=1e-6)


def test_swiglu_by_definition():
    rng = np.random.default_rng(1)
    x_D = rng.normal(size=32)
    gate, up, down = rng.normal(size=(32, 48)), rng.normal(size=(32, 48)), rng.normal(size=(48, 32))
    kernels = {"gate_proj": gate, "up_proj": up, "down_proj": down}
    params = {name: {"kernel": jnp.asarray(k, jnp.float32)} for name, k in kernels.items()}
    got = SwiGLU(CFG).apply({"params": params}, jnp.asarray(x_D, jnp.float32)[None, None])
    a = x_D @ gate
    np.testing.assert_allclose(got[0, 0], (a / (1 + np.exp(-a)) * (x_D @ up)) @ down, rtol=1e-4)


@pytest.mark.parametrize("position", [1, 257, 8_192, 30_000, 32_000])
def test_angles_against_float64(position):
    cos, sin = jax.jit(rotary_angles, static_argnums=(1, 2))(jnp.full((1, 1), position), 128, 1e6)
    angle = position * 1e6 ** (-np.arange(64) / 64)
    # The float32 product itself is off by 2**-10 of a radian at 30,000; bfloat16 would be off by 1.
    atol = 5e-6 + position * 6e-8
    np.testing.assert_allclose(cos[0, 0], np.cos(angle), atol=atol)
    np.testing.assert_allclose(sin[0, 0], np.sin(angle), atol=atol)


@pytest.mark.parametrize(("head_dim", "theta"), [(8, 1e6), (64, 1e6), (128, 1e6), (128, 1e4)])
def test_angles_are_those_of_transformers(head_dim, theta):
    import torch
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": theta}
    config = Qwen2Config(
        hidden_size=head_dim, num_attention_heads=1, num_key_value_heads=1, rope_parameters=rope
    )
    positions_BT = np.array([[0, 1, 255, 8_191, 30_000]])
    want_cos, want_sin = Qwen2RotaryEmbedding(config)(torch.zeros(1), torch.as_tensor(positions_BT))
    cos, sin = rotary_angles(jnp.asarray(positions_BT), head_dim, theta)
    half = head_dim // 2
    # A rate one unit off would show as 2e-3 here.
    np.testing.assert_allclose(cos, want_cos[..., :half], atol=2e-6)
    np.testing.assert_allclose(sin, want_sin[..., :half], atol=2e-6)


def test_rotation_turns_pairs_and_keeps_lengths():
    x = np.random.default_rng(2).normal(size=(1, 5, 2, 8)).astype(np.float32)
    positions_BT = jnp.array([[0, 1, 2, 50, 999]])
    got = np.asarray(rotate(jnp.asarray(x), *rotary_angles(positions_BT, 8, 1e4)))
    np.testing.assert_array_equal(got[:, 0], x[:, 0])
    for t, h, i in np.ndindex(5, 2, 4):
        angle = float(positions_BT[0, t]) * 1e4 ** (-i / 4)
        pair = complex(x[0, t, h, i], x[0, t, h, i + 4]) * np.exp(1j * angle)
        np.testing.assert_allclose(got[0, t, h, [i, i + 4]], [pair.real, pair.imag], atol=3e-4)
