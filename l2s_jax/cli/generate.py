"""`l2s generate`: a file of prompts to a file of routed answers.

Lives here: prompts to ids, answers to JSON, the progress bar. Not here: sampling
(`sampling/engine.py`), reading prompts (`data/sources.py`) and models (`training/policy.py`).
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key
from jinja2 import TemplateError
from tqdm import tqdm

from l2s_jax.cli.output import json_lines
from l2s_jax.data.sources import PromptSpec, read_prompts
from l2s_jax.model.config import DTypeName
from l2s_jax.sampling.controllers.routing import Mode, RoutingConfig
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import Request, SamplingConfig
from l2s_jax.sharding import MeshConfig
from l2s_jax.tokens.tokenizer import Tokenizer
from l2s_jax.tokens.triggers import refuse_triggers
from l2s_jax.training.policy import load_to_sample
from l2s_jax.types import Rollout

MAX_ROWS = 64  # answers that are written side by side; bounds the memory of their caches
QUEUE = 4  # times as many are asked for at once, so that a row that ends is followed by another


def generate(
    *,
    model: str,
    prompts: pathlib.Path,
    out: pathlib.Path | None,
    mode: Mode,
    samples: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    dtype: DTypeName | None,
    tensor: int,
) -> None:
    """Writes `samples` answers of each prompt to `out`, in the order of the prompts.

    Args:
      dtype: of weights and computation; None: computed as the model was trained.
      tensor: devices that the weights are cut over.
    """
    if not 1 <= samples <= MAX_ROWS:
        raise ValueError(f"--samples {samples}: give 1 to {MAX_ROWS}.")
    specs = read_prompts(prompts)
    cfg = SamplingConfig(
        num_samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        max_rows=min(MAX_ROWS, samples * len(specs)),
        routing=RoutingConfig(modes=(mode,)),
    )
    with json_lines(out) as write:
        policy = load_to_sample(model, mesh=MeshConfig(tensor=tensor), dtype=dtype)
        if policy.triggers is None and mode != "free":
            raise ValueError(
                f"--mode {mode}: {model} has no triggers to route by. Use --mode free, or a model"
                " that l2s sft has trained."
            )
        requests = [Request(id=s.id, prompt_ids=_ids(s, policy.tokenizer, model)) for s in specs]
        engine = Engine(policy, cfg)
        del policy
        engine.keep_placed()
        answers = dict(_answer(engine, requests, jax.random.key(seed)))
        for request in requests:
            for rollout in answers[request.id]:
                write(as_record(rollout))


def _ids(spec: PromptSpec, tokenizer: Tokenizer | None, model: str) -> tuple[int, ...]:
    if spec.token_ids is not None:
        return spec.token_ids
    if tokenizer is None:
        raise ValueError(
            f"prompt {spec.id!r}: {model} has no tokenizer to read text with. Give token_ids, or"
            " put the tokenizer's files into that folder."
        )
    if spec.prompt is not None:
        return tuple(tokenizer.encode(spec.prompt))
    messages = spec.messages or ({"role": "user", "content": spec.question or ""},)
    for message in messages:
        refuse_triggers(spec.id, {f"{message['role']} message": message["content"]})
    try:
        return tuple(tokenizer.prompt(messages))
    except TemplateError as error:
        raise ValueError(
            f"prompt {spec.id!r}: the chat template of {model} refuses its messages ({error})."
            " Change their roles or order, or give the rendered text as prompt."
        ) from error


def _answer(
    engine: Engine, requests: Sequence[Request], key: Key[Array, ""]
) -> Iterator[tuple[str, list[Rollout]]]:
    """(id, rollouts) of each request, the longest first: what does not fit is told at once."""
    by_length = sorted(requests, key=lambda request: -len(request.prompt_ids))
    size = QUEUE * engine.cfg.max_rows // engine.cfg.num_samples
    with tqdm(total=len(requests), unit="prompt") as bar:
        for start in range(0, len(by_length), size):
            batch = by_length[start : start + size]
            rollouts = engine.sample(batch, key)
            for n, request in enumerate(batch):
                num = engine.cfg.num_samples
                yield request.id, rollouts[n * num : (n + 1) * num]
            bar.update(len(batch))


def as_record(rollout: Rollout) -> dict[str, Any]:
    """The rollout as `l2s generate` writes it."""
    return {
        "id": rollout.id,
        "sample": rollout.sample,
        "text": rollout.text,
        "token_ids": rollout.token_ids.tolist(),
        "route": rollout.route,
        "p_easy": rollout.p_easy,
        "forced": np.flatnonzero(~rollout.free).tolist(),
        "logp": rollout.logp.tolist(),
        "finish_reason": rollout.finish_reason,
    }
