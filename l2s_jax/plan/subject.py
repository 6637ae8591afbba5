"""Whom a recipe trains, known from shapes alone: no weights are needed to plan.

Lives here: the model, tokenizer and triggers that a run would have, and the longest prompt, with a
note of all that was assumed for want of a file. Not here: the programs (`plan/programs.py`).

A recipe names a folder, a run that another recipe beside it makes, or a model of the Hub. A folder
that is there counts; what is missing of it (tokenizer, problems) is assumed and said.
"""

import dataclasses
import pathlib
import re
from typing import Any

from l2s_jax.config import load_config
from l2s_jax.evaluation.benchmark import EvalRun
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.hf.files import read_hf_config
from l2s_jax.model.presets import LARGE, PRESETS, SMALL
from l2s_jax.sampling.policy import Policy
from l2s_jax.sampling.requests import ask
from l2s_jax.tokens.tokenizer import SHIPPED, load_tokenizer
from l2s_jax.tokens.triggers import Triggers, add_triggers, find_triggers, load_triggers
from l2s_jax.training.adapter import token_ids_of
from l2s_jax.training.curated import CuratedItems
from l2s_jax.training.grpo import GrpoRun, check_problems
from l2s_jax.training.policy import MODEL_FILE, without_weights
from l2s_jax.training.sft import SftRun
from l2s_jax.types import Problem

PROMPT_TOKENS = 512  # of the longest prompt, where the problems cannot be read
NUM_TRIGGERS = 4
MANY = 8  # prompts for each row, where their number is not known: others wait


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A policy without weights, as the run would start its training with it."""

    policy: Policy
    notes: tuple[str, ...] = ()  # what was assumed

    @property
    def model(self) -> ModelConfig:
        return self.policy.model


def subject_of(cfg: Any, recipe: pathlib.Path) -> Subject:
    """The policy of a run.

    Args:
      recipe: the file that `cfg` came from; others beside it may say what it starts from.
    """
    if isinstance(cfg.model, ModelConfig):
        tokenizer = load_tokenizer(cfg.tokenizer) if cfg.tokenizer else None
        policy = Policy(model=cfg.model, params={}, tokenizer=tokenizer, triggers=None)
        return _taught(Subject(policy=policy), cfg)
    folder = SHIPPED.get(cfg.model) or pathlib.Path(cfg.model)
    if folder.is_dir():
        return _taught(Subject(policy=_in_folder(folder)), cfg)
    maker = _maker_of(cfg.model, recipe)
    if maker is not None:
        training = load_config(maker)
        made = subject_of(training, maker)
        made = dataclasses.replace(made, policy=made.policy.computed_in(training.dtype))
        note = f"{cfg.model} is not there: its shape is what {maker.name} would make"
        return dataclasses.replace(made, notes=(note, *made.notes))
    name = cfg.model.split("/")[-1]
    if name not in PRESETS:
        raise FileNotFoundError(
            f"model={cfg.model!r} is no folder, no recipe beside {recipe.name} makes it, and no"
            " model of that name is known. Give --set model=FOLDER, or a name such as"
            " Qwen2.5-7B-Instruct."
        )
    policy = Policy(model=PRESETS[name], params={}, tokenizer=None, triggers=None)
    note = f"{cfg.model} is no folder here: its shape is that of the Hub's model of this name"
    return _taught(Subject(policy=policy, notes=(note,)), cfg)


def _in_folder(folder: pathlib.Path) -> Policy:
    if (folder / MODEL_FILE).exists():
        return without_weights(folder)
    tokenizer = None
    if any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        tokenizer = load_tokenizer(folder)
    return Policy(
        model=read_hf_config(folder),
        params={},
        tokenizer=tokenizer,
        triggers=load_triggers(folder, tokenizer),
    )


def _maker_of(workdir: str, recipe: pathlib.Path) -> pathlib.Path | None:
    """The recipe whose header names `workdir` as its own."""
    own = re.compile(rf"--workdir {re.escape(workdir)}\s")
    others = (path for path in sorted(recipe.parent.glob("*.py")) if path != recipe)
    return next((path for path in others if own.search(path.read_text())), None)


def _taught(subject: Subject, cfg: Any) -> Subject:
    """With the triggers that the run's data bring; one that has them, or never will, as it is."""
    policy, data = subject.policy, getattr(cfg, "data", None)
    if policy.triggers is not None or not (isinstance(data, CuratedItems) or data is None):
        return subject
    if policy.tokenizer is None:
        return _with_rows(subject)
    if isinstance(data, CuratedItems) and data.spelling == "plain":
        triggers = find_triggers(policy.tokenizer, "plain")
        return dataclasses.replace(subject, policy=dataclasses.replace(policy, triggers=triggers))
    tokenizer, triggers = add_triggers(policy.tokenizer)
    needed = 1 + max(*triggers.easy, *triggers.long, *triggers.short, *triggers.answer)
    model = dataclasses.replace(policy.model, vocab_size=max(policy.model.vocab_size, needed))
    taught = dataclasses.replace(policy, model=model, tokenizer=tokenizer, triggers=triggers)
    return dataclasses.replace(subject, policy=taught)


