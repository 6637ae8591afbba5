"""Which items are held out of training; pure.

Lives here: the choice by an item's id, so that it depends on no other item and on no order: more
items, or fewer, move none from one side to the other. Not here: what is done with those held out
(`training/validation.py`).
"""

import hashlib
from collections.abc import Iterable

from l2s_jax.tokens.layouts import Example


def is_held_out(id: str, *, fraction: float, seed: int) -> bool:
    """True for about `fraction` of all ids."""
    digest = hashlib.sha256(f"{seed}/{id}".encode()).digest()
    return int.from_bytes(digest[:8]) < fraction * 2**64


def split(
    examples: Iterable[Example], *, fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(kept, held out), each in the order given."""
    kept: list[Example] = []
    held_out: list[Example] = []
    for one in examples:
        (held_out if is_held_out(one.id, fraction=fraction, seed=seed) else kept).append(one)
    return kept, held_out
