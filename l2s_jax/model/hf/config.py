"""A decoder's shape from and to a Hugging Face `config.json`.

Lives here: the two translations, and the refusal by name of what we do not implement. Not here:
reading the file (`model/hf/files.py`), `ModelConfig` itself (`model/config.py`).
"""

from typing import Any

from l2s_jax.model.config import ModelConfig


def from_hf_config(hf: dict[str, Any]) -> ModelConfig:
    """The decoder that a `config.json` describes; refuses by name what we do not implement."""
    kind = hf.get("model_type")
    if kind != "qwen2":
        raise ValueError(
            f"config.json: model_type={kind!r} is not implemented. Use a qwen2 model (Qwen2,"
            " Qwen2.5, Qwen2.5-Math, DeepSeek-R1-Distill-Qwen)."
        )
    sliding = "sliding_attention" in (hf.get("layer_types") or ())
    if hf.get("use_sliding_window") or sliding:
        raise ValueError(
            "config.json: sliding-window attention (use_sliding_window, layer_types) is not"
            " implemented; switch it off if the model was trained with full attention."
        )
    # transformers 5 writes rope_parameters; older releases rope_theta and rope_scaling.
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ValueError(f"config.json: rope type {rope_type!r} is not implemented.")
    if hf.get("hidden_act", "silu") != "silu":
        raise ValueError(f"config.json: hidden_act={hf['hidden_act']!r}; only silu is implemented.")
    width, num_heads = _integer(hf, "hidden_size"), _integer(hf, "num_attention_heads")
    return ModelConfig(
        vocab_size=_integer(hf, "vocab_size"),
        width=width,
        num_layers=_integer(hf, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_integer(hf, "num_key_value_heads", num_heads),
        head_dim=_integer(hf, "head_dim", width // num_heads),
        ffn_width=_integer(hf, "intermediate_size"),
        rope_theta=_positive(hf | rope, "rope_theta", 10_000.0),
        rms_eps=_positive(hf, "rms_norm_eps", 1e-6),
        tied=bool(hf.get("tie_word_embeddings", False)),
        max_positions=_integer(hf, "max_position_embeddings", 32768),
    )


def _integer(hf: dict[str, Any], name: str, default: int | None = None) -> int:
    """A whole number of at least 1 from a config; null and absent are the default."""
    value = default if hf.get(name) is None else hf[name]
    if value is None:
        raise ValueError(f"config.json lacks the field {name!r}; is it a whole one?")
    if type(value) is not int or value < 1:
        raise ValueError(f"config.json: {name}={value!r} must be a whole number, at least 1.")
    return value


def _positive(hf: dict[str, Any], name: str, default: float) -> float:
    """A number above zero from a config; null and absent are the default."""
    value = default if hf.get(name) is None else hf[name]
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ValueError(f"config.json: {name}={value!r} must be a number above 0.")
    return float(value)


def to_hf_config(cfg: ModelConfig, *, stop_id: int | None, pad_id: int | None) -> dict[str, Any]:
    """The `config.json` from which transformers builds the same decoder."""
    if not cfg.qkv_bias or cfg.head_dim * cfg.num_heads != cfg.width:
        raise ValueError(
            f"ModelConfig(qkv_bias={cfg.qkv_bias}, head_dim={cfg.head_dim}) is no Qwen2 model:"
            " transformers' Qwen2 has query, key and value biases and width = heads * head_dim."
        )
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.ffn_width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_positions,
        "rms_norm_eps": cfg.rms_eps,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "tie_word_embeddings": cfg.tied,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "eos_token_id": stop_id,
        "pad_token_id": pad_id,
    }
