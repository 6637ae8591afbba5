"""Tiny random models made by transformers, of every family: the oracle of all tests on models.

torch is imported when a model is made, never by collecting the tests.
"""

import pathlib
from typing import Any

import numpy as np

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64_000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# What sets a family's tiny model apart: heads wider than their share, or scaled rates.
FAMILIES = {
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "llama": {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5},
}
SPREAD = 0.15  # of every tiny weight, so that biases and norms have a part in the result


def make_model(
    seed: int = 0, *, family: str = "qwen2", spread: float | None = SPREAD, **changes: Any
) -> Any:
    """A transformers model whose every weight, norms and biases too, is random.

    Args:
      spread: standard deviation of all weights (about 1 in norms); None keeps transformers' own
        start (0.02), with norms and biases made random too.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(seed)
    fields = {**SHAPE, **FAMILIES[family], "bos_token_id": None, "eos_token_id": None}
    config = AutoConfig.for_model(family, **{**fields, "pad_token_id": None, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            if spread is not None:
                weight.copy_(centre + spread * torch.randn_like(weight))
            elif weight.ndim == 1:
                weight.copy_(centre + 0.1 * torch.randn_like(weight))
    return model


def make_folder(
    path: pathlib.Path,
    seed: int = 0,
    *,
    family: str = "qwen2",
    spread: float | None = SPREAD,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    **changes: Any,
) -> Any:
    """The model of `make_model`, saved under `path` in `dtype`; its weights are rounded to it."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = make_model(seed, family=family, spread=spread, **changes)
    for weight in model.parameters():  # not model.to(...): it rounds the rotary rates too
        weight.data = weight.data.to(getattr(torch, dtype))
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return model


def torch_logits(model: Any, tokens_BT: np.ndarray, **inputs: np.ndarray) -> np.ndarray:
    """Its logits, float32."""
    import torch

    with torch.no_grad():
        tensors = {name: torch.as_tensor(array) for name, array in inputs.items()}
        return model(input_ids=torch.as_tensor(tokens_BT), **tensors).logits.float().numpy()
