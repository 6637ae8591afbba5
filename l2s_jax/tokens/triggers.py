"""The four triggers: their names, their spelling in a tokenizer, and how to recognise them.

Lives here: `Triggers` (ids as we write them), adding them to a tokenizer, and `RouteTable`, the
automaton that finds `<EASY>` or `<LONG>` at the start of a completion however it was tokenised.
Not here: what is done when one is found (`sampling/controllers.py`), where they stand in a
training sequence (`tokens/layouts.py`).

Two spellings. *added*: each trigger is one new token. *plain*: each is a line of ordinary text.
A plain trigger ends with a newline so that we always write it with the same pieces, but a model
may close it otherwise (in Qwen2.5 the piece that holds ">" depends on what follows), so it is
recognised by its characters and not by ids.
"""

import dataclasses
import json
import pathlib
from typing import Any, Literal

import numpy as np

from l2s_jax.tokens.tokenizer import Tokenizer

EASY, LONG, SHORT, ANSWER = NAMES = ("<EASY>", "<LONG>", "<SHORT>", "<ANSWER>")
FILE = "l2s.json"

Spelling = Literal["added", "plain"]

@dataclasses.dataclass(frozen=True, kw_only=True)
class Triggers:
    """The ids that we write for each trigger."""

    spelling: Spelling
    easy: tuple[int, ...]
    long: tuple[int, ...]
    short: tuple[int, ...]
    answer: tuple[int, ...]

    def save(self, folder: str | pathlib.Path) -> None:
        (pathlib.Path(folder) / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2))


def add_triggers(tokenizer: Tokenizer) -> tuple[Tokenizer, Triggers]:
    """A copy of the tokenizer in which each trigger is one token, and their ids.

    Not "special": special tokens vanish when a caller decodes with skip_special_tokens, and the
    route would vanish with them.
    """
    from transformers import AddedToken

    grown = tokenizer.copy()
    grown.hf.add_tokens([AddedToken(name, special=False, normalized=False) for name in NAMES])
    return grown, find_triggers(grown, "added")


def find_triggers(tokenizer: Tokenizer, spelling: Spelling) -> Triggers:
    """The triggers of a tokenizer in the given spelling."""
    if spelling == "plain":
        ids = [tuple(tokenizer.encode(name + "\n")) for name in NAMES]
    else:
        vocab = tokenizer.hf.get_vocab()
        missing = [name for name in NAMES if name not in vocab]
        if missing:
            raise ValueError(
                f"the tokenizer lacks the triggers {', '.join(missing)}. Train with `l2s sft`,"
                " which adds them, or generate with mode free, which needs none."
            )
        ids = [(vocab[name],) for name in NAMES]
    return Triggers(spelling=spelling, easy=ids[0], long=ids[1], short=ids[2], answer=ids[3])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TriggerStarts:
    """Text for each trigger; its new embedding row starts as the mean of that text's rows."""

    easy: str = "easy"
    long: str = "step by step"
    short: str = "briefly"
    answer: str = "answer"

    def rows(self, before: Tokenizer, triggers: Triggers) -> dict[int, tuple[int, ...]]:
        """New id → ids of the pieces it starts from, in the tokenizer that lacks the triggers."""
        return {
            getattr(triggers, name)[0]: tuple(before.encode(getattr(self, name)))
            for name in ("easy", "long", "short", "answer")
        }


def answer_text(completion: str) -> str | None:
    """What follows the last answer trigger of a completion; None where it has none."""
    _, found, text = completion.rpartition(ANSWER)
    return text if found else None


def load_triggers(folder: str | pathlib.Path, tokenizer: Tokenizer | None) -> Triggers | None:
    """The triggers that a folder declares in `l2s.json`; None where it declares none.

    Ids that the folder's tokenizer does not share are an error: they would route on other words.
    """
    path = pathlib.Path(folder) / FILE
    if not path.exists():
        return None
    fields = json.loads(path.read_text())
    ids = {name: tuple(fields[name]) for name in ("easy", "long", "short", "answer")}
    declared = Triggers(spelling=fields["spelling"], **ids)
    if tokenizer is not None and find_triggers(tokenizer, declared.spelling) != declared:
        raise ValueError(
            f"{path} declares {declared}, but the tokenizer beside it spells the triggers"
            f" {find_triggers(tokenizer, declared.spelling)}. Restore the matching tokenizer."
        )
    return declared


# Values of `RouteTable.leads_to`: what a token does to the question "EASY or LONG?".
OFF, BOTH, TO_EASY, TO_LONG = range(4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouteTable:
    """Which trigger a completion opens with, as a table over (state, next token).

    State 0 has read nothing; the last three states are final: EASY read, LONG read, neither.
    """

    next_state: Any  # [states, V] int8
    leads_to: Any  # [states, V] int8: OFF, BOTH, TO_EASY or TO_LONG

    @property
    def num_states(self) -> int:
        return self.next_state.shape[0]


def route_table(triggers: Triggers, tokenizer: Tokenizer | None, vocab_size: int) -> RouteTable:
    """The automaton of a spelling. Plain text needs the tokenizer, to know each id's text."""
    if triggers.spelling == "added":
        # One id each: two words of one letter, which no other id can spell.
        return _automaton({triggers.easy[0]: "E", triggers.long[0]: "L"}, "E", "L", vocab_size)
    assert tokenizer is not None, "plain triggers cannot exist without a tokenizer"
    known = range(min(vocab_size, len(tokenizer.hf)))
    return _automaton({i: tokenizer.decode([i]) for i in known}, EASY, LONG, vocab_size)


def _automaton(texts: dict[int, str], easy: str, long: str, vocab_size: int) -> RouteTable:
    """Character by character: a state is what has been read of `easy` or `long`."""
    read_so_far = sorted({word[:n] for word in (easy, long) for n in range(len(word))}, key=len)
    number = {text: state for state, text in enumerate(read_so_far)}
    done_easy, done_long, off = range(len(number), len(number) + 3)
    next_state = np.full((len(number) + 3, vocab_size), off, np.int8)
    leads_to = np.full(next_state.shape, OFF, np.int8)
    next_state[done_easy], next_state[done_long] = done_easy, done_long
    letters = set(easy + long)
    for token, text in texts.items():
        if not text or text[0] not in letters:
            continue  # most of a vocabulary cannot extend a trigger
        for before, state in number.items():
            after = before + text
            if after.startswith(easy):
                next_state[state, token], leads_to[state, token] = done_easy, TO_EASY
            elif after.startswith(long):
                next_state[state, token], leads_to[state, token] = done_long, TO_LONG
            elif after in number:
                next_state[state, token] = number[after]
                leads_to[state, token] = (
                    BOTH
                    if easy.startswith(after) and long.startswith(after)
                    else TO_EASY if easy.startswith(after) else TO_LONG
                )
    return RouteTable(next_state=next_state, leads_to=leads_to)
