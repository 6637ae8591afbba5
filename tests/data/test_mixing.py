"""Batches of a given share of EASY rows: exact in the long run, and the same when resumed."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from l2s_jax.data.mixing import Mix, MixedBatches
from l2s_jax.tokens.layouts import assemble

LENGTH, ROWS = 12, 4


def make_examples(num_easy=30, num_regular=50):
    rng = np.random.default_rng(0)
    found = []
    for n in range(num_easy + num_regular):
        tokens = rng.integers(2, 30, rng.integers(2, 9)).tolist()
        example = assemble(f"x{n}", [1], [[(tokens, 1.0)]])
        found.append(dataclasses.replace(example, easy=n < num_easy, decision=0))
    return found


def make_batches(seed=0):
    return MixedBatches(make_examples(), row_length=LENGTH, batch_rows=ROWS, seed=seed)


def shares(batches, mix, steps):
    """EASY rows of each batch, and the mix after them."""
    counts = []
    for step in range(steps):
        batch, mix = batches.draw(step, mix)
        real = batch.segment_ids > 0
        easy_R = (batch.easy & real).any(axis=1)
        np.testing.assert_array_equal(easy_R, np.where(real, batch.easy, True).all(axis=1))
        counts.append(int(easy_R.sum()))
    return counts, mix


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 0.9, 1.0])
def test_a_share_is_kept(share):
    counts, mix = shares(make_batches(), Mix(easy_share=share), 50)
    by_hand, owed = [], 0.0
    for _ in range(50):
        owed += share * ROWS
        by_hand.append(int(owed))
        owed -= int(owed)
    assert counts == by_hand and abs(sum(counts) - share * 50 * ROWS) <= 1
    assert (mix.easy_rows, mix.regular_rows) == (sum(counts), 50 * ROWS - sum(counts))


def test_it_begins_with_the_share_that_there_is():
    batches = make_batches()
    start = batches.start()
    assert 0 < start.easy_share < 1 and batches.fill > 0.8
    counts, _ = shares(batches, start, batches.num_rows // ROWS)
    assert abs(sum(counts) / (ROWS * len(counts)) - start.easy_share) < 1 / len(counts)


def test_every_row_of_a_kind_comes_before_any_comes_again():
    batches, mix = make_batches(), Mix(easy_share=1.0)
    rows = []
    while len(rows) < 2 * batches._easy.__len__():
        batch, mix = batches.draw(0, mix)
        rows += [row.tobytes() for row in np.concatenate([batch.tokens, batch.targets], axis=1)]
    size = len(batches._easy)
    assert set(Counter(rows[:size]).values()) == {1}
    assert set(rows[size : 2 * size]) == set(rows[:size]) and rows[size : 2 * size] != rows[:size]


def test_a_mix_from_a_record_goes_on_bit_for_bit():
    batches, mix = make_batches(), make_batches().start()
    for step in range(7):
        _, mix = batches.draw(step, mix)
        mix = dataclasses.replace(mix, easy_share=mix.easy_share * 0.93)
    found = Mix.from_record(json.loads(json.dumps(dataclasses.asdict(mix))))
    assert found == mix and found.owed != 0
    again = make_batches()  # another process
    for step in range(7, 12):
        (want, mix), (got, found) = batches.draw(step, mix), again.draw(step, found)
        np.testing.assert_array_equal(got.tokens, want.tokens)
        assert found == mix


@pytest.mark.parametrize(("easy", "regular"), [(30, 0), (0, 50)])
def test_one_kind_alone_is_no_mix(easy, regular):
    with pytest.raises(ValueError, match=f"{easy} EASY items and {regular} regular"):
        MixedBatches(make_examples(easy, regular), row_length=LENGTH, batch_rows=ROWS, seed=0)
