"""The paper's items: R1's traces of Bespoke-Stratos-17k, and eight tries of a terse teacher each.

l2s curate --config configs/curate_stratos.py --workdir runs/curate_stratos
Elsewhere: --set source.shorts=SHORTS.jsonl tokenizer=FOLDER, and the benchmarks that you will
report on: hygiene.benchmarks='["math500.jsonl", "aime24.jsonl"]'.
SHORTS.jsonl is yours to make: a line per response, in the form that `RecordedTraces` names
(`l2s_jax/data/recorded.py`), sampled from Qwen2.5-Math-7B-Instruct on the same questions.
From the paper: both teachers, the questions, verification, the shortest right one, k = 8. Ours:
how the terse teacher is sampled (temperature 0.7, top-p 0.95, 2,048 tokens), which it does not say;
copies and benchmark questions left out; a twentieth of each difficulty kept regular.
Hardware, time and result: not run.
"""

from l2s_jax.curation.reject import CurateRun
from l2s_jax.data.recorded import PublishedTraces


def get_config() -> CurateRun:
    return CurateRun(
        source=PublishedTraces(
            path="hf:bespokelabs/Bespoke-Stratos-17k",
            layout="stratos",
            long_teacher="deepseek-ai/DeepSeek-R1",
            shorts="stratos_shorts.jsonl",
            short_teachers=("Qwen/Qwen2.5-Math-7B-Instruct",),
        ),
        tokenizer="Qwen2.5-7B-Instruct",
        num_candidates=8,
    )
