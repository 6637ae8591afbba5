"""Stage 1 of configs/sft_qwen2_5_7b.py for Llama-3.2-3B-Instruct.

l2s sft --config configs/sft_llama3_2_3b.py --workdir runs/sft_llama3_2_3b
Smallest: v5e:2x4 with --set mesh.fsdp=8
15.25 of 15.75 GiB by the compiler; meant for v6e-8 or v5p-8. Hardware, time and result: not run.
The paper's second version has this model.
"""

import dataclasses

import sft_qwen2_5_7b  # the recipe beside this one

from l2s_jax.training.sft import SftRun


def get_config() -> SftRun:
    return dataclasses.replace(sft_qwen2_5_7b.get_config(), model="Llama-3.2-3B-Instruct")
