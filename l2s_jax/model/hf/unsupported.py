"""What a `config.json` may ask for that our decoder does not do: each is refused by name.

Lives here: the table of such fields, and the checks that need more than a table. Not here: rotary
positions (`model/hf/rope.py`), the shape itself (`model/hf/config.py`).

A field that is ignored gives wrong numbers without a word. The names are those that transformers'
decoders (5.23) read, whatever family they belong to: derived models keep the model type.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

FAMILIES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}  # model_type → class prefix

EXPERTS = "a mixture of experts is not implemented; take a dense model."
WINDOW = "attention over a window is not implemented; take a model with full attention."
SCALED = "scaled or capped activations are not implemented; take a model without them."
ROTARY = "only whole heads turned at every layer are implemented; take a model without it."
DROPOUT = "training with dropout is not implemented; set it to 0 (sampling does not change)."
QUANTIZED = "quantized weights are not read; take the model's bfloat16 or float16 weights."
SHAPE = "only plain causal decoders of text are implemented; take one of those."
BIASES = "these biases are not of the family; take a model as transformers builds it."

# Field → why it is refused, unless it is absent, null, false, zero or empty.
OFF = (
    dict.fromkeys(
        "num_experts num_local_experts n_routed_experts num_experts_per_tok moe_intermediate_size"
        " decoder_sparse_step num_nextn_predict_layers".split(),
        EXPERTS,
    )
    | dict.fromkeys(
        "use_sliding_window attention_chunk_size dual_chunk_attention_config".split(), WINDOW
    )
    | dict.fromkeys(
        "attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar clip_qkv"
        " attn_temperature_tuning scale_emb scale_depth dim_model_base".split(),
        SCALED,
    )
    | dict.fromkeys("use_mrope no_rope_layers no_rope_layer_interval alibi".split(), ROTARY)
    | dict.fromkeys(
        "attention_dropout hidden_dropout resid_pdrop embd_pdrop residual_dropout mlp_dropout"
        " embedding_dropout".split(),
        DROPOUT,
    )
    | dict.fromkeys("quantization_config compression_config".split(), QUANTIZED)
    | dict.fromkeys(
        "is_encoder_decoder add_cross_attention vision_config audio_config text_config"
        " use_parallel_residual parallel_attn use_bidirectional_attention".split(),
        SHAPE,
    )
    | dict.fromkeys("bias use_bias".split(), BIASES)
)
# Field → the one value (besides absent and null) that changes nothing, and why others are refused.
NEUTRAL = {
    "hidden_act": ("silu", "only silu is implemented; take a model with it."),
    "is_causal": (True, SHAPE),
    "embedding_multiplier": (1, SCALED),
    "residual_multiplier": (1, SCALED),
    "logits_scaling": (1, SCALED),
    "logit_scale": (1, SCALED),
}
# What transformers' class of the family never reads, so that another value could not be meant.
FIXED = {
    "qwen2": {"attention_bias": True, "qkv_bias": True, "mlp_bias": False, "qk_norm": False},
    "qwen3": {"mlp_bias": False, "qk_norm": True},
    "llama": {"qk_norm": False, "use_qk_norm": False},
}


def refuse(name: str, value: Any, why: str) -> NoReturn:
    """Raises what is wrong with one field, and what to do."""
    raise ValueError(f"config.json: {name}={value!r}: {why}")


def check_supported(hf: Mapping[str, Any]) -> str:
    """The model type, one of `FAMILIES`; refuses the first field that we do not implement."""
    kind = _family(hf)
    for name, why in OFF.items():
        if hf.get(name):
            refuse(name, hf[name], why)
    for name, (neutral, why) in NEUTRAL.items():
        if hf.get(name, neutral) not in (None, neutral):
            refuse(name, hf[name], why)
    for name, value in FIXED[kind].items():
        if hf.get(name, value) not in (None, value):
            refuse(name, hf[name], f"a {kind} model of transformers always has {value}. {BIASES}")
    # Qwen's files name a window and leave it unused; Llama's class has no such field.
    if kind == "llama" and hf.get("sliding_window"):
        refuse("sliding_window", hf["sliding_window"], WINDOW)
    layers = hf.get("layer_types")
    if layers is not None and (
        not isinstance(layers, list) or any(name != "full_attention" for name in layers)
    ):
        refuse("layer_types", layers, WINDOW)
    return kind


def _family(hf: Mapping[str, Any]) -> str:
    kind = hf.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        why = EXPERTS if "moe" in str(kind) or "mixtral" in str(kind) else "not implemented."
        refuse("model_type", kind, f"{why} Implemented are {', '.join(FAMILIES)}.")
    known = f"{FAMILIES[kind]}ForCausalLM"
    classes = hf.get("architectures")
    if classes and not (isinstance(classes, list) and known in classes):
        refuse("architectures", classes, f"only {known} is implemented; take such a model.")
    return kind
