"""Stage 2 for Qwen2.5-3B-Instruct, as configs/grpo_qwen2_5_7b.py,
from configs/sft_qwen2_5_3b.py.

l2s grpo --config configs/grpo_qwen2_5_3b.py --workdir runs/grpo_qwen2_5_3b
Smallest: v5e:2x4 with --set mesh.fsdp=8 ahead=false
14.37 of 15.75 GiB by the compiler; meant for v6e-8 or v5p-8. Hardware, time and result: not run.
The paper's first version has this model too; its hyper-parameters are as unknown.
"""

import dataclasses

import grpo_qwen2_5_7b  # the recipe beside this one

from l2s_jax.training.grpo import GrpoRun


def get_config() -> GrpoRun:
    return dataclasses.replace(grpo_qwen2_5_7b.get_config(), model="runs/sft_qwen2_5_3b")
