"""Verdicts that are made as rollouts come: the same, whenever that is, and given up at once."""

import itertools

import pytest

from l2s_jax.training.judging import Judging
from l2s_jax.training.rollouts import judge
from l2s_jax.verify.math import Verifier
from tests.training.tiny import made_up

REFERENCES = {"a": "4", "b": r"\frac{1}{2}"}


def answered(name, sample, answer):
    return made_up(sample, name, 2, 3 + sample, sample=sample, text=f"<LONG> <ANSWER> {answer}")


@pytest.mark.parametrize("cuts", [(0, 4), (0, 1, 3), (0,)])
def test_verdicts_are_those_of_all_at_once(cuts):
    """Some are taken early, in any order; the rest with the last question."""
    answers = {"a": ("4", "5", "2+2"), "b": ("0.5", "2^{-1}", "1/3")}
    rollouts = [
        answered(n, s, text) for n, texts in answers.items() for s, text in enumerate(texts)
    ]
    with Verifier(1, 30.0) as verifier:
        with Judging(REFERENCES, verifier) as judging:
            for begin, end in itertools.pairwise(cuts):
                judging.take(rollouts[begin:end][::-1])
            got = judging.verdicts(rollouts, lambda: None)
        assert got == judge(rollouts, REFERENCES, verifier)
    assert True in got and False in got


def test_who_leaves_ends_the_work():
    """A tower of powers has a worker for ten minutes; nobody waits for it."""

    def leave():
        raise KeyboardInterrupt

    tower = answered("b", 0, "9^{9^{9^{9}}}")
    with Verifier(1, 600.0) as verifier:
        with pytest.raises(KeyboardInterrupt), Judging(REFERENCES, verifier) as judging:
            judging.verdicts([tower], leave)
        assert judge([answered("a", 0, "2+2")], REFERENCES, verifier) == [True]
