"""Means, intervals, ranks and pass@k against their definitions."""

import itertools
import math

import numpy as np
import pytest

from l2s_jax.evaluation import stats
from tests.evaluation.simulate import simulate_answers


def flips(share_right: float, rng: np.random.Generator, num: int = 60, seeds=(0,)) -> list:
    """Answers of mode auto, right with a fixed chance, independent of everything."""
    pool = [a for a in simulate_answers(seeds=seeds, num_per_level=10) if a["mode"] == "auto"]
    pool = [a for a in pool if int(a["id"].split("-")[-1]) < num // 6]
    return [a | {"correct": bool(rng.random() < share_right)} for a in pool]


def mean_over_seeds_by_definition(answers, value):
    seeds = sorted({a["seed"] for a in answers})
    means = []
    for seed in seeds:
        mine = [value(a) for a in answers if a["seed"] == seed]
        means.append(sum(mine) / len(mine))
    return sum(means) / len(means)


def spearman_by_definition(x, y):
    def ranks(values):
        below = [sum(other < v for other in values) for v in values]
        equal = [sum(other == v for other in values) for v in values]
        return [b + (e + 1) / 2 for b, e in zip(below, equal, strict=True)]

    rx, ry = ranks(x), ranks(y)
    mx, my = sum(rx) / len(rx), sum(ry) / len(ry)
    both = sum((a - mx) * (b - my) for a, b in zip(rx, ry, strict=True))
    return both / math.sqrt(sum((a - mx) ** 2 for a in rx) * sum((b - my) ** 2 for b in ry))


def test_mean_matches_definition_with_seeds_of_unequal_size():
    answers = [a for a in simulate_answers() if a["mode"] == "auto"]
    answers = [a for a in answers if a["seed"] != 2 or a["level"] < 5]
    for value in (stats.right, stats.tokens):
        got = stats.estimate(answers, value).mean
        assert got == pytest.approx(mean_over_seeds_by_definition(answers, value))


def test_draws_are_of_the_right_number():
    weight_RN = stats.draw_problems(7, 50, seed=0)
    assert weight_RN.shape == (50, 7)
    np.testing.assert_array_equal(weight_RN.sum(axis=1), 7)


def test_weights_repeat_problems():
    # Drawing a problem twice must equal having its answers twice.
    answers = [a for a in simulate_answers(num_per_level=2) if a["mode"] == "auto"]
    table = stats.tabulate(answers, stats.tokens)
    names = sorted({a["id"] for a in answers})
    weight = np.array([[index % 3 for index in range(len(names))]], np.float64)
    repeated = [a for a in answers for _ in range(names.index(a["id"]) % 3)]
    expected = mean_over_seeds_by_definition(repeated, stats.tokens)
    assert stats.weighted_means(*table, weight)[0] == pytest.approx(expected)


def test_interval_covers_a_binomial_share():
    # 300 experiments at a true share of 0.7: coverage of 0.95 has standard error 0.013, and the
    # percentile bootstrap of 60 flips falls short of 0.95 by about one point.
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        got = stats.estimate(flips(0.7, rng), stats.right, num_resamples=400)
        covered += got.low <= 0.7 <= got.high
    assert 0.89 <= covered / 300 <= 0.99


def test_interval_has_the_width_of_the_normal_approximation():
    answers = flips(0.8, np.random.default_rng(1))
    got = stats.estimate(answers, stats.right, num_resamples=4000)
    expected = 2 * 1.96 * math.sqrt(got.mean * (1 - got.mean) / 60)
    assert got.high - got.low == pytest.approx(expected, rel=0.1)


def test_seeds_that_agree_narrow_nothing():
    # Three seeds that answer every question alike know no more than one.
    one = flips(0.7, np.random.default_rng(2))
    three = [answer | {"seed": seed} for seed in range(3) for answer in one]
    assert stats.estimate(three, stats.right) == stats.estimate(one, stats.right)


def test_all_right_is_not_certain():
    answers = flips(1.0, np.random.default_rng(0))
    got = stats.accuracy(answers)
    assert got.mean == 1.0 and got.high == 1.0
    assert got.low == pytest.approx(0.025 ** (1 / 60))  # exact binomial, all of 60 right
    none = stats.accuracy([a | {"correct": False} for a in answers])
    assert (none.mean, none.low) == (0.0, 0.0) and none.high == pytest.approx(1 - got.low)


def test_truncated_is_wrong():
    answers = [a | {"finish_reason": "length"} for a in flips(1.0, np.random.default_rng(0))]
    assert stats.accuracy(answers).mean == 0.0


def test_pairing_narrows_the_difference():
    answers = [a for a in simulate_answers(num_per_level=40) if a["mode"] == "auto"]
    rng = np.random.default_rng(0)
    shorter = [a | {"num_tokens": a["num_tokens"] - int(rng.integers(1, 4))} for a in answers]
    got = stats.paired_difference(shorter, answers, stats.tokens)
    assert -3 < got.low < got.mean < got.high < -1
    alone = stats.estimate(answers, stats.tokens)
    assert got.high - got.low < 0.2 * (alone.high - alone.low)


def test_difference_of_other_problems_is_refused():
    answers = [a for a in simulate_answers() if a["mode"] == "auto"]
    with pytest.raises(ValueError, match=r"test-8-19.*same problems"):
        stats.paired_difference(
            answers, [a for a in answers if a["id"] != "test-8-19"], stats.right
        )


@pytest.mark.parametrize("seed", range(6))
def test_spearman_matches_definition(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 5, 12).tolist(), rng.integers(0, 5, 12).tolist()  # many ties
    assert stats.spearman(x, y) == pytest.approx(spearman_by_definition(x, y))


def test_spearman_of_a_constant_is_undefined():
    assert math.isnan(stats.spearman([1, 2, 3], [1, 1, 1]))
    assert math.isnan(stats.spearman([1], [2]))


def test_level_trend_orders_levels_as_numbers():
    by_level = {"9": {"easy_share": 0.9}, "10": {"easy_share": 0.5}, "11": {"easy_share": 0.1}}
    assert stats.level_trend(by_level, "easy_share") == pytest.approx(-1)


@pytest.mark.parametrize(("num", "right"), [(5, 0), (5, 2), (5, 4), (6, 6), (4, 1)])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_pass_at_k_matches_enumeration(num, right, k):
    samples = [1] * right + [0] * (num - right)
    subsets = list(itertools.combinations(samples, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    got = stats.pass_at_k(np.array([num]), np.array([right]), k)
    np.testing.assert_allclose(got, [expected])


def test_pass_at_more_than_was_sampled_is_refused():
    with pytest.raises(ValueError, match=r"k=4.*are 3"):
        stats.pass_at_k(np.array([8, 3]), np.array([1, 1]), 4)


def test_a_summary_has_pass_at_k_where_questions_were_sampled_more_than_once():
    answers = [a for a in simulate_answers(num_per_level=3) if a["mode"] == "auto"]
    assert "pass_at" not in stats.summarize(answers)
    rng = np.random.default_rng(0)
    many = [a | {"correct": bool(rng.random() < 0.4)} for a in answers for _ in range(5)]
    found = stats.summarize(many)["pass_at"]
    expected = {}
    for k in (2, 4):
        by_seed = []
        for seed in sorted({a["seed"] for a in many}):
            hits = []
            for id in sorted({a["id"] for a in many}):
                right = [a["correct"] for a in many if (a["id"], a["seed"]) == (id, seed)]
                hits += [any(some) for some in itertools.combinations(right, k)]
            by_seed.append(np.mean(hits))
        expected[str(k)] = np.mean(by_seed)
    assert found == pytest.approx(expected)


def test_summarize_has_the_shape_of_the_file():
    answers = [a for a in simulate_answers(num_per_level=5) if a["mode"] == "auto"]
    got = stats.summarize(answers)
    assert list(got["by_level"]) == ["3", "4", "5", "6", "7", "8"]
    fields = {"accuracy", "tokens", "accuracy_ci", "tokens_ci", "easy_share", "truncated"}
    assert fields | {"num_questions", "by_level"} == set(got)
    assert fields | {"num_questions"} == set(got["by_level"]["3"])
    assert got["num_questions"] == 30 and got["by_level"]["3"]["num_questions"] == 5
    low, high = got["tokens_ci"]
    assert low < got["tokens"] < high
    short = sum(a["route"] == "short" for a in answers) / len(answers)
    assert got["easy_share"] == pytest.approx(short)


def test_questions_without_levels_have_no_levels():
    answers = [a | {"level": None} for a in simulate_answers(num_per_level=2)]
    assert stats.summarize(answers)["by_level"] == {}


def test_nothing_to_average_is_refused():
    with pytest.raises(ValueError, match="no answers"):
        stats.summarize([])
