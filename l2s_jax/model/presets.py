"""Shapes of well-known decoders, by their names on the Hub.

Lives here: `preset`, for runs that start from nothing and for plans without weights. Not here: the
shape in a model's own folder, which counts where there is one (`model/hf/config.py`).

Source: the models' config.json. Two checkpoints of one size may differ in `max_positions`,
`rope_theta` or `rms_eps` (Instruct and base, Math, distilled ones), so each name is its own entry.
"""

import dataclasses
import difflib

from l2s_jax.model.config import ModelConfig, RopeScaling

K = 1024
SMALL, LARGE = 151_936, 152_064  # rows of Qwen's tables, padding included


def _shape(layers: int, width: int, heads: int, kv_heads: int, ffn: int, vocab: int) -> ModelConfig:
    """A Qwen2 decoder; the small vocabulary goes with a tied head."""
    return ModelConfig(
        vocab_size=vocab,
        width=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width // heads,
        ffn_width=ffn,
        tied=vocab == SMALL,
    )


QWEN2 = {
    "0.5B": _shape(24, 896, 14, 2, 4864, SMALL),
    "1.5B": _shape(28, 1536, 12, 2, 8960, SMALL),
    "3B": _shape(36, 2048, 16, 2, 11_008, SMALL),
    "7B": _shape(28, 3584, 28, 4, 18_944, LARGE),
    "14B": _shape(48, 5120, 40, 8, 13_824, LARGE),
    "32B": _shape(64, 5120, 40, 8, 27_648, LARGE),
    "72B": _shape(80, 8192, 64, 8, 29_568, LARGE),
}


def _qwen2(size: str, positions: int, theta: float = 1e6, eps: float = 1e-6) -> ModelConfig:
    return dataclasses.replace(QWEN2[size], max_positions=positions, rope_theta=theta, rms_eps=eps)


def _qwen3(layers: int, width: int, heads: int, ffn: int, tied: bool) -> ModelConfig:
    shape = _shape(layers, width, heads, 8, ffn, SMALL)
    return dataclasses.replace(
        shape, head_dim=128, tied=tied, qkv_bias=False, qk_norm=True, max_positions=40 * K
    )


def _llama(
    layers: int, width: int, heads: int, ffn: int, *, factor: float, tied: bool
) -> ModelConfig:
    scaling = RopeScaling(
        factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8 * K
    )
    return dataclasses.replace(
        _shape(layers, width, heads, 8, ffn, 128_256),
        tied=tied,
        qkv_bias=False,
        rope_theta=5e5,
        rms_eps=1e-5,
        max_positions=128 * K,
        rope_scaling=scaling,
    )


LLAMA_1B = _llama(16, 2048, 32, 8192, factor=32.0, tied=True)
LLAMA_3B = _llama(28, 3072, 24, 8192, factor=32.0, tied=True)
LLAMA_8B = _llama(32, 4096, 32, 14_336, factor=8.0, tied=False)
LLAMA_70B = _llama(80, 8192, 64, 28_672, factor=8.0, tied=False)

PRESETS = {
    "Qwen2-0.5B": _qwen2("0.5B", 128 * K),
    "Qwen2-0.5B-Instruct": _qwen2("0.5B", 32 * K),
    "Qwen2-1.5B": _qwen2("1.5B", 128 * K),
    "Qwen2-1.5B-Instruct": _qwen2("1.5B", 32 * K),
    "Qwen2-7B": _qwen2("7B", 128 * K),
    "Qwen2-7B-Instruct": _qwen2("7B", 32 * K),
    "Qwen2-72B": _qwen2("72B", 128 * K, eps=1e-5),
    "Qwen2-72B-Instruct": _qwen2("72B", 32 * K),
    "Qwen2.5-0.5B": _qwen2("0.5B", 32 * K),
    "Qwen2.5-0.5B-Instruct": _qwen2("0.5B", 32 * K),
    "Qwen2.5-1.5B": _qwen2("1.5B", 128 * K),
    "Qwen2.5-1.5B-Instruct": _qwen2("1.5B", 32 * K),
    "Qwen2.5-3B": _qwen2("3B", 32 * K),
    "Qwen2.5-3B-Instruct": _qwen2("3B", 32 * K),
    "Qwen2.5-7B": _qwen2("7B", 128 * K),
    "Qwen2.5-7B-Instruct": _qwen2("7B", 32 * K),
    "Qwen2.5-14B": _qwen2("14B", 128 * K, eps=1e-5),
    "Qwen2.5-14B-Instruct": _qwen2("14B", 32 * K),
    "Qwen2.5-32B": _qwen2("32B", 128 * K, eps=1e-5),
    "Qwen2.5-32B-Instruct": _qwen2("32B", 32 * K),
    "Qwen2.5-72B": _qwen2("72B", 128 * K, eps=1e-5),
    "Qwen2.5-72B-Instruct": _qwen2("72B", 32 * K),
    "Qwen2.5-Math-1.5B": _qwen2("1.5B", 4 * K, 1e4),
    "Qwen2.5-Math-1.5B-Instruct": _qwen2("1.5B", 4 * K, 1e4),
    "Qwen2.5-Math-7B": _qwen2("7B", 4 * K, 1e4),
    "Qwen2.5-Math-7B-Instruct": _qwen2("7B", 4 * K, 1e4),
    "DeepSeek-R1-Distill-Qwen-1.5B": dataclasses.replace(_qwen2("1.5B", 128 * K, 1e4), tied=False),
    "DeepSeek-R1-Distill-Qwen-7B": _qwen2("7B", 128 * K, 1e4),
    "DeepSeek-R1-Distill-Qwen-14B": _qwen2("14B", 128 * K, eps=1e-5),
    "DeepSeek-R1-Distill-Qwen-32B": _qwen2("32B", 128 * K, eps=1e-5),
    "Qwen3-0.6B": _qwen3(28, 1024, 16, 3072, tied=True),
    "Qwen3-1.7B": _qwen3(28, 2048, 16, 6144, tied=True),
    "Qwen3-4B": _qwen3(36, 2560, 32, 9728, tied=True),
    "Qwen3-8B": _qwen3(36, 4096, 32, 12_288, tied=False),
    "Qwen3-14B": _qwen3(40, 5120, 40, 17_408, tied=False),
    "Qwen3-32B": _qwen3(64, 5120, 64, 25_600, tied=False),
    "Llama-3.2-1B": LLAMA_1B,
    "Llama-3.2-1B-Instruct": LLAMA_1B,
    "Llama-3.2-3B": LLAMA_3B,
    "Llama-3.2-3B-Instruct": LLAMA_3B,
    "Llama-3.1-8B": LLAMA_8B,
    "Llama-3.1-8B-Instruct": LLAMA_8B,
    "Llama-3.1-70B": LLAMA_70B,
    "Llama-3.1-70B-Instruct": LLAMA_70B,
    "DeepSeek-R1-Distill-Llama-8B": LLAMA_8B,
}


def preset(name: str) -> ModelConfig:
    """The shape of a model of the Hub, by its name without the organisation."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name.split("/")[-1], PRESETS, n=5, cutoff=0.4)
        hint = f"Near it are {', '.join(near)}" if near else f"There are {', '.join(PRESETS)}"
        raise ValueError(f"preset {name!r} is not known. {hint}.")
    return PRESETS[name]
