r"""How alike two questions are; pure.

Lives here: a question as comparable words, its shingles (runs of words), and the pairs of sets
that share enough of them. Not here: what is done with questions that are alike
(`curation/hygiene.py`).

The pairs are exact, not sampled as MinHash does: two sets of Jaccard similarity t or more share
one of the rarest `len - ceil(t * len) + 1` elements of each (Chaudhuri and others 2006; Bayardo
and others 2007), so that only those are looked up. 8,792 GSM8K questions against each other take
about a second.
"""

import collections
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

Shingles = frozenset[str]

_WORD = re.compile(  # scripts without spaces by character
    r"\d+(?:\.\d+)?|[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+|[-+*/^=<>%!|]"
)
_SPELLING = (  # what copies of a question differ in, apart from spaces and letter case
    (re.compile(r"\\(?:left|right|displaystyle|quad|[,;:!])(?![a-z])"), " "),
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=[a-z]{2})-(?=[a-z]{2})"), " "),
)


def words(question: str) -> tuple[str, ...]:
    r"""Letters, numbers and operators in order, in one spelling.

    Layout, dollars, braces and full stops go; "1,000" is "1000", "\dfrac" is "frac". A sign
    between numbers stays, so that "3 + 1" and "3 - 1" differ.
    """
    question = unicodedata.normalize("NFKC", question).casefold()
    for pattern, replacement in _SPELLING:
        question = pattern.sub(replacement, question)
    # A question of other signs altogether is compared by all of them.
    return tuple(_WORD.findall(question)) or tuple(question.split())


def numbers(words: Iterable[str]) -> tuple[str, ...]:
    """The numbers of a question, sorted; the same in another order is the same."""
    return tuple(sorted(word for word in words if word[0].isdigit()))


def without_numbers(words: Iterable[str]) -> tuple[str, ...]:
    """The words with one sign for every number: what two fillings of a template share."""
    return tuple("#" if word[0].isdigit() else word for word in words)


def runs(words: Sequence[str], length: int) -> list[str]:
    """Every run of so many words, in order; none where there are fewer words."""
    return [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)]


def shingles(words: Sequence[str], length: int = 3) -> Shingles:
    """The set of runs; of fewer words, the whole."""
    return frozenset(runs(words, min(length, max(len(words), 1))))


def similarity(left: Shingles, right: Shingles) -> float:
    """Jaccard: what both hold, as a share of what either holds."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared) if shared else 0.0


def similar_pairs(
    left: Sequence[Shingles], right: Sequence[Shingles], threshold: float
) -> list[tuple[int, int, float]]:
    """(i, j, similarity) of every pair that reaches the threshold, in order of i and j."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: a similarity is above 0 and at most 1.")
    count = collections.Counter(one for sets in (left, right) for held in sets for one in held)
    places: dict[str, list[int]] = collections.defaultdict(list)
    for j, held in enumerate(right):
        for one in _rarest(held, count, threshold):
            places[one].append(j)
    pairs = []
    for i, held in enumerate(left):
        near = {j for one in _rarest(held, count, threshold) for j in places.get(one, ())}
        for j in sorted(near):
            value = similarity(held, right[j])
            if value >= threshold:
                pairs.append((i, j, value))
    return pairs


def _rarest(held: Shingles, count: collections.Counter[str], threshold: float) -> list[str]:
    """Enough of a set that another, of the threshold's similarity, cannot do without all."""
    # A product a little above a whole number would be rounded up and leave out one too many.
    must_share = math.ceil(threshold * len(held) - 1e-9)
    return sorted(held, key=lambda one: (count[one], one))[: len(held) - must_share + 1]
