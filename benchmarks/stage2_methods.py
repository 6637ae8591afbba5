"""What five stage 2 methods do in the arithmetic world, against what their papers claim in kind.

Lives here: the hyper-parameters of the comparison, its runs, its answers. Not here: the table made
of them (`stage2_table.py`), the methods (`l2s_jax/objectives/presets.py`), the policies they begin
from (`stage2_starts.py`), the reading of the result (docs/stage2_methods.md).

    python benchmarks/stage2_methods.py --workdir W --seeds 101 102 103
    python benchmarks/stage2_methods.py --workdir W --seeds 41 --methods tldr --set num_steps=40

Every policy answers the same 600 unseen questions: greedily by its own route and with either route
forced, and once at temperature 1. All of it goes on where it was stopped: W/seed101/tldr is a run's
workdir, W/greedy and W/sampled hold one JSON-lines file of answers per policy and seed, W/entropy
one number each.

A process takes two CPU devices. To run two seeds side by side on two cores, give each one:
XLA_FLAGS=--xla_force_host_platform_device_count=1; numbers then differ in the last digits.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
from stage2_starts import LEVEL_WORDS, START_OF, make_start

from l2s_jax.cli import recipes
from l2s_jax.cli.devices import use_cpu_cores
from l2s_jax.config import claim_workdir, override
from l2s_jax.data.store import replace_file
from l2s_jax.evaluation.benchmark import answer_all, write_records
from l2s_jax.objectives import presets
from l2s_jax.objectives.advantages import LeaveOneOut
from l2s_jax.objectives.kl import K3
from l2s_jax.objectives.losses import ThinklessLoss
from l2s_jax.sampling.controllers.routing import Mode
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import ask
from l2s_jax.training import grpo
from l2s_jax.training.asking import AskLevels
from l2s_jax.training.grpo import GrpoRun
from l2s_jax.training.optim import OptimConfig
from l2s_jax.training.policy import load_policy
from l2s_jax.training.refill import Refill
from l2s_jax.types import Problem
from l2s_jax.verify.math import Verifier

GREEDY: tuple[Mode, ...] = ("auto", "force-long", "force-short")
PROMPTS_PER_STEP = 16  # of 8 rollouts each; the demo's `plus` has 32
QUESTIONS = recipes.Scale(test_per_level=100)


def make_runs(folder: pathlib.Path, seed: int) -> dict[str, GrpoRun]:
    """Every method's run; all see the same problems.

    `plus` is the demo's. `grpo` is no claim but DAPO's control: the same run without its parts.
    """
    base = recipes.stage2_v2("", seed)
    base = dataclasses.replace(base, prompts_per_step=PROMPTS_PER_STEP, refresh_every=5)

    def run(preset: presets.Objective, num_steps: int, lr: float, **more) -> GrpoRun:
        optim = OptimConfig(peak_lr=lr, b2=0.99)
        return dataclasses.replace(base, preset=preset, num_steps=num_steps, optim=optim, **more)

    # Divided by the group's deviation, "to the point" and "as briefly as you can" are one pressure.
    # The KL term is GRPO's own: without it what one word is paid for reaches the others.
    tldr = dataclasses.replace(presets.tldr(), advantage=LeaveOneOut(), kl=K3(weight=0.03))
    # As much of a token's weight as the paper's 0.001 is where rollouts have thousands of tokens.
    thinkless = dataclasses.replace(
        presets.thinkless(), policy_loss=ThinklessLoss(control_weight=0.1)
    )
    runs = {
        "adaptthink": run(presets.adaptthink(bonus=0.1), 60, 6e-4, rollouts="forced_pair"),
        "tldr": run(tldr, 60, 6e-4, asking=AskLevels(words=tuple(LEVEL_WORDS.values()))),
        "thinkless": run(thinkless, 45, 6e-4),
        "dapo": run(presets.dapo(), 40, 4e-4, refill=Refill()),
        "grpo": run(presets.v2(), 40, 4e-4),
        "plus": recipes.stage2_plus("", seed),
    }
    return {
        name: dataclasses.replace(cfg, model=str(folder / START_OF[name]))
        for name, cfg in runs.items()
    }


def main() -> None:
    args = arguments()
    use_cpu_cores()
    # The second seed has the first one's programs.
    jax.config.update("jax_compilation_cache_dir", str(args.workdir / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    for seed in args.seeds:
        folder = args.workdir / f"seed{seed}"
        runs = make_runs(folder, seed)
        for name in args.methods or runs:
            make_start(START_OF[name], folder, seed)
            answer_policy(args.workdir, folder / START_OF[name], seed)
            cfg = override(runs[name], args.set)
            claim_workdir(cfg, folder / name)
            grpo.run(cfg, folder / name)
            answer_policy(args.workdir, folder / name, seed)


def answer_policy(workdir: pathlib.Path, model: pathlib.Path, seed: int) -> None:
    """The answers of a policy: to the bare questions, or to each of TLDR's words."""
    if model.name not in ("reader", "tldr"):
        return answer(workdir, model, model.name, seed)
    for level in LEVEL_WORDS:
        answer(workdir, model, f"{model.name}-{level}", seed, level=level)


