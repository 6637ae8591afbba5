"""Items of the arithmetic world: four terse trials a question, verified, the shortest right kept.

l2s curate --config configs/curate_arithmetic.py --workdir runs/arithmetic/items
"""

from l2s_jax.cli import recipes
from l2s_jax.curation.reject import CurateRun


def get_config() -> CurateRun:
    return recipes.curate(seed=0)
