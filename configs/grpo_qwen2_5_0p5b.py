"""Stage 2 for Qwen2.5-0.5B-Instruct, as configs/grpo_qwen2_5_7b.py,
from configs/sft_qwen2_5_0p5b.py.

l2s grpo --config configs/grpo_qwen2_5_0p5b.py --workdir runs/grpo_qwen2_5_0p5b
Smallest: v5e:1x1 with --set mesh.fsdp=1 num_microbatches=32 ahead=false sampling.max_rows=32
14.82 of 15.75 GiB by the compiler; meant for v5e-8. Hardware, time and result: not run.
Not a model of the paper: all but the loss is ours.
"""

import dataclasses

import grpo_qwen2_5_7b  # the recipe beside this one

from l2s_jax.training.grpo import GrpoRun


def get_config() -> GrpoRun:
    return dataclasses.replace(grpo_qwen2_5_7b.get_config(), model="runs/sft_qwen2_5_0p5b")
