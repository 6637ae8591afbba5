"""The two compiled programs of the sampler: prefill, and one decode loop with routing inside.

Lives here: the loop's state, its step, and `jit`. Not here: draws (`sampling/choose.py`),
routing (`sampling/controllers.py`), batching of requests (`sampling/engine.py`).

Everything that a request can ask for (temperature, top-p, budget, stop ids, mode, threshold,
key) is a traced array: changing it compiles nothing. Static are the model, the group size and the
buffer sizes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from l2s_jax.model.attention import visible
from l2s_jax.model.cache import Cache, append, begin, rewind
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import KeyValues, Params, forward, logits
from l2s_jax.sampling.choose import FREE, choose, row_keys
from l2s_jax.sampling.controllers import (
    Router,
    RouterState,
    begin_routing,
    probability_of_easy,
    route_step,
    router_specs,
    routes,
)
from l2s_jax.sharding import BATCH


@struct.dataclass
class Rows:
    """What each row asks for."""

    row_id: Any  # [B] uint32, names the row's draws
    temperature: Any  # [B] float32, 0 is greedy
    top_p: Any  # [B] float32
    budget: Any  # [B] int32, most tokens to generate; 0 for a row that only fills the batch


@struct.dataclass
class LoopState:
    """All that changes from one token to the next."""

    cache: Cache
    routing: RouterState
    logits: Any  # [B, V] float32, of the next token
    last: Any  # [B] int32, the token that entered last; FREE before the first
    done: Any  # [B] bool
    stopped: Any  # [B] bool, done because of a stop token
    tokens: Any  # [B, T] int32
    logp: Any  # [B, T] float32
    free: Any  # [B, T] bool


@struct.dataclass
class Generated:
    """Completions of a batch; columns past a row's length hold nothing."""

    tokens: Any  # [B, T] int32
    logp: Any  # [B, T] float32, nats
    free: Any  # [B, T] bool
    lengths: Any  # [B] int32
    stopped: Any  # [B] bool
    route: Any  # [B] int32: 0 short, 1 long, 2 none
    p_easy: Any  # [B] float32
    num_steps: Any  # [devices] int32, passes of each device's decode loop


ROWS = BATCH  # rows and prompts are cut over the mesh's data axes, tables are everywhere
WHOLE = PartitionSpec()
BY_ROW = PartitionSpec(None, *BATCH)  # arrays whose second axis is rows, behind the layers


@functools.partial(jax.jit, static_argnames=("cfg", "mesh"))
def prefill(
    cfg: ModelConfig,
    mesh: Mesh,
    params: Params,
    prompt_NP: Int[Array, "N P"],
    lengths_N: Int[Array, " N"],
) -> tuple[KeyValues, Float[Array, "N V"]]:
    """Keys and values of right-padded prompts, and the logits after each one's last token."""
    inside = jax.shard_map(
        functools.partial(_prefill, cfg),
        mesh=mesh,
        in_specs=(WHOLE, ROWS, ROWS),
        out_specs=((BY_ROW, BY_ROW), ROWS),
        check_vma=False,
    )
    return inside(params, prompt_NP, lengths_N)


def _prefill(
    cfg: ModelConfig, params: Params, prompt_NP: Int[Array, "N P"], lengths_N: Int[Array, " N"]
) -> tuple[KeyValues, Float[Array, "N V"]]:
    index_NP = jnp.broadcast_to(jnp.arange(prompt_NP.shape[1])[None], prompt_NP.shape)
    real_NP = (index_NP < lengths_N[:, None]).astype(jnp.int32)
    mask = visible(real_NP, jnp.zeros_like(real_NP))
    hidden_NPD, kv = forward(cfg, params, prompt_NP, index_NP, mask_BTT=mask)
    last_N1D = jnp.take_along_axis(hidden_NPD, (lengths_N - 1)[:, None, None], axis=1)
    return kv, logits(params, last_N1D)[:, 0]


@functools.partial(jax.jit, static_argnames=("cfg", "mesh", "group", "max_tokens"))
def decode(
    cfg: ModelConfig,
    mesh: Mesh,
    params: Params,
    prompt_kv: KeyValues,
    prompt_logits_NV: Float[Array, "N V"],
    prompt_lengths_N: Int[Array, " N"],
    rows: Rows,
    router: Router,
    stop_ids: Int[Array, " stops"],
    key: Key[Array, ""],
    *,
    group: int,
    max_tokens: int,
) -> Generated:
    """Completions of `group` rows per prompt.

    Each device runs the loop on its own rows and ends when they have; none waits for another.

    Args:
      stop_ids: ids that end a row; the stop is part of the completion. Fill up with -1.
    """
    inside = jax.shard_map(
        functools.partial(_decode, cfg, group=group, max_tokens=max_tokens),
        mesh=mesh,
        in_specs=(WHOLE, BY_ROW, ROWS, ROWS, ROWS, router_specs(ROWS, WHOLE), WHOLE, WHOLE),
        out_specs=ROWS,
        check_vma=False,
    )
    return inside(
        params, prompt_kv, prompt_logits_NV, prompt_lengths_N, rows, router, stop_ids, key
    )


