"""Every mode on the GSM8K test questions that stage 1 has not seen, greedy.

l2s eval --config configs/eval_gsm8k.py --workdir runs/eval_gsm8k --set model=runs/grpo_gsm8k
The traces of configs/curate_gsm8k_traces.py answer 582 of the 1,319 *test* questions. Those that
became items are left out here (766 remain); a result on all of them would be worth nothing.
Elsewhere: --set problems.path=PROBLEMS.jsonl, and problems.exclude=WORKDIR_OF_THE_CURATION, or
problems.exclude=null for a model that was not trained on them.
Too large for one chip: --set mesh.tensor=4 dtype=bfloat16, and l2s plan says whether that fits.
Hardware, time and result: not measured.
"""

from l2s_jax.data.sources import JsonlProblems
from l2s_jax.evaluation.benchmark import EvalRun
from l2s_jax.sampling.requests import SamplingConfig


def get_config() -> EvalRun:
    return EvalRun(
        model="runs/grpo_gsm8k",
        problems=JsonlProblems(
            path="../shared/data/benchmarks/gsm8k_test.jsonl", exclude="runs/curate_gsm8k"
        ),
        sampling=SamplingConfig(temperature=0.0, max_new_tokens=4096, max_rows=128),
        stage="grpo_v2",
    )
