"""Stage 1 of configs/sft_qwen2_5_7b.py for Qwen2.5-0.5B-Instruct.

l2s sft --config configs/sft_qwen2_5_0p5b.py --workdir runs/sft_qwen2_5_0p5b
Smallest: v5e:1x1 with --set mesh.fsdp=1 num_microbatches=8
12.74 of 15.75 GiB by the compiler; meant for v5e-8. Hardware, time and result: not run.
Not a model of the paper: all but layout, epochs and loss is ours.
"""

import dataclasses

import sft_qwen2_5_7b  # the recipe beside this one

from l2s_jax.training.sft import SftRun


def get_config() -> SftRun:
    return dataclasses.replace(sft_qwen2_5_7b.get_config(), model="Qwen2.5-0.5B-Instruct")
