"""Examples into rows: nothing lost, nothing over-full, little wasted."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2s_jax.data.packing import build_row, pack, refuse_overlong
from l2s_jax.tokens.layouts import assemble


def first_fit(lengths, row_length):
    """Each in the first row with room, in the order given."""
    rooms = []
    for length in lengths:
        for row, room in enumerate(rooms):
            if room >= length:
                rooms[row] -= length
                break
        else:
            rooms.append(row_length - length)
    return len(rooms)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=60))
def test_every_example_is_in_one_row_that_holds_it(lengths):
    rows = pack(lengths, 40)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= 40 for row in rows)
    # Two rows that would fit in one would be a fault of any fitting heuristic.
    filled = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(filled) < 2 or filled[0] + filled[1] > 40


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("low", [1, 10, 60])
def test_no_more_rows_than_first_fit(seed, low):
    lengths = np.random.default_rng(seed).integers(low, 129, 300).tolist()
    rows = pack(lengths, 128)
    assert len(rows) <= first_fit(lengths, 128)
    assert pack(lengths, 128) == rows


def test_a_full_row_takes_no_more():
    assert pack([4, 4, 4], 4) == [[0], [1], [2]]
    assert pack([], 4) == []


def example(name, size):
    return assemble(name, [7], [[([8] * size, 1.0)]])  # `size` tokens are read


def test_overlong_examples_are_listed():
    refuse_overlong([example("a", 4), example("b", 4)], 4)
    with pytest.raises(ValueError, match=r"1 of 2 .* row_length=4 tokens: b \(6\)\. .* to 6"):
        refuse_overlong([example("a", 4), example("b", 6)], 4)
    many = [example(f"x{n}", 5) for n in range(13)]
    with pytest.raises(ValueError, match=r"13 of 13 .* x9 \(5\) and 3 more\."):
        refuse_overlong(many, 4)


def test_a_row_holds_its_examples_and_nothing_else():
    forked = assemble("f", [1, 2], [[([3, 4], 1.0)], [([5, 6, 7], 2.0)]])
    forked = dataclasses.replace(forked, easy=True, decision=1)
    row = build_row([example("a", 2), forked], 9)
    assert row["tokens"].tolist() == [7, 8, 1, 2, 3, 5, 6, 0, 0]
    assert row["targets"].tolist() == [8, 8, 2, 3, 4, 6, 7, 0, 0]
    assert row["weights"].tolist() == [1, 1, 0, 1, 1, 2, 2, 0, 0]
    assert row["positions"].tolist() == [0, 1, 0, 1, 2, 2, 3, 0, 0]
    assert row["segment_ids"].tolist() == [1, 1, 2, 2, 2, 2, 2, 0, 0]
    assert row["branches"].tolist() == [0, 0, 0, 0, 1, 2, 2, 0, 0]
    assert np.flatnonzero(row["easy"]).tolist() == [2, 3, 4, 5, 6]
    assert np.flatnonzero(row["routing"]).tolist() == [3]
