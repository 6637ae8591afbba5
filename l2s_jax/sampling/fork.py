"""Short side continuations of rows at work: ask each what it would answer now, and go on.

Lives here: `fork`, and ending a thought from outside. Not here: when to ask and what to do with the
answer (the caller's `Watch`, `sampling/serve.py`).

Nothing is copied: a branch reads its row's prompt and tail where they are, as one more beginning
that several rows share, and keeps only its own tokens. The rows do not notice. What early exit by
confidence (DEER, arXiv 2504.15895) and credit by prefix (MRT, arXiv 2503.07572) need.

Letters beyond `types.py`: M branches of a row, T tokens of a branch, X stop ids.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from l2s_jax.model.cache import Cache, Shared, append, empty_tail, room
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params, forward_cached, logits
from l2s_jax.sampling.choose import FREE, Draw, choose, row_keys
from l2s_jax.sampling.controllers.thought import CLOSING
from l2s_jax.sampling.state import DATA_AXES, ROWS, WHOLE, LoopState, jobs_of, state_specs


@struct.dataclass
class Branches:
    """What the branches of each row wrote; columns past a length hold nothing."""

    tokens: Any  # [B, M, T] int32
    logp: Any  # [B, M, T] float32, nats
    lengths: Any  # [B, M] int32; 0 for rows that are idle
    stopped: Any  # [B, M] bool


@functools.partial(jax.jit, static_argnames=("cfg", "mesh", "branches", "max_tokens"))
def fork(
    cfg: ModelConfig,
    mesh: Mesh,
    params: Params,
    state: LoopState,
    script: Int[Array, " S"],
    stop_ids: Int[Array, " X"],
    temperature: Float[Array, ""],
    key: Key[Array, ""],
    *,
    branches: int,
    max_tokens: int,
) -> Branches:
    """`branches` continuations of every row at work: `script`, then the policy's own tokens.

    Args:
      max_tokens: of a branch, script and stop included.
      temperature: 0 is greedy.
    """
    inside: Any = jax.shard_map(
        functools.partial(_fork, cfg, branches=branches, max_tokens=max_tokens),
        mesh=mesh,
        in_specs=(WHOLE, state_specs(state), WHOLE, WHOLE, WHOLE, WHOLE),
        out_specs=ROWS,
        axis_names=DATA_AXES,
        check_vma=False,
    )
    return inside(params, state, script, stop_ids, temperature, key)


def _fork(
    cfg: ModelConfig,
    params: Params,
    state: LoopState,
    script: Int[Array, " S"],
    stop_ids: Int[Array, " X"],
    temperature: Float[Array, ""],
    key: Key[Array, ""],
    *,
    branches: int,
    max_tokens: int,
) -> Branches:
    active_B = state.active
    rows = active_B.shape[0] * branches
    start_B = _prompt_lengths(state) + state.cache.tail.lengths
    start_R = jnp.repeat(start_B, branches)
    names_R = jnp.repeat(jobs_of(state).row_id, branches) + jnp.tile(
        jnp.arange(branches, dtype=jnp.uint32), active_B.shape[0]
    )
    draw = Draw(
        temperature=jnp.full(rows, temperature, jnp.float32),
        top_k=jnp.zeros(rows, jnp.int32),
        top_p=jnp.ones(rows, jnp.float32),
        min_p=jnp.zeros(rows, jnp.float32),
    )
    shape = (cfg.num_layers, rows, cfg.num_kv_heads, room(max_tokens), cfg.head_dim)
    beginnings = (_behind_prompts(state, branches), _behind_rows(state, branches))
    blank_RT = jnp.zeros((rows, max_tokens))

    def step(place, carry):
        tail, logits_RV, done_R, tokens_RT, logp_RT, stopped_R = carry
        scripted = place < script.shape[0]
        forced = jnp.where(scripted, script[jnp.minimum(place, script.shape[0] - 1)], FREE)
        keys_R = row_keys(key, names_R, start_R + place)
        chosen = choose(keys_R, logits_RV, jnp.full(rows, forced), draw)
        hidden_R1D, kv = forward_cached(
            cfg,
            params,
            chosen.token[:, None],
            (start_R + place)[:, None],
            mask_BTT=jnp.ones((rows, 1, 1), bool),
            cache=Cache(tail, beginnings),
        )
        writes_R = ~done_R
        stops_R = writes_R & ~scripted & jnp.any(chosen.token[:, None] == stop_ids[None], axis=-1)
        return (
            append(tail, kv, writes_R, jnp.all(jnp.isfinite(hidden_R1D[:, 0]), axis=-1)),
            logits(params, hidden_R1D[:, 0]),
            done_R | stops_R,
            tokens_RT.at[:, place].set(jnp.where(writes_R, chosen.token, 0)),
            logp_RT.at[:, place].set(jnp.where(writes_R, chosen.logp, 0.0)),
            stopped_R | stops_R,
        )

    carry = (
        empty_tail(shape, 0, cfg.compute_dtype),  # all branches fit on their open pages
        jnp.repeat(state.logits, branches, axis=0),
        jnp.repeat(~active_B, branches),
        blank_RT.astype(jnp.int32),
        blank_RT,
        jnp.zeros(rows, bool),
    )
    tail, _, _, tokens_RT, logp_RT, stopped_R = jax.lax.fori_loop(0, max_tokens, step, carry)
    found = Branches(tokens_RT, logp_RT, tail.lengths, stopped_R)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, branches, *leaf.shape[1:]), found)


def _prompt_lengths(state: LoopState) -> Int[Array, " B"]:
    prompt_B = state.prompts.seat // state.prompts.places
    return jnp.take(state.prompts.stored.lengths, prompt_B, mode="clip")


def _behind_prompts(state: LoopState, branches: int) -> Shared:
    """The prompts, with a seat for every branch behind each of their seats."""
    prompts, rows = state.prompts, state.active.shape[0]
    each_M = jnp.arange(branches, dtype=jnp.int32)
    row_at_NCM = prompts.row_at[:, :, None] * branches + each_M[None, None]
    free_NCM = jnp.broadcast_to((prompts.row_at == rows)[:, :, None], row_at_NCM.shape)
    row_at_NCM = jnp.where(free_NCM, rows * branches, row_at_NCM)
    seat_BM = prompts.seat[:, None] * branches + each_M[None]
    return Shared(
        prompts.stored, row_at_NCM.reshape(prompts.row_at.shape[0], -1), seat_BM.reshape(-1)
    )


def _behind_rows(state: LoopState, branches: int) -> Shared:
    """The tails of the rows, with a seat for every branch."""
    seat_R = jnp.arange(state.active.shape[0] * branches, dtype=jnp.int32)
    return Shared(state.cache.tail, seat_R.reshape(-1, branches), seat_R)


@jax.jit
def close_thoughts(state: LoopState, rows_B: Bool[Array, " B"]) -> LoopState:
    """`state` in which the rows of `rows_B` that still think write their closing phrase next."""
    chosen_B = rows_B & ~state.thought.closed
    thought = dataclasses.replace(
        state.thought,
        script=jnp.where(chosen_B, CLOSING, state.thought.script),
        place=jnp.where(chosen_B, 0, state.thought.place),
    )
    return dataclasses.replace(state, thought=thought)
