"""Teachers that are asked: behind a server, on this machine, or on record.

Lives here: their configs, what names a request to them, and how an answer becomes a trace. Not
here: the asking (`curation/asking.py`), recorded traces (`data`), a server's own settings
(`sampling/endpoint.py`).

A key names everything that determines an answer: model, question as it is sent, draw settings,
seed, problem id and sample number. The budget is left out, so that a larger one asks again only for
what was cut (`Ledger.find`). So is a server's address: a model's name stands for its weights; two
servers that call different weights by one name need two ledgers. A local model is named by what its
files hold.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any, Literal

import jax
import numpy as np

from l2s_jax.config import to_json
from l2s_jax.curation.ledger import Answer, request_key
from l2s_jax.data.traces import cut_long, cut_short
from l2s_jax.model.config import DTypeName
from l2s_jax.sampling.controllers.routing import RoutingConfig
from l2s_jax.sampling.endpoint import RemoteConfig
from l2s_jax.sampling.remote import request_seed
from l2s_jax.sampling.requests import SamplingConfig
from l2s_jax.sharding import MeshConfig
from l2s_jax.tokens.tokenizer import model_folder
from l2s_jax.types import Problem, Trace

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
_THOUGHT_ENDS = "</think>"
_SPEED = ("num_samples", "max_new_tokens", "max_rows", "cache_gib", "entropy")  # change no draw


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerTeacher:
    """A model behind an OpenAI-compatible server."""

    server: RemoteConfig
    instruction: str | None = BOXED  # a line put after every question; None: the bare question
    price_in: float = 0.0  # per million prompt tokens, in your currency
    price_out: float = 0.0  # per million completion tokens, the thought included

    def __post_init__(self):
        if self.server.num_samples != 1:
            raise ValueError(
                f"ServerTeacher.server.num_samples={self.server.num_samples}: leave it at 1. How"
                " many samples are asked for is CurateRun.num_candidates (of the short teacher)."
            )
        if self.price_in < 0 or self.price_out < 0:
            raise ValueError(
                f"ServerTeacher.price_in={self.price_in}, price_out={self.price_out}: prices per"
                " million tokens, 0 or above."
            )

    @property
    def name(self) -> str:
        return self.server.model

    @property
    def budget(self) -> int:
        return self.server.max_new_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalTeacher:
    """A model in a folder, sampled by our own engine on this machine's devices."""

    model: str  # a Hugging Face folder, or the workdir of a run
    sampling: SamplingConfig = SamplingConfig(
        temperature=0.7, top_p=0.95, max_new_tokens=2048, routing=RoutingConfig(modes=("free",))
    )
    instruction: str | None = BOXED
    dtype: DTypeName = "bfloat16"  # of weights and computation
    mesh: MeshConfig = MeshConfig()  # tensor cuts the weights, for a model too large for one chip
    chunk: int = 64  # problems sampled together and then written down; a kill costs one chunk

    def __post_init__(self):
        if self.sampling.num_samples != 1:
            raise ValueError(
                f"LocalTeacher.sampling.num_samples={self.sampling.num_samples}: leave it at 1. How"
                " many samples are asked for is CurateRun.num_candidates (of the short teacher)."
            )
        if self.chunk < 1:
            raise ValueError(f"LocalTeacher.chunk={self.chunk}: at least 1 problem.")

    @property
    def name(self) -> str:
        return pathlib.Path(self.model).name

    @property
    def budget(self) -> int:
        return self.sampling.max_new_tokens


AskedTeacher = ServerTeacher | LocalTeacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """One sample of one problem, and the name of the request for it."""

    problem: Problem  # with the question as it is sent
    request: dict[str, Any]
    key: str


def wanted(
    teacher: AskedTeacher, problems: list[Problem], num_samples: int, seed: int
) -> dict[tuple[str, int], Wanted]:
    """By problem id and sample number, problem by problem."""
    fixed = _fixed(teacher, seed)
    words = np.asarray(jax.random.key_data(jax.random.key(seed))).tobytes()
    found = {}
    for problem in problems:
        sent = dataclasses.replace(problem, question=question(teacher, problem))
        for sample in range(num_samples):
            request = fixed | {"id": problem.id, "sample": sample, "question": sent.question}
            if isinstance(teacher, ServerTeacher) and teacher.server.seeded:
                request["seed"] = request_seed(words, problem.id, sample)
            found[problem.id, sample] = Wanted(
                problem=sent, request=request, key=request_key(request)
            )
    return found


def question(teacher: AskedTeacher, problem: Problem) -> str:
    """The question as it is sent."""
    if teacher.instruction is None:
        return problem.question
    return f"{problem.question}\n{teacher.instruction}"


def _fixed(teacher: AskedTeacher, seed: int) -> dict[str, Any]:
    """What all requests to a teacher have in common."""
    if isinstance(teacher, ServerTeacher):
        cfg = teacher.server
        draw = {"temperature": cfg.temperature, "top_p": cfg.top_p, "extra": cfg.extra}
        return {"model": cfg.model} | draw
    draw = {k: v for k, v in to_json(teacher.sampling).items() if k not in _SPEED}
    folder = model_folder(teacher.model)
    weights = {"weights": folder_digest(folder), "dtype": teacher.dtype}
    return {"model": teacher.name, "seed": seed, "sampling": draw} | weights


def folder_digest(folder: pathlib.Path, num_blocks: int = 64, block: int = 1 << 16) -> str:
    """32 hex digits of a model's files: names, sizes, and up to 64 blocks of each, evenly spread.

    A step of training changes nearly every weight, so a share of the bytes tells two checkpoints
    apart without reading all of 15 GB.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}\0{size}\0".encode())
        with path.open("rb") as file:
            for start in sorted(
                {n * max(0, size - block) // num_blocks for n in range(num_blocks + 1)}
            ):
                file.seek(start, os.SEEK_SET)
                digest.update(file.read(block))
    return digest.hexdigest()[:32]


def trace_of(
    answer: Answer, problem_id: str, teacher: str, kind: Literal["long", "short"]
) -> Trace | None:
    """The answer cut into thought and answer text; None where it holds no completion.

    A text that was cut at its budget stays a trial, and is marked as cut.
    """
    if answer.finish_reason not in ("stop", "length"):
        return None
    if answer.finish_reason == "length":
        text = "\n".join(part for part in (answer.thought, answer.text) if part)
        return Trace(problem_id=problem_id, teacher=teacher, thought=text, answer="", is_cut=True)
    parts = cut_answer_long(answer) if kind == "long" else cut_short(_unmarked(answer.text))
    if parts is None:
        return None
    return Trace(problem_id=problem_id, teacher=teacher, thought=parts[0], answer=parts[1])


def cut_answer_long(answer: Answer) -> tuple[str, str] | None:
    """By the server's own cut, else by the mark in the text, else as a text without marks."""
    if answer.thought:
        opening = f"{answer.thought}\n{_THOUGHT_ENDS}"
        return cut_long(f"{opening}\n{answer.text}", len(opening))
    end = answer.text.rfind(_THOUGHT_ENDS)
    if end < 0:
        return cut_short(answer.text)
    return cut_long(answer.text, end + len(_THOUGHT_ENDS))


def _unmarked(text: str) -> str:
    """The text without thinking marks: what stands between them is part of a short path."""
    return text.replace("<think>", "").replace(_THOUGHT_ENDS, "").strip()
