"""Stage 2 for Qwen2.5-1.5B-Instruct on one chip, from configs/sft_lora_qwen2_5_1p5b.py.

l2s grpo --config configs/grpo_lora_qwen2_5_1p5b.py --workdir runs/grpo_lora_qwen2_5_1p5b
Smallest: v5e:1x1 with --set num_microbatches=16
14.00 of 15.75 GiB by the compiler. Also meant for one GPU of 16 GiB, which was not tried.
Hardware, time and result: not run.
Ours: rank, scale, rate, and the bound of 2,048 tokens. The base is stage 1's adapter, merged.
"""

import dataclasses

import grpo_lora_qwen2_5_0p5b  # the recipe beside this one

from l2s_jax.training.grpo import GrpoRun


def get_config() -> GrpoRun:
    whole = grpo_lora_qwen2_5_0p5b.get_config()
    return dataclasses.replace(whole, model="runs/sft_lora_qwen2_5_1p5b")
