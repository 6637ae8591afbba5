"""An adapter's `adapter_config.json`, from and to `LoraConfig`.

Lives here: the two translations, and the refusal by name of what we do not implement. Not here:
the tensors (`model/hf/peft.py`).

Fields as in peft 0.21's LoraConfig. One that is not listed here is refused unless it is off: an
adapter that computes something else than we think must not load.
"""

import dataclasses
import math
import pathlib
from typing import Any

from l2s_jax.model.hf.files import read_json
from l2s_jax.model.lora import TARGETS, LoraConfig

CONFIG = "adapter_config.json"
READ = ("peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "trainable_token_indices")
# What they say does not change what a trained adapter computes on its base.
IGNORED = (
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",  # of training alone
    "megatron_core",  # a module's name; megatron_config switches it on
    "qalora_group_size",  # use_qalora switches it on
    "loftq_config",  # init_lora_weights switches it on
    "ensure_weight_tying",  # what is tied is told by the base
    "layers_pattern",  # layers_to_transform switches it on
)
# Starts from which the base stays as it is; pissa, olora, corda and loftq change its weights.
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
EMBEDDING_NAME, HEAD_NAME = "embed_tokens", "lm_head"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """What an adapter's config says that we need."""

    lora: LoraConfig
    token_ids: tuple[int, ...]  # tokens with rows of their own
    in_head: bool  # whether the head is listed with them


def read_peft_config(folder: pathlib.Path) -> PeftConfig:
    """The config of an adapter's folder; every field that we do not implement is named."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: give the one that holds {CONFIG}.")
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: an adapter's folder needs it.")
    config = read_json(path)
    wrong = refusals(config)
    if wrong:
        listed = "\n  ".join(wrong)
        raise ValueError(f"{path} asks for what is not implemented:\n  {listed}")
    targets = config["target_modules"]
    token_ids, in_head = read_token_ids(config.get("trainable_token_indices"))
    lora = LoraConfig(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        targets=TARGETS if targets == "all-linear" else tuple(sorted(targets)),
        use_rslora=config.get("use_rslora", False),
    )
    return PeftConfig(lora=lora, token_ids=token_ids, in_head=in_head)


def refusals(config: dict[str, Any]) -> list[str]:
    """Every field whose value we cannot honour, and why."""
    if config.get("peft_type") != "LORA":
        return [f"peft_type={config.get('peft_type')!r}: only LORA is"]
    wrong = []
    rank, alpha, rslora = config.get("r"), config.get("lora_alpha"), config.get("use_rslora", False)
    if type(rank) is not int or rank < 1:
        wrong.append(f"r={rank!r}: a whole number, at least 1")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        wrong.append(f"lora_alpha={alpha!r}: a number above 0")
    if type(rslora) is not bool:
        wrong.append(f"use_rslora={rslora!r}: true or false")
    wrong += target_refusals(config.get("target_modules"))
    wrong += token_refusals(config.get("trainable_token_indices"))
    if config.get("bias", "none") != "none":
        wrong.append(f"bias={config['bias']!r}: an adapter has no biases here; only 'none' is")
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        wrong.append(
            f"init_lora_weights={config['init_lora_weights']!r}: it changes the base model's own"
            " weights; merge it with peft, or convert it as peft's documentation tells"
        )
    settled = (*READ, *IGNORED, "bias", "init_lora_weights")
    for name, value in config.items():
        if name not in settled and value not in (None, False, {}, []):
            wrong.append(f"{name}={value!r}")
    return wrong


def target_refusals(targets: Any) -> list[str]:
    """What is wrong with `target_modules`."""
    if targets == "all-linear":
        return []
    if not isinstance(targets, list) or not targets:
        return [f"target_modules={targets!r}: a list of layer names, or 'all-linear'"]
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        return [f"target_modules: {unknown} are none of {', '.join(TARGETS)}"]
    if len(set(targets)) < len(targets):
        return [f"target_modules={targets!r}: a layer is named twice"]
    return []


def token_refusals(indices: Any) -> list[str]:
    """What is wrong with `trainable_token_indices`."""
    lists = list(indices.values()) if isinstance(indices, dict) else [indices or []]
    are_ids = all(isinstance(ids, list) and all(type(i) is int for i in ids) for ids in lists)
    if not are_ids:
        return [f"trainable_token_indices={indices!r}: token ids, or names with token ids"]
    if not isinstance(indices, dict) or not indices:
        return []
    unknown = sorted(set(indices) - {EMBEDDING_NAME, HEAD_NAME})
    if unknown or EMBEDDING_NAME not in indices:
        return [
            f"trainable_token_indices of {sorted(indices)}: rows of {EMBEDDING_NAME}, and with"
            f" them of {HEAD_NAME}, are"
        ]
    if any(ids != lists[0] for ids in lists):
        return [f"trainable_token_indices={indices!r}: other tokens in the head"]
    return []


def read_token_ids(indices: Any) -> tuple[tuple[int, ...], bool]:
    """(tokens with rows of their own, whether the head is listed with them)."""
    if isinstance(indices, dict):
        return tuple(indices.get(EMBEDDING_NAME, ())), HEAD_NAME in indices
    return tuple(indices or ()), False


def to_peft_config(
    lora: LoraConfig, token_ids: list[int], *, in_head: bool, base: str | None
) -> dict[str, Any]:
    """The config from which peft builds the same adapter.

    Args:
      in_head: whether the head has rows of its own; a tied one follows the embedding.
      base: name or folder of the base model.
    """
    indices: Any = token_ids or None
    if token_ids and in_head:
        indices = {EMBEDDING_NAME: token_ids, HEAD_NAME: token_ids}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "use_rslora": lora.use_rslora,
        "lora_dropout": 0.0,
        "target_modules": sorted(lora.targets),
        "trainable_token_indices": indices,
        "bias": "none",
        "modules_to_save": None,
        "fan_in_fan_out": False,
        "use_dora": False,
    }
