"""Stage 1 of the paper: Qwen2.5-7B-Instruct on the items of configs/curate_stratos.py.

l2s sft --config configs/sft_qwen2_5_7b.py --workdir runs/sft_qwen2_5_7b
Elsewhere: --set model=FOLDER --set data.path=WORKDIR_OF_THE_CURATION.
Smallest: v6e:2x4
Smallest: v5e:4x4 with --set mesh.fsdp=8 mesh.tensor=2
25.3 of 31.25 GiB a chip, and 14.6 of 15.75. Both were compiled, as were v6e:2x2 and v5e:2x4, which
the compiler refuses.
Hardware, time and result: not run.

From the paper: the layout. Inferred from its 1,551 steps: three epochs, 32 items a step, about 1 %
held out. Ours, since the paper is silent: rate, warm-up, cosine and Adam's constants are those of
its baseline's card (Bespoke-Stratos, as is the bound of 16,384 tokens); bfloat16 computation on
float32 weights. Rows are packed, so a step holds tokens and not items: at a mean of 6,000 tokens
(assumed, not counted) 16 rows are 43 items and 1,150 steps three epochs. The run's data.json has
`num_rows`: three epochs are 3 * num_rows / 16 steps.
Ours instead of the paper's layout: --set data.layout.name=matched
"""

from l2s_jax.sharding import MeshConfig
from l2s_jax.tokens.layouts import LayoutConfig
from l2s_jax.training.curated import CuratedItems
from l2s_jax.training.optim import OptimConfig
from l2s_jax.training.sft import SftRun
from l2s_jax.training.validation import ValidationConfig


def get_config() -> SftRun:
    return SftRun(
        model="Qwen2.5-7B-Instruct",
        data=CuratedItems(
            path="runs/curate_stratos",
            layout=LayoutConfig(name="long-short"),
            max_tokens=16_384,
        ),
        row_length=16_384,
        batch_rows=16,
        num_microbatches=2,
        num_steps=1150,
        optim=OptimConfig(peak_lr=1e-5, warmup_steps=115, final_fraction=0.0),
        mesh=MeshConfig(data=1, fsdp=-1),
        dtype="bfloat16",
        remat="full",
        validation=ValidationConfig(fraction=0.01, every=100),
        log_every=5,
        save_every=100,
    )
