"""What a Hugging Face folder says when a fresh process reads it.

Lives here: `facts`, taken once of the policy in memory and once of the folder, and the program
that prints them. Not here: writing the folder (`export/hf.py`), which runs this and compares.

    python -m l2s_jax.export.reload FOLDER DTYPE
"""

import dataclasses
import hashlib
import json
import pathlib
import sys
from typing import Any

from l2s_jax.config import to_json
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params
from l2s_jax.model.hf.files import DiskDTypeName
from l2s_jax.model.hf.read import load_hf
from l2s_jax.model.hf.write import hf_tensors
from l2s_jax.tokens.tokenizer import Tokenizer, load_tokenizer
from l2s_jax.tokens.triggers import Triggers, load_triggers

SENTENCE = "Q: 12 + 7 = ?\n\n<EASY><LONG> é 好 <SHORT><ANSWER>\\boxed{19}"
"""Whose ids a tokenizer must give before and after: triggers, white space, more than ASCII."""


def facts(
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer | None,
    triggers: Triggers | None,
    dtype: DiskDTypeName,
) -> dict[str, Any]:
    """Name → what must be the same on both sides; tensors by the SHA-256 of their bytes."""
    found: dict[str, Any] = {"config": to_json(dataclasses.replace(model, dtype="float32"))}
    for name, array in hf_tensors(model, params, dtype):
        found[f"tensor {name}"] = hashlib.sha256(array.tobytes()).hexdigest()
    if tokenizer is not None:
        found["stop ids"] = sorted(tokenizer.stop_ids)
        found["ids of a sentence"] = tokenizer.encode(SENTENCE)
        if tokenizer.hf.chat_template:
            found["ids of a question"] = tokenizer.ask(SENTENCE)
    if triggers is not None:
        found["triggers"] = dataclasses.asdict(triggers)
    return json.loads(json.dumps(found))  # tuples become lists, as they do on the way back


def main(folder: str, dtype: DiskDTypeName) -> None:
    """Prints the facts of a folder as one JSON object."""
    # bfloat16 is read as it is, for half the memory; float32 holds the others exactly.
    kept = "bfloat16" if dtype == "bfloat16" else "float32"
    model, params = load_hf(folder, dtype=kept)
    has_tokenizer = (pathlib.Path(folder) / "tokenizer.json").exists()
    tokenizer = load_tokenizer(folder) if has_tokenizer else None
    print(json.dumps(facts(model, params, tokenizer, load_triggers(folder, tokenizer), dtype)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])  # pyright: ignore[reportArgumentType]
