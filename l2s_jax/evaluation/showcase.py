"""Which answers the report prints in full, and how one is printed.

Lives here: the choice of answers and their markup. Not here: the other sections (`report`), the
elements (`page`).

The choice is by a hash of the question's id and seed: the same on every run, and nobody's taste.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from l2s_jax.evaluation import page
from l2s_jax.evaluation.calibration import Switch
from l2s_jax.evaluation.records import MODES, Answer, in_order, is_right

_NUM_WRONG = 2  # of each mode
_NUM_RIGHT = 1
_NUM_FALSE_EASY = 2  # of each stage
_MAX_CHARACTERS = 6000


def wrong_shares(modes: Mapping[str, Sequence[Answer]]) -> str:
    """The share of wrong answers in each mode, in words."""
    shares = {
        mode: sum(not is_right(answer) for answer in modes[mode]) / len(modes[mode])
        for mode in in_order(modes, MODES)
    }
    return ", ".join(f"{page.percent(share)} in {mode}" for mode, share in shares.items())


def stage_markup(modes: Mapping[str, Sequence[Answer]], switches: Sequence[Switch]) -> str:
    """False-easy questions with both their paths, then wrong and right answers of each mode."""
    false_easy = [switch for switch in switches if switch.case.kind == "false-easy"]
    shown = picked([switch.auto for switch in false_easy], _NUM_FALSE_EASY)
    parts = [_false_easy_markup(false_easy, shown)]
    for mode in in_order(modes, MODES):
        wrong = picked(
            [a for a in modes[mode] if not is_right(a) and all(a is not seen for seen in shown)],
            _NUM_WRONG,
        )
        right = picked([a for a in modes[mode] if is_right(a)], _NUM_RIGHT)
        parts.append(page.text("h3", f"Mode {mode}"))
        if not wrong:
            parts.append(page.missing("No other wrong answer in this mode."))
        parts += [answer_markup(answer) for answer in (*wrong, *right)]
    return "".join(parts)


def picked(answers: Iterable[Answer], count: int) -> list[Answer]:
    """The first `count` answers in the order of their hashes."""
    return sorted(answers, key=_hash_of)[:count]


def answer_markup(answer: Answer) -> str:
    """One answer: verdict, facts, prediction against reference, and the whole text."""
    right = is_right(answer)
    if answer["finish_reason"] == "length":
        verdict = page.pill("✗ cut off", "bad")
    else:
        verdict = page.pill("✓ right", "good") if right else page.pill("✗ wrong", "bad")
    said = "no answer found" if answer["prediction"] is None else f"answered {answer['prediction']}"
    lines = [
        page.wrap("div", f"{verdict} {page.text('small', _facts(answer))}"),
        page.text("div", f"{said}, reference {answer['reference']}"),
        page.text("pre", _shortened(answer["text"])),
    ]
    if "question" in answer:
        lines.insert(1, page.text("div", answer["question"]))
    return page.wrap("div", "".join(lines), f"answer {'right' if right else 'wrong'}")


def _false_easy_markup(false_easy: Sequence[Switch], shown: Sequence[Answer]) -> str:
    if not false_easy:
        return ""
    title = f"False-easy: {len(false_easy)} questions sent short that only the long path answers"
    parts = [page.text("h3", title)]
    for auto in shown:
        long = next(switch.long for switch in false_easy if switch.auto is auto)
        parts += [answer_markup(auto), answer_markup(long)]
    return "".join(parts)


def _facts(answer: Answer) -> str:
    level = "" if answer["level"] is None else f"level {answer['level']} · "
    p_easy = "" if answer["p_easy"] is None else f" · p(EASY) {answer['p_easy']:.3f}"
    where = f"{answer['mode']} · {answer['id']} · seed {answer['seed']}"
    return f"{where} · {level}route {answer['route']}{p_easy} · {answer['num_tokens']} tokens"


def _shortened(text: str) -> str:
    rest = len(text) - _MAX_CHARACTERS
    return (
        f"{text[:_MAX_CHARACTERS]}\n[{rest} more characters in the records]" if rest > 0 else text
    )


def _hash_of(answer: Answer) -> str:
    return hashlib.sha256(f"{answer['seed']} {answer['id']}".encode()).hexdigest()
