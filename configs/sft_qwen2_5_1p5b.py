"""Stage 1 of configs/sft_qwen2_5_7b.py for Qwen2.5-1.5B-Instruct.

l2s sft --config configs/sft_qwen2_5_1p5b.py --workdir runs/sft_qwen2_5_1p5b
Smallest: v5e:2x2 with --set mesh.fsdp=4
13.14 of 15.75 GiB a chip by the compiler; one chip cannot hold the arrays (23.0). Meant for v5e-8.
Hardware, time and result: not run.
Not a model of the paper: all but layout, epochs and loss is ours.
"""

import dataclasses

import sft_qwen2_5_7b  # the recipe beside this one

from l2s_jax.training.sft import SftRun


def get_config() -> SftRun:
    return dataclasses.replace(sft_qwen2_5_7b.get_config(), model="Qwen2.5-1.5B-Instruct")
