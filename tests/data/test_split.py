"""Which items are held out: a matter of their ids alone."""

import numpy as np
import pytest

from l2s_jax.data.split import is_held_out, split
from l2s_jax.tokens.layouts import assemble


def examples(ids):
    return [assemble(id, [1], [[([2, 3], 1.0)]]) for id in ids]


def ids_of(side):
    return [example.id for example in side]


@pytest.mark.parametrize("fraction", [0.01, 0.3])
def test_about_the_fraction_is_held_out(fraction):
    held = sum(is_held_out(f"x{n}", fraction=fraction, seed=0) for n in range(20_000))
    spread = np.sqrt(20_000 * fraction * (1 - fraction))
    assert abs(held - 20_000 * fraction) < 4 * spread
    assert not is_held_out("x", fraction=0.0, seed=0) and is_held_out("x", fraction=1.0, seed=0)


def test_an_item_keeps_its_side_whatever_the_others_are():
    ids = [f"x{n}" for n in range(400)]
    kept, held = split(examples(ids), fraction=0.2, seed=0)
    assert sorted(ids_of(kept) + ids_of(held)) == sorted(ids) and kept and held
    assert ids_of(held) == [id for id in ids if id in set(ids_of(held))]  # in the order given
    backwards = split(examples(ids[::-2]), fraction=0.2, seed=0)[1]
    assert set(ids_of(backwards)) == set(ids_of(held)) & set(ids[::-2])
    # A larger fraction only adds; another seed is another choice.
    assert set(ids_of(held)) < set(ids_of(split(examples(ids), fraction=0.4, seed=0)[1]))
    assert set(ids_of(held)) != set(ids_of(split(examples(ids), fraction=0.2, seed=1)[1]))
