"""The frontier against brute force, its area against a sum over many budgets."""

import numpy as np
import pytest

from l2s_jax.evaluation.pareto import area, frontier


def beaten(i, tokens, accuracy):
    for j in range(len(tokens)):
        no_worse = tokens[j] <= tokens[i] and accuracy[j] >= accuracy[i]
        equal = tokens[j] == tokens[i] and accuracy[j] == accuracy[i]
        if no_worse and (not equal or j < i):
            return True
    return False


@pytest.mark.parametrize("seed", range(10))
def test_frontier_matches_brute_force(seed):
    rng = np.random.default_rng(seed)
    tokens, accuracy = rng.integers(1, 8, 20).astype(float), rng.integers(0, 6, 20) / 5
    kept = frontier(tokens, accuracy)
    assert set(kept.tolist()) == {i for i in range(20) if not beaten(i, tokens, accuracy)}
    assert np.all(np.diff(tokens[kept]) > 0) and np.all(np.diff(accuracy[kept]) > 0)


@pytest.mark.parametrize("seed", range(4))
def test_area_matches_a_sum_over_budgets(seed):
    rng = np.random.default_rng(seed)
    tokens, accuracy = rng.random(6) * 40, rng.random(6)
    budgets = (np.arange(20000) + 0.5) / 20000 * 30  # some points cost more than the largest
    best = [
        max([a for t, a in zip(tokens, accuracy, strict=True) if t <= b] or [0.0]) for b in budgets
    ]
    assert area(tokens, accuracy, max_tokens=30.0) == pytest.approx(np.mean(best), abs=2e-3)


def test_area_of_one_point():
    assert area(np.array([10.0]), np.array([0.8]), max_tokens=40.0) == pytest.approx(0.6)


def test_no_budget_is_refused():
    with pytest.raises(ValueError, match="max_tokens=0"):
        area(np.array([10.0]), np.array([0.8]), max_tokens=0.0)
