"""Who sees whom in a pass over whole sequences, in two numbers a token.

Lives here: the record `Seen` and its definition, `visible`. Not here: attention that obeys it
(`model/blockwise.py`, `model/splash.py`, `model/fused.py`) and the choice between them
(`model/routes.py`).

Letters beyond `types.py`: Q queries and S keys, each any part of the sequence.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

MAX_BRANCHES = 15
"""Of one segment, its trunk not counted: the splash kernel has a lane for each."""


@struct.dataclass
class Seen:
    """A token sees what stands before it, in its own segment, on the trunk or its own branch.

    Segment 0 is padding: it sees itself alone, so that it yields numbers and no nan.
    """

    segment_ids: Any  # [B, T] int32, from 1; 0 is padding
    branches: Any = None  # [B, T] int32, to MAX_BRANCHES; 0 is the trunk; None: only trunks


Attend = Callable[[Array, Array, Array, Seen], Array]
"""`attend(q_BTHE, k_BSKE, v_BSKE, seen) -> out_BTHE`, over the tokens of one pass.

The queries are those of the pass's last T tokens: of all, unless the mesh cuts time.
"""


@struct.dataclass
class Places:
    """Tokens as the definition reads them: all of a sequence, or a block of it."""

    segment_ids: Any  # [B, Q] int32
    branches: Any  # [B, Q] int32, or None
    index: Any  # [Q] int32, in the whole sequence


def places(seen: Seen) -> Places:
    """All tokens of the sequence."""
    return Places(seen.segment_ids, seen.branches, jnp.arange(seen.segment_ids.shape[1]))


def sees(query: Places, key: Places) -> Bool[Array, "B Q S"]:
    """True where the query may look at the key."""
    same_BQS = query.segment_ids[:, :, None] == key.segment_ids[:, None, :]
    seen_BQS = same_BQS & (key.segment_ids > 0)[:, None, :]
    if query.branches is not None:
        own_BQS = query.branches[:, :, None] == key.branches[:, None, :]
        seen_BQS &= own_BQS | (key.branches == 0)[:, None, :]
    earlier_QS = query.index[:, None] >= key.index[None, :]
    itself_QS = query.index[:, None] == key.index[None, :]
    return (seen_BQS & earlier_QS[None]) | itself_QS[None]


def visible(seen: Seen, queries: int | None = None) -> Bool[Array, "B T S"]:
    """True where the query (second axis) may look at the key (third axis), of all pairs at once.

    Args:
      queries: of the last so many tokens; None: of all.
    """
    keys = places(seen)
    first = 0 if queries is None else len(keys.index) - queries
    branches = None if keys.branches is None else keys.branches[:, first:]
    return sees(Places(keys.segment_ids[:, first:], branches, keys.index[first:]), keys)


def alone(seen: Seen) -> Int[Array, "B T"]:
    """Segment ids by which equality alone says it: each token of padding has one of its own."""
    padding_T = -1 - jnp.arange(seen.segment_ids.shape[1])
    return jnp.where(seen.segment_ids > 0, seen.segment_ids, padding_T[None])
