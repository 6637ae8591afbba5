"""Stage 1 on the items of configs/curate_gsm8k_traces.py, from a Qwen2.5 model folder.

l2s sft --config configs/sft_gsm8k_traces.py --workdir runs/sft_gsm8k \
    --set model=Qwen2.5-0.5B-Instruct
Elsewhere: --set data.path=WORKDIR_OF_THE_CURATION.
R1's traces are long: of 553 items the longest has 6,722 tokens, and rows of 7,168 hold them all
(802,652 tokens, 8 rows a step: three epochs are 43 steps). Less memory: --set row_length=2048
data.max_tokens=2048 leaves out 67 items, and says so. On one device also --set batch_rows=1.
Hardware, time and result: not measured. The recipe itself is run by tests/e2e/test_real_input.py,
from a tiny random model. The paper does not tell its learning rate; this one is that of its
baseline, Bespoke-Stratos.
"""

from l2s_jax.tokens.layouts import LayoutConfig
from l2s_jax.training.curated import CuratedItems
from l2s_jax.training.optim import OptimConfig
from l2s_jax.training.sft import SftRun


def get_config() -> SftRun:
    return SftRun(
        model="Qwen2.5-0.5B-Instruct",
        data=CuratedItems(path="runs/curate_gsm8k", layout=LayoutConfig(name="matched")),
        row_length=7168,
        batch_rows=8,
        num_steps=43,
        optim=OptimConfig(peak_lr=1e-5, warmup_steps=4, final_fraction=0.0),
        remat="full",
        log_every=1,
        save_every=20,
    )
