"""The base model of the arithmetic world: knows both styles of answer, and no trigger.

export XLA_FLAGS=--xla_force_host_platform_device_count=2     (two cores; twice as fast, see LOG.md)
l2s sft --config configs/base_arithmetic.py --workdir runs/base
l2s export --checkpoint runs/base --out runs/base_hf     (the folder that the package ships)
Hardware: two CPU cores (AMD EPYC). Time: 9 minutes. Result, greedy, 200 questions a level: terse
style right on all of levels 3 to 6, .18 and .08 on 7 and 8, step by step right on all.
A second run gave the shipped model.safetensors byte for byte; LOG.md 2026-11-20.
"""

from l2s_jax.data.arithmetic import VOCAB_SIZE, ArithmeticDocuments
from l2s_jax.model.config import ModelConfig
from l2s_jax.training.optim import OptimConfig
from l2s_jax.training.sft import SftRun


def get_config() -> SftRun:
    return SftRun(
        model=ModelConfig(
            vocab_size=VOCAB_SIZE,
            width=96,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_dim=24,
            ffn_width=256,
            rope_theta=10_000.0,
            max_positions=256,
        ),
        tokenizer="arithmetic",
        data=ArithmeticDocuments(num_documents=150_000),
        row_length=128,
        batch_rows=16,
        num_steps=4500,
        optim=OptimConfig(peak_lr=3e-3, warmup_steps=100, b2=0.99, weight_decay=0.01),
        log_every=20,
        save_every=1000,
    )
