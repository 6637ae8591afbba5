"""Long and short traces on 582 GSM8K test questions → verified items, for the Qwen2.5 student.

Traces: MiP-Overthinking (MIT), one response per model and question; long DeepSeek-R1, short the
three instruction models that answered the same questions.

l2s curate --config configs/curate_gsm8k_traces.py --workdir runs/curate_gsm8k
"""

from l2s_jax.curation.reject import CurateRun
from l2s_jax.data.sources import RecordedTraces


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
