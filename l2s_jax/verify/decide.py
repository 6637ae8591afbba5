"""One decision: two texts in, equivalent or not and why out; None where algebra must decide.

Lives here: the order of things, cheapest first, and the readings of a text that has two. Not here:
the rules (`verify/compare.py`), processes and time (`verify/math.py`, `verify/worker.py`).

Reasons: same-text, numeric, structure, symbolic (equivalent); different, unparsable, no-answer (not
equivalent); timeout, crashed and bad-input come from those who call this. "numeric" is exact
rational equality.
"""

import functools
import re

from l2s_jax.verify.answers import final_answer, has_box
from l2s_jax.verify.compare import Judge, Plain, same
from l2s_jax.verify.exact import MAX_CHARACTERS, exact
from l2s_jax.verify.normal import spell
from l2s_jax.verify.policy import Policy
from l2s_jax.verify.prose import stated_answer
from l2s_jax.verify.shapes import Group, Value, read
from l2s_jax.verify.units import split_unit

MAX_ANSWER = 5000
"""Characters. A longer text is no answer; one that copies its gold is accepted as the same text."""

DEFAULT = Policy()
PLAIN = Plain()

MAX_BARE = 80  # characters of a number that needs no spelling

_FRAC = re.compile(r"\\[dt]frac")
_INTEGER = re.compile(r"-?\d{1,300}", re.ASCII)
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+", re.ASCII)

Decision = tuple[bool, str]


def decide(
    gold: str, prediction: str | None, policy: Policy = DEFAULT, judge: Judge = PLAIN
) -> Decision | None:
    """(equivalent, reason); None where the judge at hand cannot tell."""
    if prediction is None or not prediction.strip():
        return False, "no-answer"
    if gold == prediction:
        return True, "same-text"
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(prediction):
        return (True, "numeric") if int(gold) == int(prediction) else (False, "different")
    found = _answer_in(prediction, policy)
    reference = _answer_in(gold, policy)
    if found is None or reference is None:
        return False, "no-answer" if found is None else "unparsable"
    if max(len(reference), len(found)) > MAX_ANSWER or "\0" in reference or "\0" in found:
        return False, "unparsable"
    decision = _as_bare_numbers(reference, found, policy)
    if decision is not None:
        return decision
    one, other = _spelled(reference), _spelled(found)
    if one == other and one:
        return True, "same-text"
    decision = _as_numbers(one, other, policy)
    return decision or _as_shapes(one, other, policy, judge)


def _answer_in(text: str, policy: Policy) -> str | None:
    if policy.answers == "lenient":
        return stated_answer(text)
    return final_answer(text) if "boxed" in text and has_box(text) else text


@functools.lru_cache(maxsize=4096)
def _spelled(text: str) -> str:
    return spell(text)


@functools.lru_cache(maxsize=4096)
def readings(text: str) -> tuple:
    """The nodes that a text may mean, the likeliest first; ValueError where it means nothing."""
    body, unit = split_unit(text)
    if _THOUSANDS.fullmatch(body):  # 1,234: one number, or else two
        return Value(body, unit), read(text)
    if _DECIMAL_COMMA.fullmatch(text):
        return read(text), Value(text.replace(",", "."))
    return (read(text),)


def _as_bare_numbers(gold: str, prediction: str, policy: Policy) -> Decision | None:
    """As `_as_numbers`, for what needs no spelling: most answers, at a fifth of the time."""
    if max(len(gold), len(prediction)) > MAX_BARE or "," in gold or "," in prediction:
        return None
    one, other = (_FRAC.sub(r"\\frac", text.strip("$ ")) for text in (gold, prediction))
    return _as_numbers(one, other, policy)


def _as_numbers(gold: str, prediction: str, policy: Policy) -> Decision | None:
    """Where both are numbers without a unit; all else is left to shapes."""
    if max(len(gold), len(prediction)) > MAX_CHARACTERS:
        return None
    values = exact(gold), exact(prediction)
    if values[0] is None or values[1] is None:
        return None
    close = abs(values[0] - values[1]) <= policy.tolerance * abs(values[0])
    if close:
        return True, "numeric"
    plain = not (_THOUSANDS.fullmatch(gold) or _THOUSANDS.fullmatch(prediction))
    return (False, "different") if plain else None


def _as_shapes(gold: str, prediction: str, policy: Policy, judge: Judge) -> Decision | None:
    try:
        golds, predictions = readings(gold), readings(prediction)
    except (ValueError, RecursionError):
        return False, "unparsable"
    unsure = False
    for one in golds:
        for other in predictions:
            if not _may_meet(one, other, golds, predictions, policy):
                continue
            answer = same(one, other, policy, judge)
            if answer:
                return True, "structure" if judge is PLAIN else "symbolic"
            unsure |= answer is None
    return None if unsure else (False, "different")


def _may_meet(one, other, golds: tuple, predictions: tuple, policy: Policy) -> bool:
    """False for the second reading of a text where the other side gives no reason for it."""
    if one is golds[0] and other is predictions[0]:
        return True
    if isinstance(one, Group) and isinstance(other, Group):
        return True  # a list beside a list
    if isinstance(one, Value) and isinstance(other, Value):
        if (one is golds[0]) == (other is predictions[0]):
            return False  # 3,4 beside 3,40: two lists, if they are not two large numbers
        first = other if other is predictions[0] else one
        return policy.decimal_comma and "." in first.text
    return False
