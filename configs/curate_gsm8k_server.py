"""GSM8K questions → items, with both teachers behind OpenAI-compatible servers.

vllm serve deepseek-ai/DeepSeek-R1-Distill-Qwen-32B --port 8000
vllm serve Qwen/Qwen2.5-Math-7B-Instruct --port 8001
l2s curate --config configs/curate_gsm8k_server.py --workdir runs/curate_gsm8k_server
Elsewhere: --set source.problems.path=PROBLEMS.jsonl --set tokenizer=FOLDER
--set source.long.server.base_url=https://host/v1 --set source.long.server.api_key_env=MY_KEY
--set source.long.price_in=0.55 --set source.long.price_out=2.19 (per million tokens)
--set source.short.server.requests_per_minute=500; prompts, draws and budgets likewise.
Killed or short of answers: the same command asks for the rest. With --set source.ledger=FOLDER
another workdir uses the same answers.
From the paper: the short teacher, k = 8, the shortest right one. Ours: the draws (it does not say).
Hardware, time and result: not run against a server of that size.
"""

from l2s_jax.curation.asking import AskedTeachers
from l2s_jax.curation.reject import CurateRun
from l2s_jax.curation.teachers import ServerTeacher
from l2s_jax.data.sources import JsonlProblems
from l2s_jax.sampling.endpoint import RemoteConfig


def get_config() -> CurateRun:
    return CurateRun(
        source=AskedTeachers(
            problems=JsonlProblems(path="../shared/data/benchmarks/gsm8k_train.jsonl"),
            long=ServerTeacher(
                server=RemoteConfig(
                    base_url="http://localhost:8000/v1",
                    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
                    api_key_env=None,
                    temperature=0.6,
                    top_p=0.95,
                    max_new_tokens=16_384,
                    concurrency=64,
                ),
            ),
            short=ServerTeacher(
                server=RemoteConfig(
                    base_url="http://localhost:8001/v1",
                    model="Qwen/Qwen2.5-Math-7B-Instruct",
                    api_key_env=None,
                    temperature=0.7,
                    top_p=0.95,
                    max_new_tokens=2048,
                    concurrency=64,
                ),
            ),
        ),
        tokenizer="../shared/data/tokenizers/qwen2.5",
        num_candidates=8,
    )
