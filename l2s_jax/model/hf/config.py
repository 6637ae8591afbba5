"""A decoder's shape from and to a Hugging Face `config.json`, for Qwen2, Qwen3 and Llama.

Lives here: the two translations. Not here: what is refused (`model/hf/unsupported.py`), rotary
positions (`model/hf/rope.py`), reading the file (`model/hf/files.py`), `ModelConfig` itself
(`model/config.py`).

Defaults are those of transformers' config classes. Fields that decide a tensor's shape have none:
a file that lacks one is not a whole one.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.hf.fields import flag, integer, positive
from l2s_jax.model.hf.rope import rope_from_hf, rope_to_hf
from l2s_jax.model.hf.unsupported import FAMILIES, check_supported

DROPPED = ("auto_map", "_name_or_path")  # somebody's code to run; a path of somebody's machine
OURS = ("dtype", "remat")  # how we compute; no config.json says it


def from_hf_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The decoder that a `config.json` describes; refuses by name what we do not implement."""
    kind = check_supported(hf)
    width, num_heads = integer(hf, "hidden_size"), integer(hf, "num_attention_heads")
    # Qwen3's class takes 128 where the file names no size; the others cut the width evenly.
    if kind != "qwen3" and hf.get("head_dim") is None and width % num_heads:
        raise ValueError(
            f"config.json: hidden_size={width} is no multiple of num_attention_heads={num_heads},"
            " and head_dim is not given. Is it a whole file?"
        )
    num_layers = integer(hf, "num_hidden_layers")
    if hf.get("layer_types") is not None and len(hf["layer_types"]) != num_layers:
        raise ValueError(
            f"config.json: layer_types names {len(hf['layer_types'])} layers, but"
            f" num_hidden_layers={num_layers}. One of them is wrong."
        )
    attention_bias = kind != "qwen2" and flag(hf, "attention_bias")
    theta, scaling = rope_from_hf(hf)
    return ModelConfig(
        vocab_size=integer(hf, "vocab_size"),
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=integer(hf, "num_key_value_heads", _key_heads(hf, kind, num_heads)),
        head_dim=integer(hf, "head_dim", 128 if kind == "qwen3" else width // num_heads),
        ffn_width=integer(hf, "intermediate_size"),
        rope_theta=theta,
        rms_eps=positive(hf, "rms_norm_eps", 1e-6),
        tied=flag(hf, "tie_word_embeddings"),
        qkv_bias=attention_bias or kind == "qwen2",
        o_bias=attention_bias,
        mlp_bias=kind == "llama" and flag(hf, "mlp_bias"),
        qk_norm=kind == "qwen3",
        rope_scaling=scaling,
        max_positions=integer(hf, "max_position_embeddings", 2048 if kind == "llama" else 32768),
    )


def _key_heads(hf: Mapping[str, Any], kind: str, num_heads: int) -> int | None:
    """All heads where the field is null, or absent in a Llama; else there is no default."""
    return num_heads if kind == "llama" or "num_key_value_heads" in hf else None


def to_hf_config(
    cfg: ModelConfig,
    *,
    stop_id: int | None,
    pad_id: int | None,
    origin: Mapping[str, Any] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
) -> dict[str, Any]:
    """The `config.json` from which transformers builds the same decoder.

    Args:
      origin: the file that the model came with; it is kept but for what changed since.
      dtype: of the weights on disk; None is the origin's, or float32.
    """
    if origin is None:
        config = _from_features(cfg, stop_id, pad_id) | {"dtype": dtype or "float32"}
    else:
        config = _from_origin(cfg, stop_id, pad_id, origin)
        if dtype is not None:
            keys = [name for name in ("dtype", "torch_dtype") if name in origin]
            config |= dict.fromkeys(keys or ["dtype"], dtype)
    again = dataclasses.asdict(from_hf_config(config))
    ours = dataclasses.asdict(cfg)
    changed = {n: v for n, v in ours.items() if n not in OURS and again[n] != v}
    if changed:
        were = {name: again[name] for name in changed}
        raise ValueError(
            f"the model has {changed}, but the config.json that it came with says {were}, and only"
            " the vocabulary may change. Export it without its origin, or put these fields back."
        )
    return config


def _from_origin(
    cfg: ModelConfig, stop_id: int | None, pad_id: int | None, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """The origin's fields, with the vocabulary's size and special ids as they are now."""
    config = {name: value for name, value in origin.items() if name not in DROPPED}
    config["vocab_size"] = cfg.vocab_size
    stops = origin.get("eos_token_id")
    if stop_id is not None and stop_id not in (stops if isinstance(stops, list) else [stops]):
        config["eos_token_id"] = stop_id
    # Most files leave the padding to the tokenizer; one that names it must name the right one.
    if pad_id is not None and origin.get("pad_token_id") is not None:
        config["pad_token_id"] = pad_id
    return config


def family(cfg: ModelConfig) -> str:
    """The model type whose class in transformers has exactly these parts."""
    biases = (cfg.qkv_bias, cfg.o_bias, cfg.mlp_bias)
    even = cfg.head_dim * cfg.num_heads == cfg.width
    if cfg.qk_norm and cfg.qkv_bias == cfg.o_bias and not cfg.mlp_bias:
        return "qwen3"
    if not cfg.qk_norm and biases == (True, False, False) and even:
        return "qwen2"
    if not cfg.qk_norm and cfg.qkv_bias == cfg.o_bias and cfg.width % cfg.num_heads == 0:
        return "llama"
    parts = "qk_norm qkv_bias o_bias mlp_bias width num_heads head_dim".split()
    raise ValueError(
        f"no class of transformers is a decoder with { {n: getattr(cfg, n) for n in parts} }."
        " Qwen2: only qkv_bias, and width = heads * head_dim. Qwen3: qk_norm, qkv_bias = o_bias,"
        " no mlp_bias. Llama: no qk_norm, qkv_bias = o_bias, and width a multiple of heads."
    )


def _from_features(cfg: ModelConfig, stop_id: int | None, pad_id: int | None) -> dict[str, Any]:
    """A whole `config.json` for a model that came from none."""
    kind = family(cfg)
    config = {
        "architectures": [f"{FAMILIES[kind]}ForCausalLM"],
        "model_type": kind,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.ffn_width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_positions,
        "rms_norm_eps": cfg.rms_eps,
        "tie_word_embeddings": cfg.tied,
        "attention_dropout": 0.0,
        "eos_token_id": stop_id,
        "pad_token_id": pad_id,
    }
    if kind != "llama":
        config["use_sliding_window"] = False
    if kind != "qwen2":
        config |= {"head_dim": cfg.head_dim, "attention_bias": cfg.o_bias}
    if kind == "llama":
        config["mlp_bias"] = cfg.mlp_bias
    return config | rope_to_hf(cfg.rope_theta, cfg.rope_scaling)
