"""Rows for new tokens: placed in the table's free padding rows, or the table is grown.

Lives here: `add_rows` on embedding and untied head. Not here: which ids the tokenizer gave the
new tokens and what describes them (`tokens/triggers.py`).

Qwen2.5's table has more rows than its tokenizer has tokens (151,936 against 151,665), so that a
few new tokens change no shape.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, Sharding
from jaxtyping import Array, Float

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params


def check_starts(starts: dict[int, tuple[int, ...]], vocab_size: int, num_real: int) -> None:
    """Refuses ids that would overwrite a real row, leave a gap, or start from nothing."""
    if not 0 < num_real <= vocab_size:
        raise ValueError(
            f"num_real={num_real}: the table has {vocab_size} rows, so that many tokens at most"
            " (and one at least) can be real. Is this the tokenizer of this model?"
        )
    taken = sorted(new for new in starts if new < num_real)
    if taken:
        raise ValueError(f"new token ids {taken} belong to real tokens (ids below {num_real}).")
    grown = sorted(new for new in starts if new >= vocab_size)
    if grown != list(range(vocab_size, vocab_size + len(grown))):
        raise ValueError(
            f"new token ids {grown} leave rows without a start: a table of {vocab_size} rows grows"
            f" by consecutive ids from {vocab_size}."
        )
    for new, pieces in starts.items():
        strange = [piece for piece in pieces if not 0 <= piece < num_real]
        if strange:
            raise ValueError(
                f"new token id {new} starts from ids {strange}, which are no real tokens (0 to"
                f" {num_real - 1})."
            )


def grow_table(
    table_VD: Float[Array, "V D"], starts: dict[int, tuple[int, ...]], num_real: int
) -> Float[Array, "W D"]:
    """`table_VD` with one row for each key of `starts`, the mean of its pieces' rows.

    The mean is over all real rows where no pieces are given. W rows: V, or more if ids need it.
    """
    missing = max(0, max(starts) + 1 - table_VD.shape[0])
    grown_WD = jnp.pad(table_VD, ((0, missing), (0, 0)))
    index_W1 = jnp.arange(grown_WD.shape[0])[:, None]
    for new, pieces in starts.items():
        row_D = _mean_row(table_VD, pieces, num_real).astype(table_VD.dtype)
        # A select and no scatter: every device changes the rows that it holds.
        grown_WD = jnp.where(index_W1 == new, row_D[None], grown_WD)
    return grown_WD


def _mean_row(table_VD: Array, pieces: tuple[int, ...], num_real: int) -> Float[Array, " D"]:
    if pieces:
        return jnp.mean(table_VD[jnp.asarray(pieces)], axis=0, dtype=jnp.float32)
    # No slice of the real rows either, which would move a table that is cut by rows.
    real_V1 = jnp.arange(table_VD.shape[0])[:, None] < num_real
    return jnp.sum(table_VD, axis=0, where=real_V1, dtype=jnp.float32) / num_real


def add_rows(
    params: Params, cfg: ModelConfig, starts: dict[int, tuple[int, ...]], num_real: int
) -> tuple[ModelConfig, Params]:
    """The config and parameters with a row for every new token, in embedding and untied head.

    Tables stay where they are: cut as before, on the same devices.

    Args:
      starts: new token id → ids of the pieces whose mean it starts from; empty: of all real rows.
      num_real: tokens that the tokenizer had before; rows from there on are free padding.
    """
    if not starts:
        return cfg, params
    check_starts(starts, cfg.vocab_size, num_real)
    grow = functools.partial(grow_table, starts=starts, num_real=num_real)
    size = max(cfg.vocab_size, max(starts) + 1)
    embedding = _grow_in_place(grow, jnp.asarray(params["embed"]["embedding"]), size, axis=0)
    grown = params | {"embed": {"embedding": embedding}}
    if not cfg.tied:
        head_DV = jnp.asarray(params["lm_head"])
        grown["lm_head"] = _grow_in_place(lambda x_DV: grow(x_DV.T).T, head_DV, size, axis=1)
    return dataclasses.replace(cfg, vocab_size=size), grown


def _grow_in_place(grow: Callable[[Array], Array], table: Array, size: int, axis: int) -> Array:
    """`grow(table)`, cut over devices as `table` is."""
    _check_cut(table.sharding, size, axis)
    return jax.jit(grow, out_shardings=table.sharding)(table)


def _check_cut(sharding: Sharding, size: int, axis: int) -> None:
    """Refuses a number of rows that the devices cannot share equally."""
    if not isinstance(sharding, NamedSharding) or len(sharding.spec) <= axis:
        return
    names = sharding.spec[axis]
    names = (names,) if isinstance(names, str) else names or ()
    parts = math.prod(sharding.mesh.shape[name] for name in names)
    if size % parts:
        raise ValueError(
            f"the vocabulary grows to {size} rows, which the {parts} devices of mesh axes {names}"
            " cannot share equally. Lower mesh.tensor, or spell the triggers as plain text, which"
            " takes no rows."
        )
