"""Records, metrics and a summary of an invented run: what a small student might have done.

A question's level sets how often each path is right and how long it is; the router sends it short
with a probability that falls with the level. Nothing here is a result.
"""

import json
import pathlib

import numpy as np

from l2s_jax.evaluation.records import Answer
from l2s_jax.evaluation.summary import build_summary

LEVELS = range(3, 9)
STAGE_SKILL = {"sft": 0.93, "grpo_v2": 0.96, "grpo_plus": 0.95, "verbatim": 0.45}


def simulate_answers(
    stage: str = "sft", *, seeds=(0, 1, 2), num_per_level: int = 20, skill: float = 0.93
) -> list[Answer]:
    """Answers of one stage in all four modes."""
    answers = []
    for seed in seeds:
        rng = np.random.default_rng((seed, sum(stage.encode())))
        for level in LEVELS:
            for index in range(num_per_level):
                answers += _question(rng, stage, seed, level, f"test-{level}-{index}", skill)
    return answers


def _question(rng, stage, seed, level, name, skill) -> list[Answer]:
    p_easy = float(np.clip(1.25 - level / 7 + rng.normal(0, 0.12), 0.001, 0.999))
    right = {
        "long": rng.random() < 0.99,
        "short": rng.random() < skill - 0.05 * (level - 3) - 0.3 * (level == 8),
    }
    length = {"long": int(6 + 5 * level + rng.integers(0, 9)), "short": level + 4}
    made = []
    for mode in ("auto", "force-long", "force-short", "free"):
        chosen = "short" if p_easy >= 0.5 else "long"
        route = {"force-long": "long", "force-short": "short"}.get(mode, chosen)
        is_cut = mode == "free" and rng.random() < 0.04
        gold = int(rng.integers(0, 10))
        said = gold if right[route] else (gold + 3) % 10
        made.append(
            Answer(
                stage=stage,
                seed=seed,
                mode=mode,
                id=name,
                level=level,
                reference=str(gold),
                prediction=None if is_cut else str(said),
                correct=bool(right[route]) and not is_cut,
                num_tokens=64 if is_cut else length[route],
                route=route,
                p_easy=p_easy if mode in ("auto", "free") else None,
                finish_reason="length" if is_cut else "stop",
                text=_text(rng, route, level, said),
            )
        )
    return made


def _text(rng, route, level, said) -> str:
    steps = " ; ".join(str(rng.integers(0, 10)) for _ in range(level))
    check = f" ; check {steps}" if route == "long" else ""
    opening = "<LONG>" if route == "long" else "<EASY><SHORT>"
    return f"{opening} {steps}{check} <ANSWER> \\boxed{{{said}}}"


def simulate_metrics(stage: str, *, seeds=(0, 1, 2), num_steps: int = 60) -> list[dict]:
    """Rows of training metrics, a falling loss or a rising reward."""
    rows = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        for step in range(num_steps):
            fade = np.exp(-step / 15)
            if stage.startswith("grpo"):
                reward = 0.95 - 0.2 * fade + rng.normal(0, 0.02)
                tokens, share = 15 + 7 * fade + rng.normal(0, 0.5), 0.7 - 0.15 * fade
                values = {"reward": reward, "tokens": tokens, "easy_share": share, "loss": 0.0}
            else:
                values = {"loss": 0.05 + 2 * fade + abs(rng.normal(0, 0.03))}
            rows.append({"step": step, "seed": seed} | values)
    return rows


def write_run(workdir: pathlib.Path, *, num_per_level: int = 20) -> dict:
    """Fills `workdir` as an evaluated run does; returns the summary."""
    answers = []
    for folder in ("records", "metrics"):
        (workdir / folder).mkdir(parents=True, exist_ok=True)
    for stage, skill in STAGE_SKILL.items():
        seeds = (0,) if stage == "verbatim" else (0, 1, 2)
        mine = simulate_answers(stage, seeds=seeds, num_per_level=num_per_level, skill=skill)
        write_jsonl(workdir / "records" / f"{stage}.jsonl", mine)
        write_jsonl(workdir / "metrics" / f"{stage}.jsonl", simulate_metrics(stage, seeds=seeds))
        answers += mine
    seconds = {"data": 4.2, "sft": 151.0, "grpo_v2": 61.3, "evaluation": {"auto": 9.0}}
    summary = build_summary(answers, seconds, [0, 1, 2]) | {
        "bars": [
            {
                "name": "force-long accuracy",
                "value": 0.984,
                "bar": "≥ 0.95",
                "holds": True,
                "note": "stage 1",
            },
            {
                "name": "plus saves tokens",
                "value": -0.08,
                "bar": "≤ −0.15",
                "holds": False,
                "note": "the short path is as good, but the route says long",
            },
        ],
        "notes": ["An invented run, for tests."],
    }
    (workdir / "summary.json").write_text(json.dumps(summary))
    return summary


def write_jsonl(path: pathlib.Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
