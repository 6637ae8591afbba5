"""The runs of the arithmetic world: what the demo chains, and what `configs/*_arithmetic.py` name.

Lives here: every hyper-parameter of the demo. Not here: the chain itself (`cli/demo.py`), the
base model they start from (`configs/base_arithmetic.py`).
"""

import dataclasses

from l2s_jax.curation.hygiene import Hygiene
from l2s_jax.curation.reject import CurateRun
from l2s_jax.data.arithmetic import ArithmeticProblems, ArithmeticTeachers
from l2s_jax.evaluation.benchmark import EvalRun
from l2s_jax.objectives.presets import plus, v2
from l2s_jax.sampling.requests import SamplingConfig
from l2s_jax.tokens.layouts import Layout, LayoutConfig
from l2s_jax.tokens.triggers import TriggerStarts
from l2s_jax.training.curated import CuratedItems
from l2s_jax.training.grpo import GrpoRun
from l2s_jax.training.optim import OptimConfig
from l2s_jax.training.rollouts import RolloutSource
from l2s_jax.training.sft import SftRun

MAX_NEW_TOKENS = 56  # the longest long path has 48, stop included
STARTS = TriggerStarts(easy="in", long="steps", short="brief", answer="so")
"""The words under which the base model knows the two styles."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything; the recipes are otherwise the same."""

    train_per_level: int = 1000
    test_per_level: int = 200
    sft_steps: int = 180
    v2_steps: int = 20
    plus_steps: int = 70


FULL = Scale()
QUICK = Scale(train_per_level=400, test_per_level=50, sft_steps=90, v2_steps=8, plus_steps=12)


def curate(seed: int, scale: Scale = FULL) -> CurateRun:
    """Four trials of the terse teacher on every training problem."""
    problems = ArithmeticProblems(num_per_level=scale.train_per_level, seed=seed)
    source = ArithmeticTeachers(problems=problems, seed=seed)
    return CurateRun(
        source=source,
        tokenizer="arithmetic",
        num_candidates=4,
        min_regular_share=0.0,  # every level has regular items: the terse teacher errs on each
        hygiene=Hygiene(duplicates=False),  # the questions are drawn without repetition
    )


def stage1(curated: str, seed: int, layout: Layout = "matched", scale: Scale = FULL) -> SftRun:
    """Supervised fine-tuning of the shipped base model on curated items."""
    return SftRun(
        model="arithmetic",
        data=CuratedItems(
            path=curated, layout=LayoutConfig(name=layout, route_weight=8.0), starts=STARTS
        ),
        num_steps=scale.sft_steps,
        optim=OptimConfig(peak_lr=1.5e-3, warmup_steps=10, b2=0.99),
        seed=seed,
        log_every=5,
    )


def stage2_v2(model: str, seed: int, scale: Scale = FULL) -> GrpoRun:
    """Correctness only, clipped against the stage 1 policy, which also samples."""
    return GrpoRun(
        model=model,
        problems=ArithmeticProblems(num_per_level=scale.train_per_level, seed=seed + 1000),
        preset=v2(),
        rollouts="auto",
        sampling=SamplingConfig(num_samples=8, max_new_tokens=MAX_NEW_TOKENS),
        prompts_per_step=32,
        num_steps=scale.v2_steps,
        optim=OptimConfig(peak_lr=1e-4, b2=0.99),
        num_workers=1,
        seed=seed,
    )


def stage2_plus(
    model: str, seed: int, rollouts: RolloutSource = "auto", scale: Scale = FULL
) -> GrpoRun:
    """Length-aware (O1-Pruner's form), otherwise as `stage2_v2`."""
    return dataclasses.replace(
        stage2_v2(model, seed, scale),
        preset=plus(accuracy_weight=8.0),
        rollouts=rollouts,
        num_steps=scale.plus_steps,
        optim=OptimConfig(peak_lr=3e-4, b2=0.99),
    )


def evaluation(model: str, stage: str, seed: int, scale: Scale = FULL) -> EvalRun:
    """Greedy answers to unseen questions in every mode."""
    return EvalRun(
        model=model,
        problems=ArithmeticProblems(
            split="test", num_per_level=scale.test_per_level, seed=seed + 2000
        ),
        sampling=SamplingConfig(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS, max_rows=600),
        stage=stage,
        seed=seed,
        num_workers=1,
    )
