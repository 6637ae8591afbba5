import json
import random

import pytest

from l2s_jax.data.similar import (
    numbers,
    runs,
    shingles,
    similar_pairs,
    similarity,
    without_numbers,
    words,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How many?", "how  MANY"),
        (r"$\dfrac{1}{2}$", r"\frac{1}{2}"),
        ("1,000 two-thirds", "1000 two thirds"),
        (r"\left( x \right)", "(x)"),
        ("ﬁve ½", "five 1⁄2"),
    ],
)
def test_spellings_of_one_question(one, other):
    assert words(one) == words(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("3 + 1", "3 - 1"), ("x^2", "x2"), ("1,2", "12"), ("0.5", "5"), ("∑", "∏"), ("甲乙", "甲丙")],
)
def test_different_questions(one, other):
    assert words(one) != words(other)


def test_pieces_of_a_question():
    said = words("Tom has 3 cats and 1 dog.")
    assert numbers(said) == ("1", "3")
    assert without_numbers(said) == ("tom", "has", "#", "cats", "and", "#", "dog")
    assert runs(said, 6) == ["tom has 3 cats and 1", "has 3 cats and 1 dog"]
    assert runs(said, 8) == []
    assert shingles(("a", "b")) == {"a b"} and shingles(()) == frozenset()
    assert similarity(frozenset("abc"), frozenset("bcd")) == 0.5
    assert similarity(frozenset(), frozenset()) == 0.0


@pytest.mark.parametrize("threshold", [0.1, 1 / 3, 0.5, 0.6, 0.9, 1.0])
def test_no_similar_pair_is_missed(threshold):
    """Every pair compared, which is the definition, on sets with rare and common elements."""
    draw = random.Random(str(threshold))

    def make():
        size = draw.randrange(12)
        return frozenset(
            draw.choice("aaabbcdefghijklmnop") + draw.choice("xy") for _ in range(size)
        )

    left, right = [make() for _ in range(120)], [make() for _ in range(120)]
    expected = [
        (i, j, similarity(one, other))
        for i, one in enumerate(left)
        for j, other in enumerate(right)
        if similarity(one, other) >= threshold
    ]
    assert similar_pairs(left, right, threshold) == expected
    assert threshold > 0.6 or expected


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1])
def test_thresholds_that_mean_nothing(threshold):
    with pytest.raises(ValueError, match="threshold="):
        similar_pairs([], [], threshold)


def test_variants_of_real_questions_are_similar(shared_data):
    """GSM-Plus: GSM8K's test questions with other numbers are found, rewritten ones are not."""
    found: dict[str, list[bool]] = {}
    lines = (shared_data / "benchmarks" / "gsm_plus_testmini.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        pair = (row["question"], row["seed_question"])
        left, right = (shingles(without_numbers(words(text))) for text in pair)
        found.setdefault(row["subject"], []).append(similarity(left, right) >= 0.6)
    share = {kind: sum(flags) / len(flags) for kind, flags in found.items()}
    assert share["numerical substitution"] > 0.95
    assert share["digit expansion"] > 0.95
    assert share["problem understanding"] < 0.05  # the limit of every rule on words
