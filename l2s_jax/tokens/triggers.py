"""The four triggers: their names, and their spelling in a tokenizer.

Lives here: `Triggers` (ids as we write them), adding them to a tokenizer, the file that declares
them. Not here: how they are recognised however a model spells them (`tokens/automaton.py`), what
is done then (`sampling/controllers`), their place in a training sequence (`tokens/layouts.py`).

Two spellings. *added*: each trigger is one new token. *plain*: each is a line of ordinary text,
with its newline, so that we always write it with the same pieces.
"""

import dataclasses
import json
import pathlib
from typing import Literal, get_args

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

    def __post_init__(self):
        ids = (self.easy, self.long, self.short, self.answer)
        if not all(ids) or len(set(ids)) < len(ids):
            raise ValueError(f"{self}: every trigger needs ids of its own, at least one.")

    @property
    def fork(self) -> int:
        """Which id of `<EASY>` or `<LONG>` tells the two apart; those before it are the same."""
        pairs = zip(self.easy, self.long, strict=False)
        fork = next((k for k, (easy, long) in enumerate(pairs) if easy != long), None)
        assert fork is not None, f"{self}: one trigger opens the other"
        return fork

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
        for name, pieces in zip(NAMES, ids, strict=True):
            if tokenizer.decode(pieces) != name + "\n":
                raise ValueError(
                    f"the tokenizer cannot spell the trigger {name} as plain text: it reads"
                    f" {tokenizer.decode(pieces)!r}. Use the spelling added."
                )
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
    """Text for each trigger; its new embedding row starts as the mean of that text's rows.

    An empty text starts the row as the mean of all rows: no meaning, and no token's neighbour.
    """

    easy: str = "easy"
    long: str = "step by step"
    short: str = "briefly"
    answer: str = "answer"

    def rows(self, before: Tokenizer, triggers: Triggers) -> dict[int, tuple[int, ...]]:
        """New id → ids of the pieces it starts from, in the tokenizer that lacks the triggers.

        No pieces for an empty text; `model/vocab.py` takes that for the mean of all rows.
        """
        return {
            getattr(triggers, name)[0]: tuple(before.encode(getattr(self, name)))
            for name in ("easy", "long", "short", "answer")
        }


def refuse_triggers(id: str, texts: dict[str, str]) -> None:
    """An error where a text of a problem spells a trigger: it would be read as one.

    Args:
      texts: field → text that a tokenizer is about to encode.
    """
    for field, text in texts.items():
        found = [name for name in NAMES if name in text]
        if found:
            raise ValueError(
                f"{id!r}: its {field} holds {', '.join(found)}, which the tokenizer would read as a"
                " trigger. Write it another way, for instance in lower case."
            )


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
    declared = _read_declared(path)
    if tokenizer is None:
        if declared.spelling == "plain":
            raise ValueError(
                f"{path} spells the triggers as plain text, which takes a tokenizer to recognise,"
                " and the folder has none. Copy the model's tokenizer files there."
            )
        return declared
    spelt = find_triggers(tokenizer, declared.spelling)
    if spelt != declared:
        raise ValueError(
            f"{path} declares {declared}, but the tokenizer beside it spells the triggers"
            f" {spelt}. Restore the matching tokenizer."
        )
    return declared


def _read_declared(path: pathlib.Path) -> Triggers:
    try:
        fields = json.loads(path.read_text())
        if fields["spelling"] not in get_args(Spelling):
            raise ValueError(f"spelling={fields['spelling']!r} is none of {get_args(Spelling)}")
        ids = {name: tuple(map(int, fields[name])) for name in ("easy", "long", "short", "answer")}
        return Triggers(spelling=fields["spelling"], **ids)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no declaration of triggers ({type(error).__name__}: {error}). It has the"
            " fields spelling, easy, long, short and answer; export the model again."
        ) from error
