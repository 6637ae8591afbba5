"""What a prompt asks for beside its question: a level of brevity, or a number of tokens.

Lives here: who is asked for what, in which words. Not here: what it is worth to obey
(`objectives/rewards.py`, `objectives/budgets.py`), sampling (`sampling`).

All samples of a prompt are asked for the same, or they could not be compared. What is asked is a
pure function of (seed, step, problem). The words are configuration: `{question}` and `{budget}`
stand for what they name, and all else is sent as it is.
"""

import dataclasses
import zlib
from collections.abc import Iterable

import numpy as np

from l2s_jax.objectives.budgets import Curriculum, L1Exact, L1Max, Triangle
from l2s_jax.objectives.objective import Objective
from l2s_jax.objectives.rewards import Tldr
from l2s_jax.sampling.requests import Knobs, Request, SamplingConfig, ask
from l2s_jax.tokens.tokenizer import Tokenizer
from l2s_jax.types import Problem

THINK_FOR = "{question}\n\nThink for {budget} tokens."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A problem as it is put to the policy."""

    problem: Problem
    question: str
    level: int = 0  # of brevity, from 1; 0 where none is asked for
    max_tokens: int = 0  # that it is told; 0 where it is told none
    limit: int | None = None  # tokens at which the sampler ends it; None is the run's


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskLevels:
    """One of several levels of brevity for each prompt, as likely as another: TLDR."""

    words: tuple[str, ...] = (  # from long to short, as in `Tldr.penalties`
        "{question}\n\nThink at length.",
        "{question}\n\nThink to the point.",
        "{question}\n\nThink as briefly as you can.",
    )

    def __post_init__(self):
        for words in self.words:
            _check_words("AskLevels.words", words, "{question}")
        if len(set(self.words)) < len(self.words) or not self.words:
            raise ValueError(f"AskLevels.words={self.words}: every level needs words of its own.")

    def at(self, problem: Problem, step: int, rng: np.random.Generator) -> Asked:
        """What a problem becomes in a step."""
        level = int(rng.integers(len(self.words))) + 1
        question = _put(self.words[level - 1], problem.question)
        return Asked(problem=problem, question=question, level=level)

    def questions(self, problem: Problem, num_steps: int) -> list[str]:
        """All that it may become."""
        return [_put(words, problem.question) for words in self.words]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskBudget:
    """A number of tokens for each prompt, drawn evenly from `low` to `high`: L1."""

    low: int = 100
    high: int = 4000
    words: str = THINK_FOR
    cut: bool = False  # the sampler ends a rollout at its budget; else it may go on and pay

    def __post_init__(self):
        _check_words("AskBudget.words", self.words, "{question}", "{budget}")
        if not 1 <= self.low <= self.high:
            raise ValueError(
                f"AskBudget.low={self.low}, AskBudget.high={self.high}: tokens, at least 1, and no"
                " more at the low end than at the high one."
            )

    def at(self, problem: Problem, step: int, rng: np.random.Generator) -> Asked:
        """What a problem becomes in a step."""
        budget = int(rng.integers(self.low, self.high + 1))
        return _asked(problem, budget, self.words, self.cut)

    def questions(self, problem: Problem, num_steps: int) -> list[str]:
        """The longest that it may become: the greatest number of each number of digits."""
        nines = [10**n - 1 for n in range(len(str(self.low)), len(str(self.high)))]
        return [_put(self.words, problem.question, n) for n in (self.low, *nines, self.high)]

    @property
    def most(self) -> int:
        return self.high


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskCurriculum:
    """One number of tokens for all prompts of a step, which shrinks: Train Long, Think Short."""

    curriculum: Curriculum = Curriculum()
    words: str = THINK_FOR
    cut: bool = False  # the sampler ends a rollout at its budget; else it may go on and pay

    def __post_init__(self):
        _check_words("AskCurriculum.words", self.words, "{question}", "{budget}")

    def at(self, problem: Problem, step: int, rng: np.random.Generator) -> Asked:
        """What a problem becomes in a step."""
        return _asked(problem, self.curriculum.at(step), self.words, self.cut)

    def questions(self, problem: Problem, num_steps: int) -> list[str]:
        """All that it may become."""
        budgets = {self.curriculum.at(step) for step in range(num_steps)}
        return [_put(self.words, problem.question, budget) for budget in sorted(budgets)]

    @property
    def most(self) -> int:
        return self.curriculum.first


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskNothing:
    """The question alone."""

    def at(self, problem: Problem, step: int, rng: np.random.Generator) -> Asked:
        """The problem as it is."""
        return Asked(problem=problem, question=problem.question)

    def questions(self, problem: Problem, num_steps: int) -> list[str]:
        """All that it may become."""
        return [problem.question]


Asking = AskNothing | AskLevels | AskBudget | AskCurriculum


def ask_step(asking: Asking, problems: Iterable[Problem], *, seed: int, step: int) -> list[Asked]:
    """What each problem is asked for in a step, whichever others are asked with it."""

    def rng(problem: Problem) -> np.random.Generator:
        return np.random.default_rng((seed, step, zlib.crc32(problem.id.encode())))

    return [asking.at(problem, step, rng(problem)) for problem in problems]


def make_requests(asked: list[Asked], tokenizer: Tokenizer, num_samples: int) -> list[Request]:
    """The prompts' ids, with a bound of their own where one was set."""
    texts = [dataclasses.replace(one.problem, question=one.question) for one in asked]
    return [
        dataclasses.replace(request, knobs=(Knobs(max_new_tokens=one.limit),) * num_samples)
        for request, one in zip(ask(texts, tokenizer), asked, strict=True)
    ]


def check_asking(asking: Asking, preset: Objective, sampling: SamplingConfig) -> None:
    """Refuses an objective that rewards what nobody is asked for, and budgets out of reach."""
    reward, name = preset.reward, type(preset.reward).__name__
    levels = len(asking.words) if isinstance(asking, AskLevels) else 0
    if isinstance(reward, Tldr) and levels != len(reward.penalties):
        raise ValueError(
            f"GrpoRun.asking={asking}: the reward {name} has {len(reward.penalties)} levels of"
            " brevity, which the prompts must ask for. Set asking to AskLevels with words for"
            " each, from long to short."
        )
    has_budgets = isinstance(asking, AskBudget | AskCurriculum)
    if isinstance(reward, L1Exact | L1Max | Triangle) and not has_budgets:
        raise ValueError(
            f"GrpoRun.asking={asking}: the reward {name} holds lengths against a budget that"
            " the prompts must tell. Set asking to AskBudget or AskCurriculum."
        )
    if isinstance(asking, AskBudget | AskCurriculum) and asking.most > sampling.max_new_tokens:
        raise ValueError(
            f"GrpoRun.asking asks for up to {asking.most} tokens, but sampling.max_new_tokens="
            f"{sampling.max_new_tokens} ends every rollout before. Lower one, or raise the other."
        )


def _asked(problem: Problem, budget: int, words: str, cut: bool) -> Asked:
    return Asked(
        problem=problem,
        question=_put(words, problem.question, budget),
        max_tokens=budget,
        limit=budget if cut else None,
    )


def _put(words: str, question: str, budget: int | None = None) -> str:
    # The question last: whatever it holds is no place for a number.
    if budget is not None:
        words = words.replace("{budget}", str(budget))
    return words.replace("{question}", question)


def _check_words(field: str, words: str, *places: str) -> None:
    missing = [place for place in places if words.count(place) != 1]
    if missing:
        raise ValueError(
            f"{field}={words!r}: {' and '.join(missing)} must stand in it once. For example"
            f" {THINK_FOR!r}."
        )
