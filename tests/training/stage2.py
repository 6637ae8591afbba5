"""Stage 2 on the tiny policy: its config, and one step's gathering."""

import contextlib
import dataclasses
from typing import Any

import jax

from l2s_jax.data.arithmetic import ArithmeticProblems
from l2s_jax.objectives.presets import v2
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.requests import SamplingConfig
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.gather import PackedSizes
from l2s_jax.training.grpo import GrpoRun, make_gatherer
from l2s_jax.training.stop import StopSignal
from l2s_jax.verify.math import Verifier
from tests.training.tiny import taught_policy

POLICY = taught_policy()
GROUP, WIDTH, NUM_PROMPTS = 4, 24, 8
SIZES = PackedSizes(row_length=128, row_quantum=1)
SAMPLING = SamplingConfig(num_samples=GROUP, max_new_tokens=WIDTH, max_rows=32)


def grpo_run(**changes: Any) -> GrpoRun:
    cfg = GrpoRun(
        model="nowhere",
        problems=ArithmeticProblems(num_per_level=4, levels=(3, 5)),
        preset=v2(),
        sampling=SAMPLING,
        prompts_per_step=NUM_PROMPTS,
        num_steps=4,
        save_every=2,
        num_workers=1,
    )
    return dataclasses.replace(cfg, **changes)


@contextlib.contextmanager
def gatherer(cfg: GrpoRun):
    """A run's gatherer, sampling on one device."""
    problems = cfg.problems.load()
    with Verifier(1, 5.0) as verifier:
        made = make_gatherer(cfg, POLICY, problems, SIZES, verifier, StopSignal())
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        yield dataclasses.replace(made, engine=Engine(POLICY, cfg.sampling, mesh))
