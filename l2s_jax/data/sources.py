"""Where problems and prompts come from, and what curation asks of teachers.

Lives here: problem sets; prompt files of `l2s generate`; the `Teachers` protocol that curation
asks. Not here: JSON lines (`data/jsonl.py`), recorded traces (`data/recorded.py`), the arithmetic
world (`data/arithmetic.py`), curated items (`data/store.py`).
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from l2s_jax.data.fields import claim_id, not_empty, problem_of, text_of
from l2s_jax.data.jsonl import Fault, Ids, read_jsonl
from l2s_jax.data.similar import words
from l2s_jax.data.store import read_items
from l2s_jax.types import Problem, Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What a source holds and `load` did not take."""

    faults: Sequence[Fault] = ()  # lines that nobody can read, each named
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)  # sound, but of no use


@runtime_checkable
class Teachers(Protocol):
    """A long and a short teacher on the same problems. Correctness is never taken from them."""

    def load(self) -> list[Problem]:
        """The problems, in a fixed order."""
        ...

    def left_out(self) -> LeftOut:
        """What its files hold beside them."""
        ...

    def long(self, problem: Problem) -> Trace | None:
        """The long teacher's text; None where it has none."""
        ...

    def short_candidates(self, problem: Problem, k: int) -> list[Trace]:
        """At most `k` trials of the terse teacher; a larger `k` only adds to them."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlProblems:
    """A problem set in JSON lines. The fields name the file's fields."""

    path: str
    id: str = "id"
    question: str = "question"
    answer: str = "answer"
    level: str | None = "level"  # None: read no levels; a line without the field has none
    limit: int | None = None  # the first so many
    exclude: str | None = None  # a curation's workdir; questions of its items are left out

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"JsonlProblems.limit={self.limit}: give at least 1, or null for all.")

    def load(self) -> list[Problem]:
        ids, problems, num_excluded = Ids(self.path), [], 0
        excluded = self._excluded()
        for line, record in read_jsonl(self.path):
            if self.limit is not None and len(problems) == self.limit:
                break
            id = claim_id(ids, record, self.id, line)
            fields = {"question": self.question, "answer": self.answer, "level": self.level}
            problem = problem_of(record, id, f"{self.path}:{line} ({id})", **fields)
            if words(problem.question) in excluded:
                num_excluded += 1
            else:
                problems.append(problem)
        if self.exclude is not None:
            told = f"{len(problems)} problems, {num_excluded} left out as items of {self.exclude}"
            print(f"{self.path}: {told}", file=sys.stderr)
        if num_excluded and not problems:
            raise ValueError(
                f"{self.path}: every problem is an item of exclude={self.exclude}."
                " Give other problems, or exclude=null."
            )
        return not_empty(problems, self.path)

    def _excluded(self) -> set[tuple[str, ...]]:
        if self.exclude is None:
            return set()
        return {words(item.question) for item in read_items(pathlib.Path(self.exclude) / "items")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """One line of a prompt file; exactly one of the last four is given."""

    id: str
    question: str | None = None  # goes through the chat template
    messages: tuple[dict[str, str], ...] | None = None  # so do these: role and content
    prompt: str | None = None  # raw text
    token_ids: tuple[int, ...] | None = None


PROMPT_FORMS = ("question", "messages", "prompt", "token_ids")


def read_prompts(path: str | pathlib.Path) -> list[PromptSpec]:
    """The prompts of a JSON-lines file, in its order."""
    ids, prompts = Ids(path), []
    for line, record in read_jsonl(path):
        id = claim_id(ids, record, "id", line)
        where = f"{path}:{line} ({id})"
        given = [form for form in PROMPT_FORMS if record.get(form) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{where}: has {' and '.join(given) or 'none'} of {', '.join(PROMPT_FORMS)}."
                " Give exactly one."
            )
        prompts.append(PromptSpec(id=id, **{given[0]: _prompt(record, given[0], where)}))
    return not_empty(prompts, path)


def _prompt(record: dict[str, Any], form: str, where: str) -> Any:
    if form in ("question", "prompt"):
        return text_of(record, form, where)
    value = record[form]
    check = _is_message if form == "messages" else _is_token_id
    if not isinstance(value, list) or not value or not all(map(check, value)):
        shape = '[{"role": "user", "content": "..."}]' if form == "messages" else "[9707, 11]"
        raise ValueError(f"{where}: {form}={str(value)[:80]} must look like {shape}.")
    return tuple(value)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(field), str) for field in ("role", "content")
    )


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
