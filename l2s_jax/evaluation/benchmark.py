"""A policy on a benchmark: one record per answer, in every mode asked for.

Lives here: `EvalRun` and `answer_all`. Not here: what is computed from the records
(`evaluation/summary.py`, `evaluation/stats.py`), how it is shown (`evaluation/report.py`).
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import ClassVar

import jax
from tqdm import tqdm

from l2s_jax.data.arithmetic import ArithmeticProblems
from l2s_jax.data.sources import JsonlProblems
from l2s_jax.data.store import replace_file
from l2s_jax.evaluation.forced import p_short_after_easy
from l2s_jax.evaluation.records import Answer
from l2s_jax.evaluation.summary import build_summary
from l2s_jax.model.config import DTypeName
from l2s_jax.sampling.controllers.routing import MODES, Mode
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.policy import Policy
from l2s_jax.sampling.requests import SamplingConfig, ask
from l2s_jax.sharding import MeshConfig
from l2s_jax.training.hosts import everyone, is_first, joined, share
from l2s_jax.training.policy import load_to_sample
from l2s_jax.training.rollouts import judge, prediction_of, untaught_prediction
from l2s_jax.types import Problem
from l2s_jax.verify.math import Verifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRun:
    """One policy, one benchmark, some modes. Greedy unless `sampling` says otherwise."""

    model: str  # workdir or Hugging Face folder
    problems: ArithmeticProblems | JsonlProblems
    modes: tuple[Mode, ...] = MODES
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)
    stage: str = "sft"  # the name under which the report lists this policy
    seed: int = 0  # of the training run that made it; also of the draws
    dtype: DTypeName | None = None  # of weights and computation; null: computed as it was trained
    mesh: MeshConfig = MeshConfig()  # tensor cuts the weights, for a model too large for one chip
    num_workers: int = 2
    verify_seconds: float = 5.0

    MAY_CHANGE: ClassVar = ("mesh", "num_workers")  # between two starts

    def __post_init__(self):
        if not self.modes or len(set(self.modes)) < len(self.modes):
            raise ValueError(
                f"EvalRun.modes={self.modes}: one or more of {', '.join(MODES)}, each once."
            )
        if not self.stage or "/" in self.stage:
            raise ValueError(
                f"EvalRun.stage={self.stage!r}: it names a file. Give a name without slashes."
            )
        if self.sampling.routing.modes != ("auto",):
            raise ValueError(
                f"EvalRun.sampling.routing.modes={self.sampling.routing.modes}: EvalRun.modes"
                " decides them. Set that, and leave these out."
            )
        if self.num_workers < 1 or not self.verify_seconds > 0:
            raise ValueError(
                f"EvalRun.num_workers={self.num_workers}, verify_seconds={self.verify_seconds}:"
                " both must be above 0; 2 and 5.0 are usual."
            )


def run(cfg: EvalRun, workdir: str | pathlib.Path) -> None:
    """Writes `records/<stage>-<seed>.jsonl` and `summary.json` into `workdir`.

    Each of several hosts answers its share, and the first writes down the answers of all.
    """
    workdir, start = pathlib.Path(workdir), time.monotonic()
    problems = cfg.problems.load()
    policy = load_to_sample(cfg.model, mesh=cfg.mesh, dtype=cfg.dtype)
    engine = Engine(policy, cfg.sampling)
    del policy
    engine.keep_placed()
    answers: list[Answer] = []
    with Verifier(cfg.num_workers, cfg.verify_seconds) as verifier:
        for mode in tqdm(cfg.modes, desc="eval", unit="mode", file=sys.stderr, leave=False):
            mine = answer_all(
                engine, share(problems), verifier, mode=mode, stage=cfg.stage, seed=cfg.seed
            )
            size = cfg.sampling.num_samples
            by_problem = [mine[n : n + size] for n in range(0, len(mine), size)]
            answers += [answer for found in joined(everyone(by_problem)) for answer in found]
    if not is_first():
        return
    write_records(workdir, f"{cfg.stage}-{cfg.seed}", answers)
    summary = build_summary(answers, {"eval": time.monotonic() - start}, [cfg.seed])
    replace_file(workdir / "summary.json", json.dumps(summary, indent=2).encode())


def answer_all(
    engine: Engine,
    problems: Sequence[Problem],
    verifier: Verifier,
    *,
    mode: Mode,
    stage: str,
    seed: int,
) -> list[Answer]:
    """The records of one mode: every problem's answer and whether it is right."""
    policy: Policy = engine.policy
    if policy.tokenizer is None:
        raise ValueError("a model without a tokenizer cannot be asked questions: add its files.")
    key = jax.random.key(seed)
    routing = dataclasses.replace(engine.cfg.routing, modes=(mode,))
    rollouts = engine.sample(ask(problems, policy.tokenizer), key, routing=routing)
    by_id = {problem.id: problem for problem in problems}
    references = {id: problem.answer for id, problem in by_id.items()}
    predict = prediction_of if policy.triggers is not None else untaught_prediction
    correct = judge(rollouts, references, verifier, predict)
    return [
        Answer(
            stage=stage,
            seed=seed,
            mode=mode,
            id=rollout.id,
            level=by_id[rollout.id].level,
            question=by_id[rollout.id].question,
            reference=by_id[rollout.id].answer,
            prediction=predict(rollout),
            correct=right,
            num_tokens=rollout.num_tokens,
            route=rollout.route,
            p_easy=rollout.p_easy,
            p_short=p_short_after_easy(rollout, mode, engine.cfg),
            finish_reason=rollout.finish_reason,
            text=rollout.text or "",
        )
        for rollout, right in zip(rollouts, correct, strict=True)
    ]


def write_records(workdir: pathlib.Path, name: str, answers: Sequence[Answer]) -> None:
    """`records/<name>.jsonl`, whole or not at all."""
    folder = workdir / "records"
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(answer) + "\n" for answer in answers)
    replace_file(folder / f"{name}.jsonl", lines.encode())
