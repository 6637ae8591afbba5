"""Stage 2 of the paper, preset v2 (right answers only), from configs/sft_qwen2_5_7b.py.

l2s grpo --config configs/grpo_qwen2_5_7b.py --workdir runs/grpo_qwen2_5_7b
Elsewhere: --set model=WORKDIR_OF_STAGE_1 --set problems.path=PROBLEMS.jsonl.
Smallest: v6e:2x4 with --set mesh.fsdp=4 mesh.tensor=2 num_microbatches=16
Smallest: v5e:4x4 with --set mesh.fsdp=4 mesh.tensor=4 num_microbatches=32 sampling.max_rows=32
28.35 of 31.25 GiB a chip, and 14.34 of 15.75, both compiled; smaller slices cannot hold the arrays
(35.5 GiB a chip on four, 17.7 on eight). As it stands its arrays take more than a v6e-8 has, since
every chip keeps the sampler's weights whole.
Hardware, time and result: not run.

From the paper: binary correctness, clip 0.2, the SFT policy as behaviour policy. Sources disagree
on the rollouts; here half of a group is forced each way, and the route is not trained
(--set rollouts=auto: the policy routes itself, and its first token is trained). Ours, since the
paper is silent: problems (MATH's training questions), group size, rate (within O1-Pruner's range),
steps (one epoch), temperature and length. The length-aware version: objectives/presets.py, `plus`.
"""

from l2s_jax.data.sources import JsonlProblems
from l2s_jax.objectives.presets import v2
from l2s_jax.sampling.requests import SamplingConfig
from l2s_jax.sharding import MeshConfig
from l2s_jax.training.grpo import GrpoRun
from l2s_jax.training.optim import OptimConfig


def get_config() -> GrpoRun:
    return GrpoRun(
        model="runs/sft_qwen2_5_7b",
        problems=JsonlProblems(path="../shared/data/benchmarks/math_train.jsonl"),
        preset=v2(),
        rollouts="forced_pair",
        sampling=SamplingConfig(num_samples=8, max_new_tokens=8192, max_rows=64),
        prompts_per_step=16,
        num_microbatches=8,
        num_steps=466,
        optim=OptimConfig(peak_lr=1e-6, warmup_steps=46, final_fraction=0.0),
        mesh=MeshConfig(data=1, fsdp=-1),
        dtype="bfloat16",
        remat="full",
        save_every=20,
    )
