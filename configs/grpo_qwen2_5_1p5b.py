"""Stage 2 for Qwen2.5-1.5B-Instruct, as configs/grpo_qwen2_5_7b.py,
from configs/sft_qwen2_5_1p5b.py.

l2s grpo --config configs/grpo_qwen2_5_1p5b.py --workdir runs/grpo_qwen2_5_1p5b
Smallest: v5e:2x2 with --set mesh.fsdp=4 ahead=false
14.91 of 15.75 GiB by the compiler; meant for v5e-8. Hardware, time and result: not run.
Not a model of the paper: all but the loss is ours.
"""

import dataclasses

import grpo_qwen2_5_7b  # the recipe beside this one

from l2s_jax.training.grpo import GrpoRun


def get_config() -> GrpoRun:
    return dataclasses.replace(grpo_qwen2_5_7b.get_config(), model="runs/sft_qwen2_5_1p5b")
