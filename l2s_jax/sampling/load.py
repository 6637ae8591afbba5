"""Prompts into the sampler's state: the compiled programs that make it and fill it.

Lives here: the fresh state of all devices, and load: prompts read (prefill), their keys in place,
their jobs pending. Not here: the loop (`sampling/loop.py`), which prompts and when
(`sampling/serve.py`).

Letters beyond `types.py`: M prompts of one load.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from l2s_jax.model.cache import Cache, Stored, empty, extend
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params, forward_cached, logits
from l2s_jax.sampling.state import (
    DATA_AXES,
    PENDING,
    ROWS,
    WHOLE,
    Jobs,
    LoopState,
    fresh_state,
    in_place,
    state_specs,
)

CHUNK = 512  # prompt tokens of one pass of the prefill


@struct.dataclass
class Load:
    """Prompts that enter a state. One that only fills the batch has place N and length 0."""

    prompts: Any  # [M, P] int32, right-padded
    lengths: Any  # [M] int32
    place: Any  # [M] int32, among the device's N
    jobs: Jobs  # [M * C], what the samples of each ask for
    ticket: Any  # [M * C] int32


@functools.partial(jax.jit, static_argnames=("cfg", "mesh", "sizes"))
def begin(cfg: ModelConfig, mesh: Mesh, sizes: tuple[tuple[str, Any], ...]) -> LoopState:
    """The fresh state of every device."""
    shapes = jax.eval_shape(lambda: fresh_state(cfg, **dict(sizes)))
    inside: Any = jax.shard_map(
        lambda: fresh_state(cfg, **dict(sizes)),
        mesh=mesh,
        in_specs=(),
        out_specs=state_specs(shapes),
        axis_names=DATA_AXES,
        check_vma=False,
    )
    return in_place(inside(), mesh)


@functools.partial(jax.jit, static_argnames=("cfg", "mesh"), donate_argnames="state")
def load(cfg: ModelConfig, mesh: Mesh, params: Params, state: LoopState, new: Load) -> LoopState:
    """`state` with prompts read, their keys in place and their jobs pending."""
    inside: Any = jax.shard_map(
        functools.partial(_load, cfg),
        mesh=mesh,
        in_specs=(WHOLE, state_specs(state), ROWS),
        out_specs=state_specs(state),
        axis_names=DATA_AXES,
        check_vma=False,
    )
    return in_place(inside(params, state, new), mesh)


def _load(cfg: ModelConfig, params: Params, state: LoopState, new: Load) -> LoopState:
    stored, logits_MV = prefill(cfg, params, new.prompts, new.lengths)
    num_places, group = state.prompts.row_at.shape
    place_M = jnp.where(new.lengths > 0, new.place, num_places)
    prompts = jax.tree.map(
        lambda before, read: before.at[place_M].set(read, mode="drop"),
        state.prompts.stored,
        stored,
    )
    seat_MC = place_M[:, None] * group + jnp.arange(group)[None]
    seat = seat_MC.reshape(-1)

    def put(values, these):
        return values.at[seat].set(these, mode="drop")

    filled = put(jnp.zeros(state.status.shape, bool), True)
    results = dataclasses.replace(
        state.results, finite=state.results.finite | filled, stopped=state.results.stopped & ~filled
    )
    return state.with_cache(
        state.cache.tail,
        dataclasses.replace(state.prompts, stored=prompts),
        first_logits=state.first_logits.at[place_M].set(logits_MV, mode="drop"),
        jobs=jax.tree.map(put, state.jobs, new.jobs),
        results=results,
        status=put(state.status, PENDING),
        ticket=put(state.ticket, new.ticket),
    )


def prefill(
    cfg: ModelConfig, params: Params, prompt_NP: Int[Array, "N P"], lengths_N: Int[Array, " N"]
) -> tuple[Stored, Float[Array, "N V"]]:
    """Keys and values of right-padded prompts, and the logits after each one's last token.

    Long prompts are read in chunks that see the ones before; chunks past the longest are skipped.
    """
    num_prompts, width = prompt_NP.shape
    chunk = min(CHUNK, width)
    shape = (cfg.num_layers, num_prompts, cfg.num_kv_heads, width, cfg.head_dim)
    mask_TT = jnp.tril(jnp.ones((chunk, chunk), bool))
    mask_NTT = jnp.broadcast_to(mask_TT, (num_prompts, chunk, chunk))

    def read(index, carry):
        stored, last_ND = carry
        place = index * chunk
        tokens_NT = jax.lax.dynamic_slice_in_dim(prompt_NP, place, chunk, axis=1)
        at_NT = jnp.broadcast_to(place + jnp.arange(chunk)[None], tokens_NT.shape)
        before = dataclasses.replace(stored, lengths=jnp.full(num_prompts, place, jnp.int32))
        hidden_NTD, kv = forward_cached(
            cfg, params, tokens_NT, at_NT, mask_BTT=mask_NTT, cache=Cache(tail=before)
        )
        here_N = (lengths_N - 1) // chunk == index
        final_N1D = jnp.take_along_axis(
            hidden_NTD, ((lengths_N - 1) % chunk)[:, None, None], axis=1
        )
        last_ND = jnp.where(here_N[:, None], final_N1D[:, 0], last_ND)
        return extend(stored, kv, place), last_ND

    nothing = (
        empty(shape, cfg.compute_dtype),
        jnp.zeros((num_prompts, cfg.width), cfg.compute_dtype),
    )
    num_chunks = (jnp.max(lengths_N) + chunk - 1) // chunk
    stored, last_ND = jax.lax.fori_loop(0, num_chunks, read, nothing)
    return dataclasses.replace(stored, lengths=lengths_N), logits(params, last_ND)
