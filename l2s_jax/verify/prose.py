r"""The lenient search: the answer that a text states without a box. Pure strings.

Lives here: what a reader would take for the answer of a sentence, in this order: the boxes, what
follows "answer is", the last formula or number. Not here: the strict rule, which is the default
everywhere (`verify/answers.py`).

For recorded texts and other graders' test files only. As a reward it would pay for any number at a
text's end.
"""

import re

from l2s_jax.verify.answers import final_answer, has_box

_ANCHOR = re.compile(r"(?:final\s+)?answer(?:\s+is)?\s*:?|answer\s+is", re.IGNORECASE)
_FORMULA = re.compile(  # of bounded length: openings that nothing closes would cost their square
    r"\$\$(?P<a>.{1,1000}?)\$\$|\\\[(?P<b>.{1,1000}?)\\\]|\\\((?P<c>.{1,1000}?)\\\)"
    r"|(?<!\\)\$(?P<d>[^$\n]{1,1000}?)(?<!\\)\$",
    re.DOTALL,
)
_BARE = re.compile(
    r"\[[^\[\]]{1,40}\]|\((?=[A-J]\))[A-J]\)"
    r"|(?<![\w.,/^])-?[$€£]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?(?:\s*(?:%|percent\b))?"
)
_JOINT = re.compile(r"[\s,;]*(?:and|or)?[\s,;]*")
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|\n\s*\n")
_PLAIN_WORD = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z']{2,}")
MIN_PROSE_WORDS = 3


def stated_answer(text: str) -> str | None:
    """The answer of a text, box or not; None where it states none."""
    text = text.replace(r"\\boxed", r"\boxed")
    if has_box(text):
        return final_answer(text)
    anchors = list(_ANCHOR.finditer(text))
    if anchors:
        rest = text[anchors[-1].end() :]
        end = _sentence_end(rest)
        found = _last_candidate(rest[:end]) or rest[:end].strip(" :.")
        if found:
            return found
    outside = _FORMULA.sub(" ", text)
    if outside != text or len(_PLAIN_WORD.findall(outside)) >= MIN_PROSE_WORDS:
        return _last_candidate(text)
    return text.strip() or None


def _sentence_end(text: str) -> int:
    formulas = [match.span() for match in _FORMULA.finditer(text)]
    for stop in _SENTENCE_END.finditer(text):
        if not any(start < stop.start() < end for start, end in formulas):
            return stop.start()
    return len(text)


def _last_candidate(text: str) -> str | None:
    """The last formula or number, with those that a comma or "and" ties to it."""
    found = [(m.start(), m.end(), next(filter(None, m.groups()))) for m in _FORMULA.finditer(text)]
    covered = [span[:2] for span in found]
    for match in _BARE.finditer(text):
        if not any(start <= match.start() < end for start, end in covered):
            found.append((match.start(), match.end(), match[0]))
    found.sort()
    if not found:
        return None
    start, _, answer = found.pop()
    while found and _JOINT.fullmatch(text, found[-1][1], start):
        start, _, before = found.pop()
        answer = f"{before}, {answer}"
    return answer.strip()
