"""Adapters from and to folders in the format of Hugging Face's `peft`.

Lives here: `load_peft`, `save_peft`, the names of an adapter's tensors. Not here: what
`adapter_config.json` may say (`model/hf/peft_config.py`), the adapter itself (`model/lora.py`).

Rows of tokens are what peft calls trainable tokens. Its name for them ends in "delta", yet they are
the rows themselves. A tied model keeps one set, under the embedding; an untied one two.
Format: as written by peft 0.21.
"""

import json
import pathlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params
from l2s_jax.model.hf.files import PICKLES
from l2s_jax.model.hf.names import TABLE, Tensor, flatten, unflatten
from l2s_jax.model.hf.peft_config import CONFIG, PeftConfig, read_peft_config, to_peft_config
from l2s_jax.model.lora import LoraConfig, abstract_adapter, own_rows, part_of

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
SIDES = {"a": "lora_A.weight", "b": "lora_B.weight"}
ROWS = "token_adapter.trainable_tokens_delta"
DTYPES = ("F32", "BF16", "F16")  # safetensors' names of what we read


def adapter_tensors(
    cfg: ModelConfig, lora: LoraConfig, num_rows: int = 0, *, head_rows: bool = False
) -> list[Tensor]:
    """Every tensor that the folder of an adapter holds.

    Args:
      num_rows: tokens that have rows of their own.
      head_rows: whether they have some in the head too.
    """
    stems = {name.ours: PREFIX + name.theirs.removesuffix("weight") for name in TABLE}
    shapes = flatten(nn.unbox(abstract_adapter(cfg, lora, num_rows)))
    tensors = []
    for path, shape in ((path, leaf.shape) for path, leaf in shapes.items()):
        module, _, ours = path.rpartition(".")
        if ours in SIDES:
            stem = stems[f"{module}.kernel"] + SIDES[ours]
            for layer in range(cfg.num_layers):
                tensors.append(Tensor(stem.format(layer), path, layer, True, shape[:0:-1]))
        elif ours == "token_rows" or (ours == "head_rows" and head_rows):
            stem = stems["embed.embedding" if ours == "token_rows" else "lm_head"]
            tensors.append(Tensor(stem + ROWS, path, None, False, shape))
    return tensors


# ---- in ----


def load_peft(
    folder: str | pathlib.Path, cfg: ModelConfig, params: Params
) -> tuple[LoraConfig, Params]:
    """An adapter of the decoder `cfg`, in the type that its file has.

    Args:
      params: the base's; a head that the folder has no rows for keeps the base's own.
    """
    folder = pathlib.Path(folder)
    config = read_peft_config(folder)
    check_token_ids(folder, config, cfg)
    # peft ties the head of a tied model to the embedding's rows, whether it is listed or not.
    head_rows = config.in_head and not cfg.tied
    expected = adapter_tensors(cfg, config.lora, len(config.token_ids), head_rows=head_rows)
    arrays = read_tensors(folder, expected)
    leaves: dict[str, Any] = {}
    for tensor in expected:
        array = arrays[tensor.name]
        array = np.ascontiguousarray(array.T if tensor.transposed else array)
        if tensor.layer is None:
            leaves[tensor.leaf] = jnp.asarray(array)
        else:
            leaves.setdefault(tensor.leaf, []).append(array)
    stacked = {
        path: jnp.asarray(np.stack(leaf)) if isinstance(leaf, list) else leaf
        for path, leaf in leaves.items()
    }
    scale = jnp.full((cfg.num_layers,), config.lora.scale, jnp.float32)
    for target in config.lora.targets:
        stacked[f"layers.{part_of(target)}.{target}.scale"] = scale
    adapter = unflatten(stacked)
    if config.token_ids:
        adapter = own_rows(cfg, params, config.token_ids) | adapter
    return config.lora, adapter


