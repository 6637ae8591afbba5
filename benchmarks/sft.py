"""A supervised step: seconds, useful tokens per second, and the loss it began with.

Real parts: packed rows (`data/packing.py`), the compiled step (`training/step.py`) with AdamW in
float32, gradients clipped at 1, nothing computed twice. A step is timed from batch to batch, so
that it holds laying out rows, the update, and reading its metrics.

    python benchmarks/sft.py --model FOLDER --batch 8 --seq 512 --prompt-len 128
    python benchmarks/sft.py --model FOLDER --batch 8 --prompt-len 64 --lengths mixture.json

FOLDER is a Hugging Face folder. Items are random ordinary token ids (numpy's default generator,
seed 0, one array of [items, tokens]); the loss reads the completion, which is all after
--prompt-len. --lengths names a JSON file, `{"lengths": [...]}`: completions of these many tokens,
over and over, in rows that hold the longest one.

Prints one JSON line: seconds of each step, tokens (rows times their length), useful tokens (those
that the loss reads, mean of the timed steps), first loss, compiled programs, peak memory.
"""

import argparse
import itertools
import json
import resource
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from rollouts import FIRST_WORD, others_busy

from l2s_jax.data.pipeline import Batches, in_turn
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.tokens.layouts import Example, assemble
from l2s_jax.training.optim import OptimConfig
from l2s_jax.training.policy import load_policy
from l2s_jax.training.sft import numbers_of, program
from l2s_jax.training.state import begin_state
from l2s_jax.training.step import place_batch
from l2s_jax.types import Batch

ROUND = 64  # packed rows are a multiple of it


def main() -> None:
    args = arguments()
    began = time.perf_counter()
    policy = load_policy(args.model)
    num_steps = args.warmup + args.runs
    optimizer, places, step_fn = program(
        policy.model,
        OptimConfig(peak_lr=1e-5, final_fraction=1.0),
        num_steps,
        make_mesh(MeshConfig()),
        None,
        0,
        1,
        None,
    )
    state = begin_state(policy.params, optimizer, places)
    batches, num_examples = make_batches(args, policy.model.vocab_size)
    load_seconds = time.perf_counter() - began

    seconds, losses, shapes, useful = [], [], set(), []
    busy = others_busy()
    for step in range(num_steps):
        if step == args.warmup:
            busy = others_busy()
        started = time.perf_counter()
        batch = next(batches)
        state, metrics = step_fn(state, place_batch(batch, places))
        losses.append(numbers_of(metrics)["loss"])  # waits for the step
        jax.block_until_ready(state.params)
        seconds.append(time.perf_counter() - started)
        shapes.add(batch.tokens.shape)
        useful.append(float(batch.num_tokens))
    timed, counted = seconds[args.warmup :], useful[args.warmup :]
    (shape,) = shapes  # one program
    print(
        json.dumps(
            {
                "task": "sft",
                "engine": "l2s_jax",
                "seconds": [round(s, 4) for s in timed],
                "median_s": round(statistics.median(timed), 4),
                "tokens": shape[0] * shape[1],
                "useful_tokens": round(statistics.mean(counted), 1),
                "useful_tokens_per_s": round(
                    statistics.mean(counted) / statistics.median(timed), 1
                ),
                "first_loss": round(losses[0], 4),
                "first_call_s": round(seconds[0], 3),
                "load_s": round(load_seconds, 3),
                "examples": num_examples,
                "programs": len(shapes),
                "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "other_cores": round((others_busy() - busy) / sum(timed), 3),
                "settings": {"device": jax.devices()[0].device_kind, "dtype": policy.model.dtype},
            }
        )
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--seq", type=int, default=512, help="tokens of an item")
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--lengths", help="completions of these many tokens, instead of --seq")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args()


def make_batches(args: argparse.Namespace, vocab_size: int) -> tuple[Iterator[Batch], int]:
    """The batches of all steps, and how many items they were made of."""
    num_rows = args.batch * (args.warmup + args.runs)
    if args.lengths is None:
        ids = draw(num_rows, args.seq, vocab_size)
        examples = [example(n, row, args.prompt_len) for n, row in enumerate(ids)]
        length = -(-args.seq // ROUND) * ROUND
        return in_turn(examples, row_length=length, batch_rows=args.batch), len(examples)
    with open(args.lengths, encoding="utf-8") as file:
        completions = json.load(file)["lengths"]
    longest = args.prompt_len + max(completions)
    length = -(-longest // ROUND) * ROUND
    filled = sum(completions) + args.prompt_len * len(completions)
    completions = completions * -(-num_rows * length // filled)  # enough for every step
    ids = draw(len(completions), longest, vocab_size)
    examples = [
        example(n, row[: args.prompt_len + size], args.prompt_len)
        for n, (row, size) in enumerate(zip(ids, completions, strict=True))
    ]
    batches = Batches(examples, row_length=length, batch_rows=args.batch, seed=0)
    return (batches[step] for step in itertools.count()), len(examples)


def draw(rows: int, length: int, vocab_size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(FIRST_WORD, vocab_size, (rows, length), dtype=np.int64)


def example(number: int, ids: np.ndarray, prompt_len: int) -> Example:
    """Ids as a training sequence whose completion alone is trained."""
    prompt, completion = ids[:prompt_len].tolist(), ids[prompt_len:].tolist()
    path: list[Any] = [(completion, 1.0)]
    return assemble(str(number), prompt, [path])


if __name__ == "__main__":
    main()
