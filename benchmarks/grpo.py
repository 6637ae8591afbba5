"""A step of stage 2, rollout to update: seconds of each, and useful tokens per second.

Real parts: the sampler (`sampling/engine.py`) with the current weights, prompts as text, reward on
text, the advantage and loss of preset `v2`, packed rows (`training/rollouts.py`), the compiled step
with AdamW in float32, gradients clipped at 1, nothing computed twice. Every row writes exactly its
number of tokens, drawn at temperature 1 without truncation. The reward is the share of even ids.

    python benchmarks/grpo.py --model FOLDER --new-tokens 128
    python benchmarks/grpo.py --model FOLDER --lengths mixture.json

FOLDER is a Hugging Face folder with a word-level tokenizer whose words are t3, t4, ...; prompts are
random ordinary ids (numpy's default generator, seed 0). --lengths names a JSON file with one number
of tokens per row, `{"lengths": [...]}`. --micro-rows is as many rollouts as share a gradient slice.

Prints one JSON line: seconds of each step, of its rollout (texts in, texts out) and of its update
(all else), tokens (rows times the longest row), useful tokens, packed rows and how full they are,
compiled programs, peak memory.
"""

import argparse
import json
import math
import resource
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rollouts import FIRST_WORD, ask, never_stopping, others_busy

from l2s_jax.objectives import presets
from l2s_jax.objectives.outcomes import Outcomes
from l2s_jax.sampling import load, loop
from l2s_jax.sampling.controllers.routing import RoutingConfig
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import SamplingConfig
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.grpo import program
from l2s_jax.training.optim import OptimConfig
from l2s_jax.training.policy import load_policy
from l2s_jax.training.rollouts import build_batch, share_out
from l2s_jax.training.state import begin_state
from l2s_jax.training.step import place_batch
from l2s_jax.types import Rollout, RolloutBatch

ROUND = 64  # packed rows are a multiple of it


