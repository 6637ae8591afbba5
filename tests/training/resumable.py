"""Runs that `test_resume.py` kills: a program of its own, `python -m tests.training.resumable`.

Every folder that it is given gets the runs of `HERE`, one after another; each goes on where it was
stopped. The others are those of `tests/faults`. Folders `base`, `taught` and `curated` beside them
hold what the runs start from.
"""

import dataclasses
import os
import pathlib
import sys

from l2s_jax.config import claim_workdir
from l2s_jax.data.arithmetic import ArithmeticProblems
from l2s_jax.model.lora import LoraConfig
from l2s_jax.objectives.presets import plus
from l2s_jax.sampling.requests import SamplingConfig
from l2s_jax.training import grpo, sft
from l2s_jax.training.optim import OptimConfig

OPTIM = OptimConfig(peak_lr=3e-3)
NUM_STEPS = {"sft": 31, "sft_lora": 31, "grpo": 7, "grpo_refresh": 7, "grpo_lora": 7}
HERE = ("sft_lora", "grpo", "grpo_lora")


def make_runs(root: pathlib.Path) -> dict:
    """Name → (module, config)."""
    stage2 = dict(
        model=str(root / "taught"),
        problems=ArithmeticProblems(num_per_level=8, levels=(3, 5)),
        sampling=SamplingConfig(num_samples=4, max_new_tokens=16, max_rows=16),
        prompts_per_step=4,
        num_workers=1,
        optim=OPTIM,
    )
    stage1 = sft.SftRun(
        model=str(root / "base"),
        data=sft.CuratedItems(path=str(root / "curated")),
        row_length=64,
        batch_rows=4,
        num_steps=NUM_STEPS["sft"],
        optim=OPTIM,
        log_every=1,
        save_every=3,
    )
    adapted = dataclasses.replace(stage1, lora=LoraConfig(rank=2))
    # Plus: a random policy is never right, and correctness alone would not move it.
    fixed = grpo.GrpoRun(
        preset=plus(), rollouts="mixed", num_steps=NUM_STEPS["grpo"], save_every=2, **stage2
    )
    fresh = dataclasses.replace(fixed, rollouts="auto", refresh_every=2)
    return {
        "sft": (sft, stage1),
        "sft_lora": (sft, adapted),
        "grpo": (grpo, fixed),
        "grpo_refresh": (grpo, fresh),
        "grpo_lora": (grpo, dataclasses.replace(fresh, lora=LoraConfig(rank=2))),
    }


def left_by(workdir: pathlib.Path) -> list:
    """What a finished run has on disk: its metrics, and when its checkpoints were written."""
    steps = sorted((workdir / "checkpoints").iterdir())
    metrics = (workdir / "metrics.jsonl").read_bytes()
    return [metrics, *[(path.name, os.stat(path).st_mtime_ns) for path in steps]]


def main(*folders: pathlib.Path) -> None:
    for folder in folders:
        for name in HERE:
            module, cfg = make_runs(folder.parent)[name]
            claim_workdir(cfg, folder / name)
            module.run(cfg, folder / name)
    for name in HERE:
        module, cfg = make_runs(folders[0].parent)[name]
        before = left_by(folders[0] / name)
        module.run(cfg, folders[0] / name)  # it is finished: nothing is left to do
        assert left_by(folders[0] / name) == before, name


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
