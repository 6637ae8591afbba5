"""Switching errors, oracle and calibration error against loops."""

import itertools
import math

import numpy as np
import pytest

from l2s_jax.evaluation import calibration
from l2s_jax.evaluation.records import group_by, is_right
from tests.evaluation.simulate import simulate_answers


def simulated_modes(**kwargs):
    return group_by(simulate_answers(**kwargs), lambda answer: answer["mode"])


def error_by_definition(p_easy, right, num_bins):
    total = 0.0
    for k in range(num_bins):
        low, high = k / num_bins, (k + 1) / num_bins
        inside = [
            i for i, p in enumerate(p_easy) if low <= p < high or (k == num_bins - 1 and p == 1)
        ]
        if inside:
            gap = sum(p_easy[i] for i in inside) - sum(right[i] for i in inside)
            total += abs(gap)
    return total / len(p_easy)


@pytest.mark.parametrize("seed", range(4))
def test_error_matches_definition(seed):
    rng = np.random.default_rng(seed)
    p_easy, right = rng.random(50), rng.random(50) < 0.6
    p_easy[:2] = 0.0, 1.0
    bins = calibration.reliability(p_easy, right, num_bins=7)
    assert sum(one.count for one in bins) == 50
    expected = error_by_definition(p_easy, right, 7)
    assert calibration.calibration_error(bins) == pytest.approx(expected)


def test_perfect_and_worst_router():
    certain = np.array([0.0, 1.0, 1.0])
    bins = calibration.reliability(certain, np.array([False, True, True]))
    assert calibration.calibration_error(bins) == 0.0
    bins = calibration.reliability(certain, np.array([True, False, False]))
    assert calibration.calibration_error(bins) == 1.0


def test_no_gate_has_no_error():
    bins = calibration.reliability(np.zeros(0), np.zeros(0, bool))
    assert all(one.count == 0 and math.isnan(one.p_easy) for one in bins)
    assert math.isnan(calibration.calibration_error(bins))


def test_p_easy_outside_is_refused():
    with pytest.raises(ValueError, match=r"p_easy=1\.2"):
        calibration.reliability(np.array([0.5, 1.2]), np.array([True, True]))


def test_every_case_has_one_name():
    kinds = {}
    for routed_short, short_right, long_right in itertools.product([True, False], repeat=3):
        case = calibration.Case(
            routed_short=routed_short, short_right=short_right, long_right=long_right
        )
        kinds[routed_short, short_right, long_right] = case.kind
    assert kinds.pop((True, False, True)) == "false-easy"
    assert kinds.pop((False, True, True)) == kinds.pop((False, True, False)) == "missed-easy"
    assert kinds.pop((True, False, False)) == kinds.pop((False, False, False)) == "hopeless"
    assert set(kinds.values()) == {"harmless"}


def test_counts_and_oracle_match_loops():
    modes = simulated_modes(num_per_level=10)
    switches = calibration.pair(modes)
    by_key = {mode: {(a["seed"], a["id"]): a for a in answers} for mode, answers in modes.items()}
    false_easy, oracle_right, oracle_tokens = 0, 0, 0
    for key, auto in by_key["auto"].items():
        short, long = by_key["force-short"][key], by_key["force-long"][key]
        false_easy += auto["route"] == "short" and not is_right(short) and is_right(long)
        right = [a["num_tokens"] for a in (short, long) if is_right(a)]
        oracle_right += bool(right)
        oracle_tokens += min(right or [short["num_tokens"], long["num_tokens"]])
    kinds = calibration.count_kinds(switches)
    assert kinds["false-easy"] == false_easy
    assert sum(kinds.values()) == sum(calibration.count_cases(switches).values()) == len(switches)
    oracle = calibration.routed_by_oracle(switches)
    assert oracle.accuracy == pytest.approx(oracle_right / len(switches))
    assert oracle.tokens == pytest.approx(oracle_tokens / len(switches))


def test_no_routing_beats_the_oracle():
    switches = calibration.pair(simulated_modes())
    oracle, model = calibration.routed_by_oracle(switches), calibration.routed_by_model(switches)
    assert oracle.accuracy >= model.accuracy


def test_pairs_by_seed_and_sample():
    modes = simulated_modes(num_per_level=2)
    twice = {mode: [*answers, *answers] for mode, answers in modes.items()}
    assert len(calibration.pair(twice)) == 2 * len(calibration.pair(modes))
    assert all(
        switch.auto["seed"] == switch.long["seed"] and switch.auto["id"] == switch.short["id"]
        for switch in calibration.pair(modes)
    )


def test_missing_question_is_named():
    modes = simulated_modes(num_per_level=2)
    modes["force-short"] = modes["force-short"][:-1]
    with pytest.raises(ValueError, match=r"'force-short' lacks 1 of 36.*test-8-1.*seed 2"):
        calibration.pair(modes)
    assert calibration.pair_stages({"sft": modes}) == {}


def test_gates_leave_out_what_chose_nothing():
    modes = simulated_modes(num_per_level=2)
    modes["auto"][0]["p_easy"] = None
    p_easy_N, right_N = calibration.judged_gates(calibration.pair(modes))
    assert len(p_easy_N) == len(right_N) == len(modes["auto"]) - 1
