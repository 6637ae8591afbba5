"""Stage 1 for Qwen2.5-1.5B-Instruct on one chip: an adapter beside the frozen model, shorter rows.

l2s sft --config configs/sft_lora_qwen2_5_1p5b.py --workdir runs/sft_lora_qwen2_5_1p5b
Smallest: v5e:1x1 with --set num_microbatches=8
9.51 of 15.75 GiB by the compiler. Also meant for one GPU of 16 GiB, which was not tried.
Hardware, time and result: not run.
Ours: rank, scale and rate, as is usual for adapters (the paper trains all weights), and the bound
of 8,192 tokens; longer items are left out, and counted in data.json.
"""

import dataclasses

import sft_lora_qwen2_5_0p5b  # the recipe beside this one

from l2s_jax.training.sft import SftRun


def get_config() -> SftRun:
    whole = sft_lora_qwen2_5_0p5b.get_config()
    return dataclasses.replace(whole, model="Qwen2.5-1.5B-Instruct")