def _with_rows(subject: Subject) -> Subject:
    """With one id for each trigger, the last ones: which they are changes no shape."""
    model = subject.model
    padded = model.vocab_size in (SMALL, LARGE)  # Qwen's tables have rows to spare
    size = model.vocab_size + (0 if padded else NUM_TRIGGERS)
    ids = range(size - NUM_TRIGGERS, size)
    easy, long, short, answer = ((i,) for i in ids)
    triggers = Triggers(spelling="added", easy=easy, long=long, short=short, answer=answer)
    policy = dataclasses.replace(
        subject.policy, model=dataclasses.replace(model, vocab_size=size), triggers=triggers
    )
    where = "in spare rows of" if padded else "as four more rows of"
    note = f"no tokenizer at hand: triggers are taken to be one token each, {where} the vocabulary"
    return Subject(policy=policy, notes=(*subject.notes, note))


def longest_prompt(cfg: GrpoRun, subject: Subject) -> tuple[int, tuple[str, ...]]:
    """(tokens of the longest prompt, what was assumed)."""
    problems = problems_of(cfg, subject)
    if problems is not None:
        return check_problems(cfg, subject.policy, problems), ()
    note = f"problems or tokenizer are not at hand: the longest prompt is taken as {PROMPT_TOKENS}"
    return PROMPT_TOKENS, (f"{note} tokens",)


def prompts_of(cfg: EvalRun, subject: Subject) -> tuple[int, int, tuple[str, ...]]:
    """(prompts of an evaluation, tokens of the longest, what was assumed)."""
    problems, tokenizer = problems_of(cfg, subject), subject.policy.tokenizer
    if problems is not None and tokenizer is not None:
        lengths = [len(request.prompt_ids) for request in ask(problems, tokenizer)]
        return len(lengths), max(lengths), ()
    note = (
        f"problems or tokenizer are not at hand: the longest prompt is taken as {PROMPT_TOKENS}"
        " tokens, and prompts as enough to keep all rows at work"
    )
    return MANY * cfg.sampling.max_rows, PROMPT_TOKENS, (note,)


def problems_of(cfg: GrpoRun | EvalRun, subject: Subject) -> list[Problem] | None:
    """A run's problems; None where they, or a tokenizer to measure them with, are not at hand."""
    if subject.policy.tokenizer is None:
        return None
    try:
        return cfg.problems.load()
    except FileNotFoundError:
        return None


def num_token_rows(cfg: SftRun | GrpoRun, subject: Subject) -> int:
    """Rows of tokens that an adapter trains beside it."""
    return len(token_ids_of(subject.policy.triggers)) if cfg.lora is not None else 0
