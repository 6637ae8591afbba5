"""Means, intervals and trends of answers.

Lives here: accuracy and mean tokens with bootstrap intervals, paired differences, rank
correlation, pass@k, and the summary of one mode of one stage. Not here: the summary of a whole
run (`summary`), routing errors and calibration (`calibration`), the frontier (`pareto`).

What is resampled: problems. All answers to one problem id, whatever seed, sample or mode they come
from, enter or leave a resample together, because a hard question is hard for every seed; within
each seed the drawn answers are averaged, and seeds weigh the same. A paired difference draws the
same problems on both sides. The seeds themselves are not resampled (three say nothing about their
own spread), so an interval speaks of other questions, not of other training runs.

Shape letters: N problems, R resamples, Z seeds.
Source: percentile bootstrap of Efron and Tibshirani (1993), chapters 6 and 13; pass@k of Chen
et al. (2021), arXiv 2107.03374, eq. 1.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from l2s_jax.evaluation.records import Answer, group_by, is_right, is_short

CONFIDENCE = 0.95
NUM_RESAMPLES = 1000

Value = Callable[[Answer], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds with its interval."""

    mean: float
    low: float
    high: float

    @property
    def ci(self) -> list[float]:
        return [self.low, self.high]


def right(answer: Answer) -> float:
    """1 for a right answer, else 0."""
    return float(is_right(answer))


def tokens(answer: Answer) -> float:
    """Generated tokens of the answer."""
    return float(answer["num_tokens"])


def draw_problems(num_problems: int, num_resamples: int, seed: int) -> Float[np.ndarray, "R N"]:
    """How often each resample draws each problem; a row sums to `num_problems`."""
    rng = np.random.default_rng(seed)
    drawn_RN = rng.integers(0, num_problems, (num_resamples, num_problems))
    flat = (drawn_RN + num_problems * np.arange(num_resamples)[:, None]).ravel()
    counts = np.bincount(flat, minlength=num_resamples * num_problems)
    return counts.reshape(num_resamples, num_problems).astype(np.float64)


def tabulate(
    answers: Sequence[Answer], value: Value
) -> tuple[Float[np.ndarray, "Z N"], Float[np.ndarray, "Z N"]]:
    """Sum of `value` and number of answers, by seed and problem (both in sorted order)."""
    seed_row = {seed: row for row, seed in enumerate(sorted({a["seed"] for a in answers}))}
    column = {name: index for index, name in enumerate(sorted({a["id"] for a in answers}))}
    sum_ZN = np.zeros((len(seed_row), len(column)))
    count_ZN = np.zeros_like(sum_ZN)
    for answer in answers:
        at = seed_row[answer["seed"]], column[answer["id"]]
        sum_ZN[at] += value(answer)
        count_ZN[at] += 1
    return sum_ZN, count_ZN


def weighted_means(
    sum_ZN: Float[np.ndarray, "Z N"],
    count_ZN: Float[np.ndarray, "Z N"],
    weight_RN: Float[np.ndarray, "R N"],
) -> Float[np.ndarray, " R"]:
    """Mean over seeds of each seed's mean value, under each row of problem weights."""
    sum_RZ, count_RZ = weight_RN @ sum_ZN.T, weight_RN @ count_ZN.T
    # A seed that shares no problem with a resample has no mean there; the other seeds speak.
    seen_RZ = count_RZ > 0
    mean_RZ = np.where(seen_RZ, sum_RZ, 0.0) / np.where(seen_RZ, count_RZ, 1.0)
    return mean_RZ.sum(axis=1) / np.maximum(seen_RZ.sum(axis=1), 1)


