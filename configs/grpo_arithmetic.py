"""Stage 2 on the arithmetic world, preset Plus: right and short answers.

l2s grpo --config configs/grpo_arithmetic.py --workdir runs/arithmetic/grpo
"""

from l2s_jax.cli import recipes
from l2s_jax.training.grpo import GrpoRun


def get_config() -> GrpoRun:
    return recipes.stage2_plus("runs/arithmetic/sft", seed=0)
