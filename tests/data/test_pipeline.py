"""Batches by step: every row once per epoch, in an order that seed and epoch name."""

from collections import Counter

import numpy as np
import pytest

from l2s_jax.data.pipeline import Batches, Rows, in_turn
from l2s_jax.tokens.layouts import assemble

LENGTH, ROWS = 16, 4


def make_examples(number=60, seed=0):
    rng = np.random.default_rng(seed)
    return [
        assemble(f"x{n}", [1], [[(rng.integers(2, 30, rng.integers(2, 12)).tolist(), 1.0)]])
        for n in range(number)
    ]


def make_batches(seed=0, number=60):
    return Batches(make_examples(number), row_length=LENGTH, batch_rows=ROWS, seed=seed)


def names(batch):
    return [row.tobytes() for row in np.concatenate([batch.tokens, batch.targets], axis=1)]


def all_rows():
    """Every row once: those of the first epoch."""
    rows = Rows(make_examples(), row_length=LENGTH, seed=0)
    return [rows[number] for number in range(len(rows))]


def first_rows(batches, epochs):
    """The rows of the first epochs, in order."""
    number = epochs * batches.num_rows
    steps = -(-number // ROWS)
    return [name for step in range(steps) for name in names(batches[step])][:number]


def test_each_row_once_per_epoch_in_another_order():
    batches = make_batches()
    rows = first_rows(batches, 3)
    size = batches.num_rows
    epochs = [rows[start : start + size] for start in range(0, 3 * size, size)]
    every = Counter(np.concatenate([row["tokens"], row["targets"]]).tobytes() for row in all_rows())
    assert [Counter(epoch) for epoch in epochs] == [every] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_every_token_of_every_example_is_there():
    examples = make_examples()
    batches = make_batches()
    tokens = np.concatenate([row["tokens"][row["segment_ids"] > 0] for row in all_rows()])
    assert Counter(tokens.tolist()) == Counter(t for e in examples for t in e.tokens.tolist())
    assert batches.fill == len(tokens) / (batches.num_rows * LENGTH)
    assert batches.fill > 0.9


def test_a_batch_is_a_function_of_seed_and_step():
    batches, again = make_batches(), make_batches()
    for step in (7, 0, 7, 3, 500):  # whatever was asked for before
        for field in (
            "tokens",
            "targets",
            "weights",
            "positions",
            "segment_ids",
            "branches",
            "easy",
            "routing",
        ):
            np.testing.assert_array_equal(
                getattr(batches[step], field), getattr(again[step], field)
            )
    assert names(make_batches(seed=1)[0]) != names(batches[0])


def test_the_denominator_is_the_weight_of_the_whole_batch():
    batch = make_batches()[2]
    assert batch.num_tokens == batch.weights.sum() > 0
    assert batch.tokens.shape == (ROWS, LENGTH)


def test_too_little_and_too_long_are_refused():
    with pytest.raises(ValueError, match=r"fewer than one batch of 4\. Lower batch_rows"):
        make_batches(number=3)
    with pytest.raises(ValueError, match=r"x0 \(20\)"):
        Batches([assemble("x0", [1], [[([2] * 20, 1.0)]])], row_length=16, batch_rows=1, seed=0)


def test_drawing_is_asking_by_step():
    batches = make_batches()
    mix = batches.start()
    for step in range(3):
        batch, mix = batches.draw(step, mix)
        assert names(batch) == names(batches[step]) and mix is None


@pytest.mark.parametrize("number", [3, 60])
def test_in_turn_every_example_comes_once(number):
    examples = make_examples(number)
    found = list(in_turn(examples, row_length=LENGTH, batch_rows=ROWS))
    assert {batch.tokens.shape for batch in found} == {(ROWS, LENGTH)}
    tokens = np.concatenate([batch.tokens[batch.segment_ids > 0] for batch in found])
    assert Counter(tokens.tolist()) == Counter(t for e in examples for t in e.tokens.tolist())
    assert sum(float(b.num_tokens) for b in found) == sum(e.weights.sum() for e in examples)
    again = list(in_turn(examples, row_length=LENGTH, batch_rows=ROWS))
    assert [names(batch) for batch in again] == [names(batch) for batch in found]
    with pytest.raises(ValueError, match="longer than row_length=2"):
        list(in_turn(examples, row_length=2, batch_rows=1))
