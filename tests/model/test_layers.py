import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.config import ModelConfig, RopeScaling
from l2s_jax.model.hf.rope import rope_to_hf
from l2s_jax.model.layers import RMSNorm, SwiGLU, project, rotary_angles, rotary_rates, rotate
from tests.model.test_config import TINY

CFG = ModelConfig(**TINY)


def scaled(factor):
    return RopeScaling(
        factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192
    )


def test_rms_norm_by_definition():
    rng = np.random.default_rng(0)
    x_BTD, scale_D = rng.normal(size=(2, 3, 32)).astype(np.float32), rng.normal(size=32)
    got = RMSNorm(CFG.rms_eps).apply(
        {"params": {"scale": jnp.asarray(scale_D, jnp.float32)}}, jnp.asarray(x_BTD)
    )
    for b, t in np.ndindex(2, 3):
        want = x_BTD[b, t] / np.sqrt((x_BTD[b, t] ** 2).mean() + CFG.rms_eps) * scale_D
        np.testing.assert_allclose(got[b, t], want, rtol=1e-5, atol=1e-6)


def test_a_projection_and_its_gradients_by_definition():
    rng = np.random.default_rng(2)
    x_BTI, kernel_IO, grad_BTO = (
        rng.normal(size=shape).astype(np.float32) for shape in [(2, 3, 5), (5, 4), (2, 3, 4)]
    )
    out_BTO, back = jax.vjp(project, jnp.asarray(x_BTI), jnp.asarray(kernel_IO))
    got_x_BTI, got_kernel_IO = back(jnp.asarray(grad_BTO))
    want_kernel_IO = np.zeros((5, 4))
    for b, t in np.ndindex(2, 3):
        np.testing.assert_allclose(out_BTO[b, t], x_BTI[b, t] @ kernel_IO, rtol=1e-5, atol=1e-6)
        want_x_I = kernel_IO @ grad_BTO[b, t]
        np.testing.assert_allclose(got_x_BTI[b, t], want_x_I, rtol=1e-5, atol=1e-6)
        want_kernel_IO += np.outer(x_BTI[b, t], grad_BTO[b, t])
    np.testing.assert_allclose(got_kernel_IO, want_kernel_IO, rtol=1e-5, atol=1e-6)


def test_swiglu_by_definition():
    rng = np.random.default_rng(1)
    x_D = rng.normal(size=32)
    gate, up, down = rng.normal(size=(32, 48)), rng.normal(size=(32, 48)), rng.normal(size=(48, 32))
    kernels = {"gate_proj": gate, "up_proj": up, "down_proj": down}
    params = {name: {"kernel": jnp.asarray(k, jnp.float32)} for name, k in kernels.items()}
    got = SwiGLU(CFG).apply({"params": params}, jnp.asarray(x_D, jnp.float32)[None, None])
    a = x_D @ gate
    np.testing.assert_allclose(got[0, 0], (a / (1 + np.exp(-a)) * (x_D @ up)) @ down, rtol=1e-4)


ROPES = {  # head size, base, scaling: Qwen2.5 and Qwen3, Math, Llama 3.2 1B, Llama 3.1
    "qwen": (128, 1e6, None),
    "qwen-64": (64, 1e6, None),
    "math": (128, 1e4, None),
    "llama-3.2": (64, 5e5, scaled(32.0)),
    "llama-3.1": (128, 5e5, scaled(8.0)),
}