def _decode(
    cfg: ModelConfig,
    params: Params,
    prompt_kv: KeyValues,
    prompt_logits_NV: Float[Array, "N V"],
    prompt_lengths_N: Int[Array, " N"],
    rows: Rows,
    router: Router,
    stop_ids: Int[Array, " stops"],
    key: Key[Array, ""],
    *,
    group: int,
    max_tokens: int,
) -> Generated:
    index_P = jnp.arange(prompt_kv[0].shape[2])
    cache = begin(
        *prompt_kv, index_P[None] < prompt_lengths_N[:, None], group=group, tail=max_tokens
    )
    start_B = jnp.repeat(prompt_lengths_N, group)
    batch = start_B.shape[0]
    start = (start_B, prompt_logits_NV)
    step = functools.partial(_step, cfg, params, rows, router, stop_ids, key, start)
    done_B = rows.budget <= 0
    state = LoopState(
        cache=cache,
        routing=begin_routing(router),
        logits=jnp.repeat(prompt_logits_NV, group, axis=0),
        last=jnp.full(batch, FREE, jnp.int32),
        done=done_B,
        stopped=jnp.zeros(batch, bool),
        tokens=jnp.zeros((batch, max_tokens), jnp.int32),
        logp=jnp.zeros((batch, max_tokens), jnp.float32),
        free=jnp.zeros((batch, max_tokens), bool),
    )
    state, num_steps = jax.lax.while_loop(
        lambda carry: jnp.any(~carry[0].done),
        lambda carry: (step(carry[0]), carry[1] + 1),
        (state, jnp.int32(0)),
    )
    return Generated(
        tokens=state.tokens,
        logp=state.logp,
        free=state.free,
        lengths=state.cache.lengths,
        stopped=state.stopped,
        route=routes(router, state.routing, state.last),
        p_easy=probability_of_easy(state.routing),
        num_steps=num_steps[None],
    )


def _step(
    cfg: ModelConfig,
    params: Params,
    rows: Rows,
    router: Router,
    stop_ids: Int[Array, " stops"],
    key: Key[Array, ""],
    start: tuple[Int[Array, " B"], Float[Array, "N V"]],
    state: LoopState,
) -> LoopState:
    """Every unfinished row, one token further.

    Args:
      start: each row's first position, and the logits of each prompt's first token.
    """
    start_B, prompt_logits_NV = start
    active_B = ~state.done
    policy_BV = jax.nn.log_softmax(state.logits, axis=-1)
    routing, directive = route_step(router, state.routing, state.last, policy_BV)
    restart_B = active_B & directive.restart
    cache = rewind(state.cache, jnp.where(restart_B, state.cache.lengths, 0))
    logits_BV = _restart(restart_B, state.logits, prompt_logits_NV)
    place_B = cache.lengths
    # By tokens read, not by place: what a restart took back must not name the new draws too.
    keys_B = row_keys(key, rows.row_id, routing.num_read)
    token_B, logp_B, free_B = choose(
        keys_B, logits_BV, directive.forced, rows.temperature, rows.top_p
    )
    hidden_B1D, kv = forward(
        cfg, params, token_B[:, None], (start_B + place_B)[:, None], cache=cache
    )
    cache = append(cache, *kv, active_B)
    stopped_B = active_B & jnp.any(token_B[:, None] == stop_ids[None], axis=-1)
    ended_B = stopped_B | (cache.lengths >= rows.budget)
    return LoopState(
        cache=cache,
        routing=_where_rows(active_B, routing, state.routing),
        logits=logits(params, hidden_B1D[:, 0]),
        last=jnp.where(active_B, token_B, state.last),
        done=state.done | ended_B,
        stopped=state.stopped | stopped_B,
        tokens=_write(state.tokens, token_B, place_B, active_B),
        logp=_write(state.logp, logp_B, place_B, active_B),
        free=_write(state.free, free_B, place_B, active_B),
    )


def _restart(
    restart_B: Bool[Array, " B"], logits_BV: Float[Array, "B V"], prompt_logits_NV: Array
) -> Float[Array, "B V"]:
    """The logits of the next token, where rows that start over are back behind their prompt."""
    group = logits_BV.shape[0] // prompt_logits_NV.shape[0]

    def with_prompts(logits_BV):
        first_BV = jnp.repeat(prompt_logits_NV, group, axis=0)
        return jnp.where(restart_B[:, None], first_BV, logits_BV)

    return jax.lax.cond(jnp.any(restart_B), with_prompts, lambda same: same, logits_BV)


def _write(
    buffer_BT: Array, value_B: Array, place_B: Int[Array, " B"], active_B: Bool[Array, " B"]
) -> Array:
    """The buffer with each active row's value at its place."""
    place_B = jnp.where(active_B, place_B, buffer_BT.shape[1])  # out of bounds is dropped
    rows_B = jnp.arange(buffer_BT.shape[0])
    return buffer_BT.at[rows_B, place_B].set(value_B, mode="drop")


def _where_rows(active_B: Bool[Array, " B"], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(active_B, n, o), new, old)
