"""Every mode of a stage 2 policy on unseen questions of the arithmetic world.

l2s eval --config configs/eval_arithmetic.py --workdir runs/arithmetic/eval
"""

from l2s_jax.cli import recipes
from l2s_jax.evaluation.benchmark import EvalRun


def get_config() -> EvalRun:
    return recipes.evaluation("runs/arithmetic/grpo", "grpo_plus", seed=0)
