"""The recipe of configs/sft_gsm8k_traces.py with an adapter on every linear layer: the base is
frozen, and neither gradients nor moments are kept for it.

l2s sft --config configs/sft_gsm8k_lora.py --workdir runs/sft_gsm8k_lora \
    --set model=Qwen2.5-1.5B-Instruct
Its results: l2s export --checkpoint runs/sft_gsm8k_lora --out MERGED_MODEL
or, for peft: l2s export --checkpoint runs/sft_gsm8k_lora --out ADAPTER --adapter
The workdir needs its base whenever it is read: keep that folder where it is.
Hardware, time and result: not measured; it has not yet run on a TPU. Rank, scale and rate are what
is usual for adapters; the paper trains all weights.
"""

import dataclasses

import sft_gsm8k_traces  # the recipe beside this one

from l2s_jax.model.lora import LoraConfig
from l2s_jax.training.optim import OptimConfig
from l2s_jax.training.sft import SftRun


def get_config() -> SftRun:
    return dataclasses.replace(
        sft_gsm8k_traces.get_config(),
        lora=LoraConfig(rank=16, alpha=32.0),
        optim=OptimConfig(peak_lr=2e-4, warmup_steps=4, final_fraction=0.0),
    )