def rates_by_definition(head_dim, theta, scaling):
    """Radians per position, float64 loops; Llama's scaling as its paper's code words it."""
    rates = []
    for pair in range(head_dim // 2):
        rate = theta ** (-2 * pair / head_dim)
        if scaling is not None:
            turn = 2 * math.pi / rate
            share = scaling.original_positions / turn - scaling.low_freq_factor
            share /= scaling.high_freq_factor - scaling.low_freq_factor
            share = min(max(share, 0.0), 1.0)  # 0: turns slowly, stretched whole; 1: left alone
            rate = (1 - share) * rate / scaling.factor + share * rate
        rates.append(rate)
    return np.array(rates)


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("position", [1, 257, 8_192, 30_000, 32_000])
def test_angles_against_float64(name, position):
    cos, sin = jax.jit(rotary_angles, static_argnums=(1, 2, 3))(
        jnp.full((1, 1), position), *ROPES[name]
    )
    angle = position * rates_by_definition(*ROPES[name])
    # A float32 angle is a product of float32 numbers, so its error is some halves of its last
    # digit: a slow pair is near exact. Scaling adds roundings. bfloat16 would be off by 1.
    scaling = ROPES[name][2]
    atol = 3e-7 + angle * (2 if scaling is None else 5) * 2.0**-24
    if scaling is None:
        atol = np.minimum(atol, 5e-6 + position * 6e-8)
    assert (np.abs(cos[0, 0] - np.cos(angle)) <= atol).all()
    assert (np.abs(sin[0, 0] - np.sin(angle)) <= atol).all()


def check_rates(head_dim, theta, scaling, config):
    """Bit by bit, but where torch's vector loop rounds a power otherwise than torch does alone."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    init = LlamaRotaryEmbedding.compute_default_rope_parameters
    if scaling is not None:
        init = ROPE_INIT_FUNCTIONS["llama3"]
    want, factor = init(config)
    got = rotary_rates(head_dim, theta, scaling)
    power = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
    alone = torch.cat([theta ** power[i : i + 1] for i in range(len(power))])
    same = (theta**power == alone).numpy()
    assert factor == 1.0 and same.sum() >= len(same) - 2
    bits, want_bits = got.view(np.int32), want.numpy().view(np.int32)
    np.testing.assert_array_equal(bits[same], want_bits[same])
    assert np.abs(bits - want_bits).max() <= 2


def llama_config(head_dim, theta, scaling):
    from transformers import LlamaConfig

    sizes = {"hidden_size": head_dim, "num_attention_heads": 1, "max_position_embeddings": 131_072}
    return LlamaConfig(**sizes, rope_parameters=rope_to_hf(theta, scaling)["rope_parameters"])


@pytest.mark.parametrize("name", ROPES)
def test_angles_are_those_of_transformers(name):
    import torch
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = llama_config(*ROPES[name])
    check_rates(*ROPES[name], config)
    positions_BT = np.array([[0, 1, 255, 8_191, 30_000]])
    want_cos, want_sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.as_tensor(positions_BT))
    cos, sin = rotary_angles(jnp.asarray(positions_BT), *ROPES[name])
    half = ROPES[name][0] // 2
    # A rate one unit off would show as 2e-3 here.
    np.testing.assert_allclose(cos, want_cos[..., :half], atol=2e-6)
    np.testing.assert_allclose(sin, want_sin[..., :half], atol=2e-6)


@pytest.mark.parametrize("theta", [5e5, 1e6, 123_456.0])
@pytest.mark.parametrize("head_dim", [8, 80, 96, 128])
def test_rates_of_odd_sizes_and_factors(head_dim, theta):
    scaling = RopeScaling(
        factor=7.0, low_freq_factor=1.5, high_freq_factor=3.5, original_positions=5000
    )
    check_rates(head_dim, theta, scaling, llama_config(head_dim, theta, scaling))


def test_rotation_turns_pairs_and_keeps_lengths():
    x = np.random.default_rng(2).normal(size=(1, 5, 2, 8)).astype(np.float32)
    positions_BT = jnp.array([[0, 1, 2, 50, 999]])
    got = np.asarray(rotate(jnp.asarray(x), *rotary_angles(positions_BT, 8, 1e4)))
    np.testing.assert_array_equal(got[:, 0], x[:, 0])
    for t, h, i in np.ndindex(5, 2, 4):
        angle = float(positions_BT[0, t]) * 1e4 ** (-i / 4)
        pair = complex(x[0, t, h, i], x[0, t, h, i + 4]) * np.exp(1j * angle)
        np.testing.assert_allclose(got[0, t, h, [i, i + 4]], [pair.real, pair.imag], atol=3e-4)