def main() -> None:
    args = arguments()
    rows = args.prompts * args.group
    assert rows % args.micro_rows == 0, "--micro-rows must divide prompts times group"
    num_parts = rows // args.micro_rows
    lengths = [args.new_tokens] * rows
    if args.lengths:
        with open(args.lengths, encoding="utf-8") as file:
            lengths = json.load(file)["lengths"][:rows]
    num_steps = args.warmup + args.runs
    # 1. Policy, sampler, program.
    policy = never_stopping(load_policy(args.model), "float32")
    sampling = SamplingConfig(
        num_samples=args.group,
        max_new_tokens=max(lengths),
        max_rows=rows,
        routing=RoutingConfig(modes=("free",)),
    )
    engine = Engine(policy, sampling)
    preset = presets.v2()
    optimizer, places, step_fn = program(
        policy.model,
        preset,
        sampling.temperature,
        OptimConfig(peak_lr=1e-6, final_fraction=1.0),
        num_steps,
        make_mesh(MeshConfig()),
        None,
        0,
        num_parts,
    )
    state = begin_state(policy.params, optimizer, places)
    row_length = args.row_length or row_of_a_part(args, lengths, num_parts)
    texts = prompt_texts(args, policy.model.vocab_size, num_steps)

    def rollout(step: int) -> list[Rollout]:
        requests = ask(policy, texts[step], lengths, args.group)
        # A copy, for the update gives its own away.
        params = jax.tree.map(jnp.copy, state.params)
        rollouts = engine.sample(requests, jax.random.key(step), params=params)
        assert [r.num_tokens for r in rollouts] == lengths, "a row wrote another number of tokens"
        return rollouts

    def gather(rollouts: list[Rollout]) -> RolloutBatch:
        rewards = jnp.asarray([even_share(r.text) for r in rollouts])
        outcomes = outcomes_of(rollouts, sampling.max_new_tokens)
        advantages = preset.advantage(rewards, outcomes, group_size=args.group)
        return build_batch(
            rollouts,
            np.asarray(advantages),
            row_length=row_length,
            row_quantum=1,
            max_tokens=sampling.max_new_tokens,
            num_microbatches=num_parts,
        )

    # 2. The steps.
    seconds, rollout_seconds, shapes, fill, gaps = [], [], set(), 0.0, []
    busy = others_busy()
    for step in range(num_steps):
        if step == args.warmup:
            busy = others_busy()
        started = time.perf_counter()
        rollouts = rollout(step)
        rollout_seconds.append(time.perf_counter() - started)
        batch = gather(rollouts)
        state, metrics = step_fn(state, place_batch(batch, places))
        numbers = jax.device_get(metrics)
        jax.block_until_ready(state.params)
        seconds.append(time.perf_counter() - started)
        shapes.add(batch.tokens.shape)
        fill = float((batch.segment_ids > 0).mean())
        gaps.append(float(numbers["max_log_ratio"]))  # the sampler's weights are the trained ones
        assert numbers["skipped"] == 0 and gaps[-1] < 1e-3
    # 3. What to tell.
    timed, sampled = seconds[args.warmup :], rollout_seconds[args.warmup :]
    updates = [whole - part for whole, part in zip(timed, sampled, strict=True)]
    sampler: list[Any] = [load.load, loop.run, loop.shrink]
    print(
        json.dumps(
            {
                "task": "grpo",
                "engine": "l2s_jax",
                "seconds": [round(s, 4) for s in timed],
                "median_s": round(statistics.median(timed), 4),
                "tokens": rows * max(lengths),
                "useful_tokens": sum(lengths),
                "useful_tokens_per_s": round(sum(lengths) / statistics.median(timed), 1),
                "rollout_s": round(statistics.median(sampled), 4),
                "update_s": round(statistics.median(updates), 4),
                "rollout_seconds": [round(s, 4) for s in sampled],
                "first_call_s": round(seconds[0], 3),
                "wasted_step_fraction": round(engine.served.wasted_fraction, 4),
                "packed": list(batch.tokens.shape),
                "fill": round(fill, 4),
                "max_log_ratio": max(gaps),
                "programs": len(shapes) + sum(p._cache_size() for p in sampler),
                "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "other_cores": round((others_busy() - busy) / sum(timed), 3),
                "settings": {"device": jax.devices()[0].device_kind, "dtype": "float32"},
            }
        )
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8, help="samples of a prompt")
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--lengths", help="one number of tokens per row, instead of --new-tokens")
    parser.add_argument("--micro-rows", type=int, default=8, help="rollouts of a gradient slice")
    parser.add_argument("--row-length", type=int, help="of a packed row; or all of a slice in one")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def prompt_texts(args: argparse.Namespace, vocab_size: int, num_steps: int) -> list[list[str]]:
    """The prompts of each step."""
    rng = np.random.default_rng(0)
    shape = (args.prompts * num_steps, args.prompt_len)
    ids = rng.integers(FIRST_WORD, vocab_size, shape, dtype=np.int64)
    texts = [" ".join(f"t{i}" for i in row) for row in ids]
    return [texts[n * args.prompts : (n + 1) * args.prompts] for n in range(num_steps)]


def row_of_a_part(args: argparse.Namespace, lengths: list[int], num_parts: int) -> int:
    """Tokens of a packed row that holds all rollouts of a gradient slice, prompts once."""
    together = math.gcd(len(lengths) // num_parts, args.group)
    read = [length + args.prompt_len // together for length in lengths]
    most = 0
    for part in share_out(read, num_parts, together):
        prompts = {i // args.group for i in part}
        tokens = sum(lengths[i] for i in part) + len(prompts) * (args.prompt_len - 1)
        most = max(most, tokens)
    return -(-most // ROUND) * ROUND


def even_share(text: str | None) -> float:
    """The share of even ids among a completion's words."""
    assert text is not None
    ids = [int(word[1:]) for word in text.split() if word[0] == "t" and word[1:].isdigit()]
    return sum(i % 2 == 0 for i in ids) / max(1, len(ids))


def outcomes_of(rollouts: list[Rollout], limit: int) -> Outcomes:
    """How the rollouts ended; the reward here does not read whether they are right."""
    none = np.zeros(len(rollouts), np.int32)
    return Outcomes(
        correct=none.astype(bool),
        num_tokens=np.asarray([r.num_tokens for r in rollouts], np.int32),
        stopped=np.asarray([r.finish_reason == "stop" for r in rollouts]),
        short=none.astype(bool),
        level=none,
        max_tokens=none,
        limit=np.int32(limit),
    )


if __name__ == "__main__":
    main()
