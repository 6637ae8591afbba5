"""Tiny random Qwen2 models made by transformers: the oracle of every test on models.

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


def make_model(seed: int = 0, **changes: Any) -> Any:
    """A transformers Qwen2 whose every weight, norms and biases too, is random."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(seed)
    config = Qwen2Config(**{**SHAPE, "eos_token_id": None, "pad_token_id": None, **changes})
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            weight.copy_(centre + 0.15 * torch.randn_like(weight))
    return model


def make_folder(
    path: pathlib.Path,
    seed: int = 0,
    *,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    **changes: Any,
) -> Any:
    """The model of `make_model`, saved under `path` in `dtype`; its weights are rounded to it."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = make_model(seed, **changes).to(getattr(torch, dtype))
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return model


def torch_logits(model: Any, tokens_BT: np.ndarray, **inputs: np.ndarray) -> np.ndarray:
    """Its logits, float32."""
    import torch

    with torch.no_grad():
        tensors = {name: torch.as_tensor(array) for name, array in inputs.items()}
        return model(input_ids=torch.as_tensor(tokens_BT), **tensors).logits.float().numpy()
