"""All of an exported folder but its weights and its card.

Lives here: `Parts`, what an export is made of; `config.json`, `generation_config.json`, the
tokenizer and the triggers. Not here: the weights (`model/hf/write.py`), the card
(`export/card.py`), the order of things (`export/hf.py`).

A model that came from a Hugging Face folder goes back with the configs that it came with; only
what changed since, and what makes routing work, is written into them.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.hf.config import to_hf_config
from l2s_jax.model.hf.files import DiskDTypeName
from l2s_jax.model.hf.origin import Origin
from l2s_jax.model.hf.write import SHARD_BYTES, Fetch
from l2s_jax.tokens.tokenizer import Tokenizer
from l2s_jax.tokens.triggers import Triggers

FORCED = 1e4  # added to one logit: no other can win, and float32 still holds it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """A model that is to be given away; its weights come leaf by leaf."""

    model: ModelConfig
    fetch: Fetch
    tokenizer: Tokenizer | None
    triggers: Triggers | None
    origin: Origin | None
    dtype: DiskDTypeName  # of the weights in the folder
    shard_bytes: int = SHARD_BYTES

    @property
    def stop_ids(self) -> tuple[int, ...]:
        if self.tokenizer is not None:
            return self.tokenizer.stop_ids
        return () if self.origin is None else self.origin.stop_ids

    @property
    def pad_id(self) -> int | None:
        return self.tokenizer.pad_id if self.tokenizer is not None else None

    def config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return to_hf_config(
            self.model,
            stop_id=self.stop_ids[0] if self.stop_ids else None,
            pad_id=self.pad_id,
            origin=None if self.origin is None else self.origin.config,
            dtype=self.dtype,
        )

    def generation(self) -> dict[str, Any]:
        """The content of `generation_config.json`: the origin's, with what was added since."""
        came = {} if self.origin is None else self.origin.generation
        new: dict[str, Any] = {}
        if not came or not set(self.stop_ids) <= named_stops(came):
            new["eos_token_id"] = list(self.stop_ids) or None
        if not came:
            new["pad_token_id"] = self.pad_id
            new["transformers_version"] = importlib.metadata.version("transformers")
        if self.triggers is not None:
            ours = sequence_bias(self.triggers)
            others = [entry for entry in came.get("sequence_bias") or () if entry not in ours]
            new["sequence_bias"] = others + ours
            new["l2s"] = dataclasses.asdict(self.triggers)
        # transformers leaves fields out that it does not know where it reads this one.
        left_out = ("_from_model_config",) if new else ()
        return {name: value for name, value in came.items() if name not in left_out} | new


def named_stops(generation: Mapping[str, Any]) -> set[int]:
    """The ids that a `generation_config.json` names as ends."""
    named = generation.get("eos_token_id")
    return set(named) if isinstance(named, list) else set() if named is None else {named}


def sequence_bias(triggers: Triggers) -> list[list[Any]]:
    """Entries that make transformers write the short trigger after `<EASY>`, piece by piece."""
    easy, short = list(triggers.easy), list(triggers.short)
    return [[easy + short[: end + 1], FORCED] for end in range(len(short))]


def write_small_files(folder: pathlib.Path, parts: Parts, card: str) -> None:
    """Every file of the folder that is not weights."""
    if parts.tokenizer is not None:
        parts.tokenizer.save(folder)
    if parts.triggers is not None:
        parts.triggers.save(folder)
    # After the tokenizer, which leaves a generation_config.json of its own.
    _write_json(folder / "config.json", parts.config())
    _write_json(folder / "generation_config.json", parts.generation())
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_json(path: pathlib.Path, obj: dict[str, Any]) -> None:
    path.write_text(json.dumps(obj, indent=2) + "\n", encoding="utf-8")
