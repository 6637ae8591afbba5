"""Rows for new tokens: placed in the table's free padding rows, or the table is grown.

Lives here: `add_rows` on embedding and untied head. Not here: which ids the tokenizer gave the
new tokens and what describes them (`tokens/triggers.py`).

Qwen2.5's table has more rows than its tokenizer has tokens (151,936 against 151,665), so that a
few new tokens change no shape.
"""

import dataclasses

import jax.numpy as jnp
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
    real_D = jnp.mean(table_VD[:num_real], axis=0, dtype=jnp.float32)
    rows = [
        jnp.mean(table_VD[jnp.asarray(pieces)], axis=0, dtype=jnp.float32) if pieces else real_D
        for pieces in starts.values()
    ]
    grown_WD = jnp.pad(table_VD, ((0, missing), (0, 0)))
    return grown_WD.at[jnp.asarray(list(starts))].set(jnp.stack(rows).astype(table_VD.dtype))


def add_rows(
    params: Params, cfg: ModelConfig, starts: dict[int, tuple[int, ...]], num_real: int
) -> tuple[ModelConfig, Params]:
    """The config and parameters with a row for every new token, in embedding and untied head.

    Args:
      starts: new token id → ids of the pieces whose mean it starts from; empty: of all real rows.
      num_real: tokens that the tokenizer had before; rows from there on are free padding.
    """
    if not starts:
        return cfg, params
    check_starts(starts, cfg.vocab_size, num_real)
    embedding_WD = grow_table(jnp.asarray(params["embed"]["embedding"]), starts, num_real)
    grown = params | {"embed": {"embedding": embedding_WD}}
    if not cfg.tied:
        grown["lm_head"] = grow_table(jnp.asarray(params["lm_head"]).T, starts, num_real).T
    return dataclasses.replace(cfg, vocab_size=embedding_WD.shape[0]), grown
