"""R1's traces of Bespoke-Stratos-17k, and short ones sampled here: no server, one accelerator.

hf download Qwen/Qwen2.5-Math-1.5B-Instruct --local-dir Qwen2.5-Math-1.5B-Instruct
l2s curate --config configs/curate_stratos_local.py --workdir runs/curate_stratos_local
Elsewhere: --set source.short.model=FOLDER tokenizer=FOLDER; fewer questions:
--set source.problems.limit=N source.long.limit=N. Killed: the same command asks for the rest.
From the paper: questions, long teacher, verification, the shortest right one. Ours: a terse teacher
of 1.5B instead of 7B, and four tries instead of eight, for one chip (launch/colab.md).
Hardware, time and result: not run.
"""

from l2s_jax.curation.asking import AskedTeachers
from l2s_jax.curation.reject import CurateRun
from l2s_jax.curation.teachers import LocalTeacher
from l2s_jax.data.recorded import PublishedTraces


def get_config() -> CurateRun:
    traces = PublishedTraces(path="hf:bespokelabs/Bespoke-Stratos-17k", layout="stratos")
    return CurateRun(
        source=AskedTeachers(
            problems=traces,
            long=traces,
            short=LocalTeacher(model="Qwen2.5-Math-1.5B-Instruct"),
        ),
        tokenizer="Qwen2.5-0.5B-Instruct",
        num_candidates=4,
    )