def estimate(
    answers: Sequence[Answer], value: Value, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean of `value` with its bootstrap interval."""
    _check_any(answers)
    table = tabulate(answers, value)
    num_problems = table[0].shape[1]
    mean = weighted_means(*table, np.ones((1, num_problems)))
    low, high = _interval(weighted_means(*table, draw_problems(num_problems, num_resamples, seed)))
    return Estimate(mean=float(mean[0]), low=low, high=high)


def accuracy(answers: Sequence[Answer]) -> Estimate:
    """Share of right answers with its interval.

    Where all answers are right, or all wrong, no resample varies and the bootstrap would claim
    certainty; the exact binomial interval over the problems stands in.
    """
    share = estimate(answers, right)
    if share.mean not in (0.0, 1.0):
        return share
    num_problems = len({answer["id"] for answer in answers})
    import scipy.stats  # slow to import: whoever only reads a summary must not pay

    exact = scipy.stats.binomtest(int(share.mean) * num_problems, num_problems)
    low, high = exact.proportion_ci(CONFIDENCE, method="exact")
    return Estimate(mean=share.mean, low=float(low), high=float(high))


def paired_difference(
    ours: Sequence[Answer],
    theirs: Sequence[Answer],
    value: Value,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of `value` over `ours` less that over `theirs`, both on the same drawn problems."""
    _check_same_problems(ours, theirs)
    table, other = tabulate(ours, value), tabulate(theirs, value)
    num_problems = table[0].shape[1]
    once_1N = np.ones((1, num_problems))
    weight_RN = draw_problems(num_problems, num_resamples, seed)
    mean = weighted_means(*table, once_1N) - weighted_means(*other, once_1N)
    low, high = _interval(weighted_means(*table, weight_RN) - weighted_means(*other, weight_RN))
    return Estimate(mean=float(mean[0]), low=low, high=high)


def spearman(x_N: Sequence[float | int], y_N: Sequence[float | int]) -> float:
    """Rank correlation, ties at their mean rank; nan where a side is constant or has one value."""
    if len(set(x_N)) < 2 or len(set(y_N)) < 2:
        return float("nan")
    import scipy.stats

    # Pearson on the ranks; scipy's p-value is not asked for, six levels have none worth reading.
    return float(np.corrcoef(scipy.stats.rankdata(x_N), scipy.stats.rankdata(y_N))[0, 1])


def level_trend(by_level: Mapping[str, Mapping[str, Any]], field: str) -> float:
    """Spearman correlation of `field` with the level, over the levels of one summary entry."""
    return spearman([float(level) for level in by_level], [by_level[k][field] for k in by_level])


def pass_at_k(
    num_samples_N: Int[np.ndarray, " N"], num_right_N: Int[np.ndarray, " N"], k: int
) -> Float[np.ndarray, " N"]:
    """Unbiased chance, for each problem, that k of its samples hold a right one."""
    short_N = np.flatnonzero(num_samples_N < k)
    if k < 1 or short_N.size:
        fewest = int(num_samples_N.min()) if num_samples_N.size else 0
        raise ValueError(
            f"pass_at_k: k={k} while the fewest samples of a problem are {fewest}. Choose k from 1"
            " to that number, or draw more samples."
        )
    # 1 - C(n-c, k) / C(n, k) as a product of k factors: no factorial, no overflow.
    draw_k1 = np.arange(k)[:, None]
    wrong_N = num_samples_N - num_right_N
    miss_kN = np.clip((wrong_N - draw_k1) / (num_samples_N - draw_k1), 0.0, 1.0)
    return 1.0 - miss_kN.prod(axis=0)


def summarize(answers: Sequence[Answer]) -> dict[str, Any]:
    """One entry of `summary.json`: the answers of one mode of one stage, whole and by level."""
    whole = _describe(answers)
    levels = group_by((a for a in answers if a["level"] is not None), lambda a: a["level"])
    return whole | {"by_level": {str(k): _describe(levels[k]) for k in sorted(levels)}}


def _describe(answers: Sequence[Answer]) -> dict[str, Any]:
    share, length = accuracy(answers), estimate(answers, tokens)
    more = {"pass_at": found} if (found := passes(answers)) else {}
    return {
        "accuracy": share.mean,
        "tokens": length.mean,
        "accuracy_ci": share.ci,
        "tokens_ci": length.ci,
        "easy_share": _share(answers, is_short),
        "truncated": _share(answers, lambda answer: answer["finish_reason"] == "length"),
        "num_questions": len({answer["id"] for answer in answers}),
    } | more


def passes(answers: Sequence[Answer]) -> dict[str, float]:
    """pass@k for k = 2, 4 and so on up to the samples of a question; mean over seeds."""
    by_seed = group_by(answers, lambda answer: answer["seed"])
    counts = []
    for ours in by_seed.values():
        samples = group_by(ours, lambda answer: answer["id"]).values()
        num = np.array([len(group) for group in samples])
        counts.append((num, np.array([sum(a["correct"] for a in group) for group in samples])))
    fewest = min(num.min() for num, _ in counts)
    ks = [1 << n for n in range(1, int(fewest).bit_length())]
    return {
        str(k): float(np.mean([pass_at_k(num, right, k).mean() for num, right in counts]))
        for k in ks
    }


def _share(answers: Sequence[Answer], holds: Callable[[Answer], bool]) -> float:
    """Mean over seeds of the share of answers for which `holds` is True."""
    table = tabulate(answers, lambda answer: float(holds(answer)))
    return float(weighted_means(*table, np.ones((1, table[0].shape[1])))[0])


def _interval(draws_R: Float[np.ndarray, " R"]) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws_R, [tail, 1 - tail])
    return float(low), float(high)


def _check_any(answers: Sequence[Answer]) -> None:
    if not answers:
        raise ValueError(
            "no answers to average: this stage and mode has no records. Run `l2s eval` for it, or"
            " leave it out."
        )


def _check_same_problems(ours: Sequence[Answer], theirs: Sequence[Answer]) -> None:
    _check_any(ours)
    _check_any(theirs)
    apart = sorted({a["id"] for a in ours} ^ {a["id"] for a in theirs})
    if apart:
        raise ValueError(
            f"paired difference: {len(apart)} problems were answered on one side only, the first is"
            f" id={apart[0]!r}. Evaluate both on the same problems."
        )
