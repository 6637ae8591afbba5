"""Long and short traces on 582 GSM8K test questions → verified items for a Qwen2.5 student.

Traces: MiP-Overthinking (MIT), one response per model and question; long from DeepSeek-R1, short
from three instruction models, two of which never box their answers (`l2s_jax/data/traces.py`).

l2s curate --config configs/curate_gsm8k_traces.py --workdir runs/curate_gsm8k
Elsewhere: --set source.path=TRACES.jsonl --set tokenizer=FOLDER.
Hardware: two CPU cores. Time: 15 s of one core. Result: 553 items of 582 problems, 501 of them EASY
(90.6 %; 25 more have a short path and are kept regular); right: DeepSeek-R1 95.2 %,
Qwen2.5-32B-Instruct 87.8 %, gemma-2-27b-it and Phi-3-medium 84.5 %; mean tokens of EASY items 1,211
on the long path, 130 on the short one. A second implementation agrees on all 1,054 paths.
"""

from l2s_jax.curation.reject import CurateRun
from l2s_jax.data.recorded import RecordedTraces


def get_config() -> CurateRun:
    return CurateRun(
        source=RecordedTraces(
            path="../shared/data/traces/mip_gsm8k_paired.jsonl",
            long_teacher="deepseek-ai/DeepSeek-R1",
            short_teachers=(
                "Qwen/Qwen2.5-32B-Instruct",
                "google/gemma-2-27b-it",
                "microsoft/Phi-3-medium",
            ),
        ),
        tokenizer="../shared/data/tokenizers/qwen2.5",
        num_candidates=3,
    )
