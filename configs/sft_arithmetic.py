"""Stage 1 on the arithmetic world, layout `matched`.

l2s sft --config configs/sft_arithmetic.py --workdir runs/arithmetic/sft
"""

from l2s_jax.cli import recipes
from l2s_jax.training.sft import SftRun


def get_config() -> SftRun:
    return recipes.stage1("runs/arithmetic/items", seed=0)
