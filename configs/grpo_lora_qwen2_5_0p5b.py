"""Stage 2 for Qwen2.5-0.5B-Instruct on one chip, from configs/sft_lora_qwen2_5_0p5b.py.

l2s grpo --config configs/grpo_lora_qwen2_5_0p5b.py --workdir runs/grpo_lora_qwen2_5_0p5b
Smallest: v5e:1x1 with --set num_microbatches=4
11.56 of 15.75 GiB by the compiler. Also meant for one GPU of 16 GiB, which was not tried.
Hardware, time and result: not run.
Ours: rank, scale, rate, and the bound of 2,048 tokens. The base is stage 1's adapter, merged.
"""

import dataclasses

import grpo_qwen2_5_0p5b  # the recipe beside this one

from l2s_jax.model.lora import LoraConfig
from l2s_jax.sampling.requests import SamplingConfig
from l2s_jax.sharding import MeshConfig
from l2s_jax.training.grpo import GrpoRun
from l2s_jax.training.optim import OptimConfig


def get_config() -> GrpoRun:
    return dataclasses.replace(
        grpo_qwen2_5_0p5b.get_config(),
        model="runs/sft_lora_qwen2_5_0p5b",
        sampling=SamplingConfig(num_samples=8, max_new_tokens=2048, max_rows=64),
        num_microbatches=32,
        lora=LoraConfig(rank=16, alpha=32.0, base="bfloat16"),
        optim=OptimConfig(peak_lr=2e-5, warmup_steps=46, final_fraction=0.0),
        mesh=MeshConfig(data=1),
    )
