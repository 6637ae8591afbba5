"""Stage 2, preset v2 (right answers only), on GSM8K's training questions.

l2s grpo --config configs/grpo_gsm8k.py --workdir runs/grpo_gsm8k --set model=runs/sft_gsm8k
Elsewhere: --set problems.path=PROBLEMS.jsonl. A problem per line: id, question, answer.
The policy routes its rollouts itself, so that its first token is trained as well; the paper's
other account, half of a group forced each way: --set rollouts=forced_pair. Group size, rate,
temperature and length are not in the paper; they are ours.
Hardware, time and result: not measured. The recipe itself is run by tests/e2e/test_real_input.py,
from a tiny random model.
"""

from l2s_jax.data.sources import JsonlProblems
from l2s_jax.objectives.presets import v2
from l2s_jax.sampling.requests import SamplingConfig
from l2s_jax.training.grpo import GrpoRun
from l2s_jax.training.optim import OptimConfig


def get_config() -> GrpoRun:
    return GrpoRun(
        model="runs/sft_gsm8k",
        problems=JsonlProblems(path="../shared/data/benchmarks/gsm8k_train.jsonl"),
        preset=v2(),
        rollouts="auto",
        sampling=SamplingConfig(num_samples=8, max_new_tokens=2048, max_rows=128),
        prompts_per_step=16,
        num_steps=200,
        optim=OptimConfig(peak_lr=1e-6, warmup_steps=10),
        save_every=20,
    )
