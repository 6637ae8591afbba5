"""GSM8K questions → items: R1's traces from a record, short ones sampled here by a small model.

l2s curate --config configs/curate_gsm8k_local.py --workdir runs/curate_gsm8k_local
Elsewhere: --set source.short.model=FOLDER --set source.problems.path=PROBLEMS.jsonl
--set source.long.path=TRACES.jsonl --set tokenizer=FOLDER. Killed: the same command goes on.
Problems and traces are the same file: one question per `qid` that has a long trace.
Hardware, time and result: not run with a model of that size.
"""

from l2s_jax.curation.asking import AskedTeachers
from l2s_jax.curation.reject import CurateRun
from l2s_jax.curation.teachers import LocalTeacher
from l2s_jax.data.recorded import RecordedTraces


def get_config() -> CurateRun:
    traces = RecordedTraces(
        path="../shared/data/traces/mip_gsm8k_paired.jsonl",
        long_teacher="deepseek-ai/DeepSeek-R1",
    )
    return CurateRun(
        source=AskedTeachers(
            problems=traces,
            long=traces,
            short=LocalTeacher(model="Qwen2.5-Math-1.5B-Instruct"),
        ),
        tokenizer="../shared/data/tokenizers/qwen2.5",
        num_candidates=8,
    )
