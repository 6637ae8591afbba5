"""What the real-input tests start from: a model folder, a few real problems, verbs as processes.

torch is imported when a model is made, never by collecting the tests.
"""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

from l2s_jax.data.store import read_items
from tests.tiny_models import make_model

REPOSITORY = pathlib.Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
STOP_ID = 151645  # <|im_end|>
PROMPT_FORM = {"add_generation_prompt": True, "return_dict": False}


def l2s(*argv: object) -> str:
    """Standard error of `l2s` with these arguments, in a process of its own that must succeed."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "COLUMNS": "80"}
    command = [sys.executable, "-m", "l2s_jax", *map(str, argv)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == ""
    return done.stderr


def run(verb: str, config: str, workdir: pathlib.Path, *assignments: str) -> str:
    """A recipe of `configs/`, with overrides."""
    argv = (verb, "--config", CONFIGS / config, "--workdir", workdir)
    return l2s(*argv, "--set", *assignments)


def make_qwen_folder(path: pathlib.Path, tokenizer: pathlib.Path) -> None:
    """A Qwen2 folder as one downloads it, but tiny and with random weights.

    Two weights are no mere noise, so that a few steps of training lead somewhere. Attention is
    sharp: what is said next depends on the question. And the stop's row is long: some answers end.
    """
    import torch

    model = make_model(
        seed=0,
        vocab_size=151_936,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        eos_token_id=STOP_ID,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "self_attn" in name and name.endswith("weight"):
                weight.mul_(3.0)
        model.get_input_embeddings().weight[STOP_ID].mul_(3.0)
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copyfile(tokenizer / name, path / name)


def select_traces(traces: pathlib.Path, curated: pathlib.Path, number: int) -> str:
    """The lines of the EASY problems with the shortest long traces; every second loses its short
    ones, so that curation makes regular items of these."""
    rows = [json.loads(line) for line in traces.read_text(encoding="utf-8").splitlines()]
    easy = sorted((i for i in read_items(curated) if i.is_easy), key=lambda item: len(item.long))
    chosen = [item.id for item in easy[:number]]
    regular = set(chosen[1::2])
    kept = [r for r in rows if r["qid"] in chosen]
    kept = [r for r in kept if r["kind"] == "long" or r["qid"] not in regular]
    return "".join(json.dumps(row) + "\n" for row in kept)


@functools.cache
def load_with_transformers(folder: pathlib.Path) -> tuple[Any, Any]:
    """Model and tokenizer; no remote code, no code of ours."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def transformers_answers(
    folder: pathlib.Path, questions: list[str], opening: list[str], max_tokens: int, **options
) -> list[list[int]]:
    """Greedy answers of transformers alone, stop included; it is given the `opening` tokens."""
    import torch

    model, tokenizer = load_with_transformers(folder)
    forced = tokenizer.convert_tokens_to_ids(opening)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": question}], **PROMPT_FORM)
        + forced
        for question in questions
    ]
    width = max(map(len, prompts))
    ids = torch.tensor([[STOP_ID] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    budget = max_tokens - len(forced)
    written = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=budget, **options
    )
    return [forced + up_to_stop(row) for row in written[:, width:].tolist()]


def up_to_stop(ids: list[int]) -> list[int]:
    return ids[: ids.index(STOP_ID) + 1] if STOP_ID in ids else ids
