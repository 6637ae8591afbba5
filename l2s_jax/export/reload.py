"""What a Hugging Face folder says when a fresh process reads it.

Lives here: the facts on which an export and its folder must agree, and the program that prints
the folder's. Not here: writing the folder (`export/hf.py`), which runs this and compares.

The weights are read by safetensors itself, tensor by tensor; the model is never whole in memory.

    python -m l2s_jax.export.reload FOLDER
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
from safetensors import safe_open

import l2s_jax
from l2s_jax.config import to_json
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.hf.files import find_tensors, read_hf_config, read_json
from l2s_jax.model.hf.write import fingerprint
from l2s_jax.tokens.tokenizer import Tokenizer, load_tokenizer
from l2s_jax.tokens.triggers import Triggers, load_triggers

SENTENCE = "Q: 12 + 7 = ?\n\n<EASY><LONG> é 好 <SHORT><ANSWER>\\boxed{19}"
"""Whose ids a tokenizer must give before and after: triggers, white space, more than ASCII."""


def facts(
    prints: dict[str, str],
    model: ModelConfig,
    generation: dict[str, Any],
    tokenizer: Tokenizer | None,
    triggers: Triggers | None,
) -> dict[str, Any]:
    """Name → what must be the same on both sides.

    Args:
      prints: tensor → its fingerprint.
      generation: the content of generation_config.json.
    """
    shape = dataclasses.replace(model, dtype="float32", remat="none")  # how we compute is not told
    found: dict[str, Any] = {"config": to_json(shape), "generation": generation}
    found |= {f"tensor {name}": print for name, print in prints.items()}
    if tokenizer is not None:
        found["stop ids"] = sorted(tokenizer.stop_ids)
        found["size of the vocabulary"] = len(tokenizer.hf)
        found["ids of a sentence"] = tokenizer.encode(SENTENCE)
        if tokenizer.hf.chat_template:
            found["ids of a question"] = tokenizer.ask(SENTENCE)
    if triggers is not None:
        found["triggers"] = dataclasses.asdict(triggers)
    return json.loads(json.dumps(found))  # tuples become lists, as they do on the way back


def folder_facts(folder: pathlib.Path) -> dict[str, Any]:
    """The facts of a folder."""
    has_tokenizer = (folder / "tokenizer.json").exists()
    tokenizer = load_tokenizer(folder) if has_tokenizer else None
    return facts(
        stored_prints(folder),
        read_hf_config(folder),
        read_json(folder / "generation_config.json"),
        tokenizer,
        load_triggers(folder, tokenizer),
    )


def stored_prints(folder: pathlib.Path) -> dict[str, str]:
    """The fingerprint of every tensor in a folder's files."""
    prints = {}
    with contextlib.ExitStack() as stack:
        found = find_tensors(folder)
        handles: dict[pathlib.Path, Any] = {
            file: stack.enter_context(safe_open(file, framework="numpy"))
            for file in {here.file for here in found.values()}
        }
        for name, here in found.items():
            prints[name] = fingerprint(np.ascontiguousarray(handles[here.file].get_tensor(name)))
    return prints


def check_reloaded(folder: pathlib.Path, want: dict[str, Any]) -> None:
    """Raises where a fresh process reads something else from `folder` than what was exported."""
    package = str(pathlib.Path(l2s_jax.__file__).parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    # On the CPU: the accelerator belongs to the process that exports.
    env = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "l2s_jax.export.reload", str(folder.resolve())]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a fresh process cannot read the export:\n{done.stderr[-4000:]}")
    got = json.loads(done.stdout.splitlines()[-1])
    differ = [name for name in want | got if want.get(name) != got.get(name)]
    if differ:
        listed = "\n  ".join(f"{name}: {want.get(name)} → {got.get(name)}" for name in differ)
        raise RuntimeError(f"the export differs when a fresh process reads it:\n  {listed}")


if __name__ == "__main__":
    print(json.dumps(folder_facts(pathlib.Path(sys.argv[1]))))
