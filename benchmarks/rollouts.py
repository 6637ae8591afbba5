"""Group rollouts of the sampler: useful tokens per second, and where the rest goes.

Text in, text out: tokenise, prefill, decode and detokenise are timed. Every row writes exactly its
number of tokens (nothing stops it earlier), drawn at temperature 1 without truncation.

    python benchmarks/rollouts.py --model FOLDER
    python benchmarks/rollouts.py --model FOLDER --lengths mixture.json --queue 4

FOLDER is a Hugging Face folder with a word-level tokenizer whose words are t3, t4, ...; --lengths
names a JSON file with one number of tokens per row, `{"lengths": [...]}`; with --queue Q there are
Q times as many prompts as the rows at work hold, and the lengths are used Q times over.

Prints one JSON line: seconds of each run, tokens (rows times the longest row), useful tokens, steps
of the decode loop, the share of row-steps on which a row wrote nothing, cache bytes per device,
compiled programs and peak memory.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import time
from typing import Any

import jax
import numpy as np

from l2s_jax.sampling import load, loop
from l2s_jax.sampling.controllers.routing import RoutingConfig
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.policy import Policy
from l2s_jax.sampling.requests import Knobs, Request, SamplingConfig
from l2s_jax.training.policy import load_policy

FIRST_WORD = 3  # ids below are pad, eos and unk


def main() -> None:
    args = arguments()
    rows = args.prompts * args.group
    lengths = [args.new_tokens] * rows
    if args.lengths:
        with open(args.lengths, encoding="utf-8") as file:
            lengths = json.load(file)["lengths"][:rows]
    lengths = lengths * args.queue
    began = time.perf_counter()
    policy = never_stopping(load_policy(args.model), args.dtype)
    cfg = SamplingConfig(
        num_samples=args.group,
        max_new_tokens=max(lengths),
        max_rows=rows,
        routing=RoutingConfig(modes=("free",)),
    )
    engine = Engine(policy, cfg)
    load_seconds = time.perf_counter() - began
    rng = np.random.default_rng(0)
    shape = (args.prompts * args.queue, args.prompt_len)
    prompts = rng.integers(FIRST_WORD, policy.model.vocab_size, shape, dtype=np.int64)
    texts = [" ".join(f"t{i}" for i in ids) for ids in prompts]

    requests = ask(policy, texts, lengths, args.group)

    def generate(seed: int) -> float:
        started = time.perf_counter()
        requests = ask(policy, texts, lengths, args.group)
        rollouts = engine.sample(requests, jax.random.key(seed))
        seconds = time.perf_counter() - started
        assert [r.num_tokens for r in rollouts] == lengths, "a row wrote another number of tokens"
        assert all(r.text is not None for r in rollouts)
        return seconds

    first = generate(0)
    busy = others_busy()
    seconds = [generate(run + 1) for run in range(args.runs)]
    print(
        json.dumps(
            {
                "task": "generate",
                "engine": "l2s_jax",
                "seconds": [round(s, 4) for s in seconds],
                "median_s": round(statistics.median(seconds), 4),
                "tokens": len(lengths) * max(lengths),
                "useful_tokens": sum(lengths),
                "useful_tokens_per_s": round(sum(lengths) / statistics.median(seconds), 1),
                "first_call_s": round(first, 3),
                "load_s": round(load_seconds, 3),
                "steps": engine.served.steps,
                "wasted_step_fraction": round(engine.served.wasted_fraction, 4),
                "cache_bytes": engine.sizes(requests).cache_bytes(policy.model),
                "programs": sum(
                    program._cache_size() for program in (load.load, loop.run, loop.shrink)
                ),
                "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "other_cores": round((others_busy() - busy) / sum(seconds), 3),
                "settings": {"device": jax.devices()[0].device_kind, "dtype": args.dtype},
            }
        )
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=8, help="at work side by side")
    parser.add_argument("--group", type=int, default=8, help="samples of a prompt")
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--lengths", help="one number of tokens per row, instead of --new-tokens")
    parser.add_argument("--queue", type=int, default=1, help="times the rows at work")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def never_stopping(policy: Policy, dtype: Any) -> Policy:
    """The policy computing in `dtype`, with a tokenizer that stops nobody."""
    assert policy.tokenizer is not None
    tokenizer = dataclasses.replace(policy.tokenizer, stop_ids=())
    model = dataclasses.replace(policy.model, dtype=dtype)
    return dataclasses.replace(policy, model=model, tokenizer=tokenizer, triggers=None)


def ask(policy: Policy, texts: list[str], lengths: list[int], group: int) -> list[Request]:
    """The texts as requests, whose samples write `lengths`."""
    assert policy.tokenizer is not None
    requests = []
    for n, text in enumerate(texts):
        knobs = tuple(Knobs(max_new_tokens=m) for m in lengths[n * group : (n + 1) * group])
        ids = tuple(policy.tokenizer.encode(text))
        requests.append(Request(id=str(n), prompt_ids=ids, knobs=knobs))
    return requests


def others_busy() -> float:
    """CPU seconds that other processes used since boot."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    times = os.times()
    return busy - times.user - times.system


if __name__ == "__main__":
    main()
