"""Which trigger a completion opens with, however it was tokenised.

Lives here: `RouteTable`, an automaton over ids. Not here: the triggers themselves
(`tokens/triggers.py`), what is done when one is found (`sampling/controllers`).

An added trigger is one id. A plain one is recognised by its characters, not by the ids with which
we write it: in Qwen2.5 the piece that closes `<EASY>` is ">", ">\\n", "><" or another, depending
on what the model means to write next.
"""

import dataclasses
from typing import Any

import numpy as np

from l2s_jax.tokens.tokenizer import Tokenizer
from l2s_jax.tokens.triggers import EASY, LONG, SHORT, Triggers

# Values of `RouteTable.leads_to`: what a token says to the question "EASY or LONG?".
OFF, BOTH, TO_EASY, TO_LONG = range(4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouteTable:
    """A table over (state, next token). State 0 has read nothing.

    A state stands for the characters read so far. The last three are final: EASY read, LONG read,
    neither possible any more.
    """

    next_state: Any  # [states, V] int8
    leads_to: Any  # [states, V] int8: OFF, BOTH, TO_EASY or TO_LONG
    undecided: Any  # [states] bool, True where what was read may still become either
    holds_next: Any  # [V] bool, True where the piece that closes a trigger opens another ("><")
    rest_of_short: tuple[int, ...]  # the short trigger behind such a piece


def route_table(triggers: Triggers, tokenizer: Tokenizer | None, vocab_size: int) -> RouteTable:
    """The automaton of a spelling. Plain text needs the tokenizer, to know each id's text."""
    highest = max(*triggers.easy, *triggers.long, *triggers.short, *triggers.answer)
    if highest >= vocab_size:
        raise ValueError(
            f"trigger id {highest} is outside the model's vocabulary of {vocab_size} rows: l2s.json"
            " and tokenizer belong to other weights. Restore those that were saved together."
        )
    if triggers.spelling == "added":
        # One id each: two words of one letter, which no other id can spell.
        texts = {triggers.easy[0]: "E", triggers.long[0]: "L"}
        return _automaton(texts, "E", "L", triggers, (), vocab_size)
    if tokenizer is None:
        raise ValueError(
            "triggers of plain text are recognised by a tokenizer; give the policy one."
        )
    texts = {i: tokenizer.decode([i]) for i in range(min(vocab_size, len(tokenizer.hf)))}
    rest = tuple(tokenizer.encode(SHORT[1:] + "\n"))
    return _automaton(texts, EASY, LONG, triggers, rest, vocab_size)


def _automaton(
    texts: dict[int, str],
    easy: str,
    long: str,
    triggers: Triggers,
    rest_of_short: tuple[int, ...],
    vocab_size: int,
) -> RouteTable:
    """Character by character: a state is what has been read of `easy` or `long`."""
    read_so_far = sorted({word[:n] for word in (easy, long) for n in range(len(word))}, key=len)
    number = {text: state for state, text in enumerate(read_so_far)}
    done_easy, done_long, off = range(len(number), len(number) + 3)
    next_state = np.full((len(number) + 3, vocab_size), off, np.int8)
    next_state[done_easy], next_state[done_long] = done_easy, done_long
    leads_to = np.full(next_state.shape, OFF, np.int8)
    holds_next = np.zeros(vocab_size, bool)
    letters = set(easy + long)
    for token, text in texts.items():
        if not text or text[0] not in letters:
            continue  # most of a vocabulary cannot extend a trigger
        holds_next[token] = text.endswith(">" + SHORT[0])
        for before, state in number.items():
            after = before + text
            if after.startswith(easy):
                next_state[state, token], leads_to[state, token] = done_easy, TO_EASY
            elif after.startswith(long):
                next_state[state, token], leads_to[state, token] = done_long, TO_LONG
            elif after in number:
                next_state[state, token] = number[after]
                leads_to[state, token] = _speaks_for(after, easy, long)
    _part_ways(next_state, leads_to, triggers)
    shared = [easy.startswith(text) and long.startswith(text) for text in read_so_far]
    return RouteTable(
        next_state=next_state,
        leads_to=leads_to,
        undecided=np.asarray([*shared, False, False, False]),
        holds_next=holds_next,
        rest_of_short=rest_of_short,
    )


def _speaks_for(text: str, easy: str, long: str) -> int:
    if easy.startswith(text):
        return BOTH if long.startswith(text) else TO_EASY
    return TO_LONG


def _part_ways(next_state: np.ndarray, leads_to: np.ndarray, triggers: Triggers) -> None:
    """Where our two spellings part, the token of each speaks for its own route.

    By its characters alone it may not: Qwen2.5 writes `<EASY>` with the piece "<E" and `<LONG>`
    with "<", which could still become `<EASY>`, but hardly does in a model that learnt from us.
    Without this the mass on "<" would count for neither route, and p(EASY) be 1.
    """
    state = 0
    for easy, long in zip(triggers.easy, triggers.long, strict=False):
        if easy != long:
            leads_to[state, easy], leads_to[state, long] = TO_EASY, TO_LONG
            return
        state = next_state[state, easy]
