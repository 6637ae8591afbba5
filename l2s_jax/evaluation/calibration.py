"""Whether the router knows what it does: p(EASY) against the truth, and its errors by kind.

Lives here: pairing the answers of several modes to one question, reliability bins and their
error, the table of switching errors, the oracle router. Not here: the figure (`plots`), means and
intervals (`stats`).

A question is paired by seed and id; where it was sampled several times, first with first.
Shape letters: N questions.
Source: the kinds of error are those of the paper's digest (methods.md a.8, test 6); calibration
error as in Guo et al. (2017), arXiv 1706.04599, with bins of equal width.
"""

import collections
import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from l2s_jax.evaluation.records import Answer, is_right, is_short

_JUDGED = ("auto", "force-long", "force-short")

ErrorKind = Literal["false-easy", "missed-easy", "harmless", "hopeless"]
ERROR_KINDS: tuple[ErrorKind, ...] = ("false-easy", "missed-easy", "harmless", "hopeless")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """The questions whose p(EASY) lies in [low, high); the last bin holds 1 too."""

    low: float
    high: float
    count: int
    p_easy: float  # mean; nan where the bin is empty
    short_right: float  # share whose short path is right; nan where the bin is empty


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A choice of route and which path would have been right."""

    routed_short: bool  # False for the long path and for a route without trigger
    short_right: bool
    long_right: bool

    @property
    def kind(self) -> ErrorKind:
        """The name of the choice.

        false-easy: sent short, only the long path is right; costs an answer. missed-easy: kept
        long although the short path is right; costs tokens. hopeless: neither path is right,
        routing cannot help. harmless: all else.
        """
        if not (self.short_right or self.long_right):
            return "hopeless"
        if self.routed_short:
            return "harmless" if self.short_right else "false-easy"
        return "missed-easy" if self.short_right else "harmless"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switch:
    """One question in the three modes that judge the router."""

    auto: Answer
    long: Answer  # forced
    short: Answer  # forced

    @property
    def case(self) -> Case:
        return Case(
            routed_short=is_short(self.auto),
            short_right=is_right(self.short),
            long_right=is_right(self.long),
        )

    @property
    def oracle(self) -> Answer:
        """The shortest right one of the two paths; the shorter one where neither is right."""
        return min(self.short, self.long, key=lambda a: (not is_right(a), a["num_tokens"]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routed:
    """What a way of routing gives, mean over questions."""

    accuracy: float
    tokens: float
    short_share: float


def pair(modes: Mapping[str, Sequence[Answer]]) -> list[Switch]:
    """Every question with its answers in the modes auto, force-long and force-short.

    Questions that lack one of the three are an error: a table over a part would look like the
    whole.
    """
    by_mode = {name: _by_question(modes.get(name, ())) for name in _JUDGED}
    keys = set().union(*by_mode.values())
    for name, answers in by_mode.items():
        if lacking := sorted(keys - set(answers), key=str):
            seed, problem, _ = lacking[0]
            raise ValueError(
                f"routing table: mode {name!r} lacks {len(lacking)} of {len(keys)} questions, the"
                f" first is id={problem!r} of seed {seed}. Evaluate the three modes"
                " auto, force-long and force-short on the same problems."
            )
    auto, long, short = (by_mode[name] for name in _JUDGED)
    return [Switch(auto=auto[key], long=long[key], short=short[key]) for key in auto]


def pair_stages(
    stages: Mapping[str, Mapping[str, Sequence[Answer]]],
) -> dict[str, list[Switch]]:
    """Stage → its paired questions, for the stages whose three modes cover the same questions."""
    return {stage: pair(modes) for stage, modes in stages.items() if _covers_alike(modes)}


def count_cases(switches: Iterable[Switch]) -> collections.Counter[Case]:
    """Number of questions in each case."""
    return collections.Counter(switch.case for switch in switches)


def count_kinds(switches: Iterable[Switch]) -> dict[ErrorKind, int]:
    """Number of questions of each kind; every kind is there."""
    counts = collections.Counter(switch.case.kind for switch in switches)
    return {kind: counts[kind] for kind in ERROR_KINDS}


def routed_by_model(switches: Sequence[Switch]) -> Routed:
    """The score of the model's own routes."""
    return _routed([switch.auto for switch in switches])


def routed_by_oracle(switches: Sequence[Switch]) -> Routed:
    """The score of taking, for each question, the shortest right one of the same two paths."""
    return _routed([switch.oracle for switch in switches])


def judged_gates(
    switches: Iterable[Switch],
) -> tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """p(EASY) of every question whose route was the model's choice, and: was its short path right?

    Questions that opened with neither trigger have no p(EASY) and are left out; compare N.
    """
    gated = [switch for switch in switches if switch.auto["p_easy"] is not None]
    p_easy_N = np.array([switch.auto["p_easy"] for switch in gated], np.float64)
    return p_easy_N, np.array([is_right(switch.short) for switch in gated], bool)


def reliability(
    p_easy_N: Float[np.ndarray, " N"], short_right_N: Bool[np.ndarray, " N"], *, num_bins: int = 10
) -> list[Bin]:
    """Bins of equal width over p(EASY), empty ones included."""
    if outside := [p for p in p_easy_N.tolist() if not 0 <= p <= 1]:
        raise ValueError(
            f"reliability: p_easy={outside[0]:g} is no probability. Records hold p(EASY) against"
            " p(LONG), normalised over the two."
        )
    edges = np.linspace(0, 1, num_bins + 1)
    bin_N = np.minimum(np.digitize(p_easy_N, edges[1:]), num_bins - 1)
    return [
        _fill_bin(edges[k], edges[k + 1], p_easy_N[bin_N == k], short_right_N[bin_N == k])
        for k in range(num_bins)
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: mean over questions of |p(EASY) - share right| of their bin."""
    filled = [one for one in bins if one.count]
    total = sum(one.count for one in filled)
    if not total:
        return float("nan")
    return sum(one.count * abs(one.p_easy - one.short_right) for one in filled) / total


def _routed(chosen: Sequence[Answer]) -> Routed:
    return Routed(
        accuracy=float(np.mean([is_right(answer) for answer in chosen])),
        tokens=float(np.mean([answer["num_tokens"] for answer in chosen])),
        short_share=float(np.mean([is_short(answer) for answer in chosen])),
    )


def _covers_alike(modes: Mapping[str, Sequence[Answer]]) -> bool:
    auto, long, short = (_by_question(modes.get(mode, ())).keys() for mode in _JUDGED)
    return bool(auto) and auto == long == short


def _by_question(answers: Iterable[Answer]) -> dict[tuple[int, str, int], Answer]:
    seen: collections.Counter[Hashable] = collections.Counter()
    keyed = {}
    for answer in answers:
        question = (answer["seed"], answer["id"])
        keyed[*question, seen[question]] = answer
        seen[question] += 1
    return keyed


def _fill_bin(low: float, high: float, p_easy_N: np.ndarray, short_right_N: np.ndarray) -> Bin:
    count = len(p_easy_N)
    return Bin(
        low=float(low),
        high=float(high),
        count=count,
        p_easy=float(p_easy_N.mean()) if count else float("nan"),
        short_right=float(short_right_N.mean()) if count else float("nan"),
    )