def check_token_ids(folder: pathlib.Path, config: PeftConfig, cfg: ModelConfig) -> None:
    """Refuses rows for tokens that the base's table does not have."""
    beyond = [i for i in config.token_ids if not 0 <= i < cfg.vocab_size]
    if beyond:
        raise ValueError(
            f"{folder / CONFIG}: trainable_token_indices holds {beyond}, but the base model has"
            f" {cfg.vocab_size} rows. Its vocabulary grew before it was adapted: take the merged"
            " model instead, or the base that it was trained on."
        )
    if len(set(config.token_ids)) < len(config.token_ids):
        raise ValueError(f"{folder / CONFIG}: trainable_token_indices names a token twice.")


def read_tensors(folder: pathlib.Path, expected: list[Tensor]) -> dict[str, np.ndarray]:
    """The arrays of a folder's safetensors file; every fault of it in one message."""
    file = folder / WEIGHTS
    if not file.is_file():
        pickles = sorted(path.name for kind in PICKLES for path in folder.glob(kind))
        if pickles:
            raise ValueError(
                f"{folder} holds pickled weights only ({', '.join(pickles)}). Pickle can run code"
                f" and is never read: save the adapter as {WEIGHTS} (peft's save_pretrained does)."
            )
        raise FileNotFoundError(f"{file} is missing: an adapter's folder needs it.")
    try:
        with safe_open(file, framework="numpy") as handle:
            found = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            wrong = complaints(expected, found)
            arrays = {} if wrong else {name: handle.get_tensor(name) for name in found}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged or cut off ({error}); copy it again.") from None
    wrong += [
        f"not finite: {name}" for name, array in arrays.items() if not np.isfinite(array).all()
    ]
    if wrong:
        listed = "\n  ".join(wrong)
        raise ValueError(f"{file} does not fit {CONFIG} and the base model:\n  {listed}")
    return arrays


def complaints(expected: list[Tensor], found: dict[str, Any]) -> list[str]:
    """What is wrong between the tensors that there should be and those that are there."""
    wrong = []
    for tensor in expected:
        if tensor.name not in found:
            wrong.append(f"missing: {tensor.name} {tensor.shape}")
        elif tuple(found[tensor.name].get_shape()) != tensor.shape:
            shape = tuple(found[tensor.name].get_shape())
            wrong.append(f"shape: {tensor.name} is {shape}, not {tensor.shape}")
    known = {tensor.name for tensor in expected}
    for name in sorted(found):
        if name not in known:
            wrong.append(f"unknown: {name} {tuple(found[name].get_shape())}")
        elif found[name].get_dtype() not in DTYPES:
            wrong.append(f"dtype: {name} is {found[name].get_dtype()}, not one of {[*DTYPES]}")
    return wrong


# ---- out ----


def save_peft(
    folder: str | pathlib.Path,
    cfg: ModelConfig,
    lora: LoraConfig,
    adapter: Params,
    *,
    base: str | None = None,
) -> list[str]:
    """Writes an adapter that `peft` loads on its base; returns the file names.

    Args:
      base: what peft should call the base model: its folder, or its name on the Hub.
    """
    folder = pathlib.Path(folder)
    leaves = flatten(adapter)
    token_ids = [int(i) for i in leaves.get("token_ids", ())]
    tensors = {}
    for tensor in adapter_tensors(cfg, lora, len(token_ids), head_rows="head_rows" in leaves):
        leaf = leaves[tensor.leaf]
        array = np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])
        if not np.isfinite(array).all():
            raise ValueError(
                f"adapter {tensor.leaf} (layer {tensor.layer}) is not finite. Export an earlier"
                " checkpoint."
            )
        tensors[tensor.name] = np.ascontiguousarray(array.T if tensor.transposed else array)
    config = to_peft_config(lora, token_ids, in_head=not cfg.tied, base=base)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # it is made for its owner alone; the folder is to be shared
    return [CONFIG, WEIGHTS]