def answer(
    workdir: pathlib.Path, model: pathlib.Path, name: str, seed: int, *, level: str | None = None
) -> None:
    """All answers of a policy, unless they are there; asked for a level of TLDR, or for none."""
    done = workdir / "entropy" / f"{name}-{seed}.json"
    if done.exists():
        return
    begin = time.monotonic()
    cfg = recipes.evaluation(str(model), name, seed, QUESTIONS)
    problems = asked_for(cfg.problems.load(), level)
    policy = load_policy(str(model))
    greedy = dataclasses.replace(cfg.sampling, entropy=True)  # one program for all
    sampled = dataclasses.replace(greedy, temperature=1.0)
    with Verifier(1, 5.0) as verifier:
        engine = Engine(policy, greedy)
        answers = []
        for mode in GREEDY if level is None else ("auto",):
            answers += answer_all(engine, problems, verifier, mode=mode, stage=name, seed=seed)
        write_records(workdir / "greedy", f"{name}-{seed}", answers)
        engine = Engine(policy, sampled)
        drawn = answer_all(engine, problems, verifier, mode="auto", stage=name, seed=seed)
        write_records(workdir / "sampled", f"{name}-{seed}", drawn)
    done.parent.mkdir(exist_ok=True)
    entropy = entropy_of(engine, problems, seed)
    replace_file(done, json.dumps({"name": name, "seed": seed, "entropy": entropy}).encode())
    autos = [a for a in answers if a["mode"] == "auto"]
    right = [float(np.mean([a["correct"] for a in part])) for part in (autos, drawn)]
    length = [float(np.mean([a["num_tokens"] for a in part])) for part in (autos, drawn)]
    easy = float(np.mean([a["route"] == "short" for a in autos]))
    say(
        f"seed {seed} {name}: right {right[0]:.3f} {right[1]:.3f}, tokens {length[0]:.2f}"
        f" {length[1]:.2f} (greedy, drawn), EASY {easy:.3f}, entropy {entropy:.4f},"
        f" {time.monotonic() - begin:.0f} s"
    )


def asked_for(problems: Sequence[Problem], level: str | None) -> list[Problem]:
    """The problems with a level's word behind the question; as they are for None."""
    if level is None:
        return list(problems)
    words = LEVEL_WORDS[level]
    return [
        dataclasses.replace(problem, question=words.replace("{question}", problem.question))
        for problem in problems
    ]


def entropy_of(engine: Engine, problems: Sequence[Problem], seed: int) -> float:
    """Mean over the tokens that the policy chose, in nats, of its own draws at temperature 1."""
    assert engine.policy.tokenizer is not None
    rollouts = engine.sample(ask(problems, engine.policy.tokenizer), jax.random.key(seed))
    chosen = [r.entropy[r.free] for r in rollouts if r.entropy is not None]
    return float(np.mean(np.concatenate(chosen)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--methods", nargs="*", default=[], help="all where none is named")
    parser.add_argument("--set", action="append", default=[], help="of the methods' runs, as l2s")
    return parser.parse_args()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
