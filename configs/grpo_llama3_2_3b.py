"""Stage 2 for Llama-3.2-3B-Instruct, as configs/grpo_qwen2_5_7b.py,
from configs/sft_llama3_2_3b.py.

l2s grpo --config configs/grpo_llama3_2_3b.py --workdir runs/grpo_llama3_2_3b
Smallest: v5e:2x4 with --set mesh.fsdp=4 mesh.tensor=2 num_microbatches=16 sampling.max_rows=32
13.79 of 15.75 GiB by the compiler; meant for v6e-8 or v5p-8. Hardware, time and result: not run.
The paper's second version has this model.
"""

import dataclasses

import grpo_qwen2_5_7b  # the recipe beside this one

from l2s_jax.training.grpo import GrpoRun


def get_config() -> GrpoRun:
    return dataclasses.replace(grpo_qwen2_5_7b.get_config(), model="runs/sft_llama3_2_3b")
