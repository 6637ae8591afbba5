"""The compiled loop of the sampler: run (decode with its controllers), shrink, forget.

Lives here: the loop's step, and `jit`. Not here: how prompts get in (`sampling/load.py`), draws
(`sampling/choose.py`), what steers (`sampling/controllers`), the records (`sampling/state.py`),
which requests go where and when (`sampling/serve.py`).

Everything that a request can ask for (temperature, truncation, budget, stop ids, mode, threshold,
key) is a traced array: changing it compiles nothing. Static are the model and the sizes of the
state.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from l2s_jax.model.cache import Cache, Shared, append, close, emptied, on_rows
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Angles, Params, angles_at, forward_cached, logits
from l2s_jax.sampling.choose import FREE, Shape, distribution, pick, row_keys, score
from l2s_jax.sampling.controllers.routing import Router, probability_of_easy, route_step, routes
from l2s_jax.sampling.controllers.thought import (
    Thoughts,
    temper_end,
    thought_step,
    withhold_end,
)
from l2s_jax.sampling.state import (
    DATA_AXES,
    DONE,
    EMPTY,
    NO_TICKET,
    PENDING,
    ROWS,
    WHOLE,
    Jobs,
    LoopState,
    Results,
    free_rows,
    in_place,
    jobs_of,
    state_specs,
    take_jobs,
    where_rows,
)

Turns = tuple[Float[Array, "S half"], Float[Array, "S half"]]
"""`Angles` of all positions that a row can reach."""


@struct.dataclass
class Steering:
    """What may force, forbid or reshape; the settings of one call."""

    router: Router  # its mode and threshold come from each row's job
    thoughts: Thoughts  # so do its bounds
    banned: Any  # [V] bool
    entropy: Any  # [] bool, True where it is wanted

    def of_rows(self, jobs: Jobs) -> tuple[Router, Thoughts]:
        """The controllers' settings for the rows at work."""
        router = dataclasses.replace(self.router, mode=jobs.mode, threshold=jobs.threshold)
        thoughts = dataclasses.replace(
            self.thoughts,
            max_tokens=jobs.max_thought,
            num_waits=jobs.num_waits,
            stop_tau=jobs.stop_tau,
        )
        return router, thoughts

    def ban(self, logits_BV: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Logits with nothing for banned ids."""
        return jnp.where(self.banned[None], -jnp.inf, logits_BV)


@struct.dataclass
class Until:
    """When a run hands back to the host, apart from when nothing is left to do."""

    done_prompts: Any  # [] int32: so many places hold finished prompts
    rows: Any  # [] int32: nothing is pending, and so many rows or fewer are at work
    steps: Any  # [] int32: so many passes are done


@functools.partial(jax.jit, static_argnames=("cfg", "mesh"), donate_argnames="state")
def run(
    cfg: ModelConfig,
    mesh: Mesh,
    params: Params,
    state: LoopState,
    steering: Steering,
    until: Until,
    key: Key[Array, ""],
) -> LoopState:
    """`state` when its jobs are done, or `until` says so.

    Each device runs the loop on its own rows; none waits for another's token.
    """
    inside: Any = jax.shard_map(
        functools.partial(_run, cfg),
        mesh=mesh,
        in_specs=(WHOLE, state_specs(state), WHOLE, WHOLE, WHOLE),
        out_specs=state_specs(state),
        axis_names=DATA_AXES,
        check_vma=False,
    )
    return in_place(inside(params, state, steering, until, key), mesh)


def _run(
    cfg: ModelConfig,
    params: Params,
    state: LoopState,
    steering: Steering,
    until: Until,
    key: Key[Array, ""],
) -> LoopState:
    places, before = state.prompts.places, state.num_steps[0]
    longest = state.prompts.stored.capacity + state.results.tokens.shape[1]
    cos_1Sh, sin_1Sh = angles_at(cfg, jnp.arange(longest)[None])
    angles = cos_1Sh[0], sin_1Sh[0]

    def go_on(state: LoopState) -> Bool[Array, ""]:
        num_active = jnp.sum(state.active)
        num_pending = jnp.sum(state.status == PENDING)
        num_done = jnp.sum(jnp.all((state.status == DONE).reshape(-1, places), axis=1))
        small = (num_pending == 0) & (num_active <= until.rows)
        far = state.num_steps[0] - before >= until.steps
        left = num_active + num_pending > 0
        return left & (num_done < until.done_prompts) & ~small & ~far

    def step(state: LoopState) -> LoopState:
        return _step(cfg, params, steering, key, angles, take_jobs(state, steering.router))

    def page(state: LoopState) -> LoopState:
        """Steps until the open pages are full, and closes them."""
        state = jax.lax.while_loop(lambda s: go_on(s) & ~s.cache.tail.full, step, state)
        return state.with_cache(close(state.cache.tail), state.prompts)

    return jax.lax.while_loop(go_on, page, state)


def _step(
    cfg: ModelConfig,
    params: Params,
    steering: Steering,
    key: Key[Array, ""],
    angles: Turns,
    state: LoopState,
) -> LoopState:
    """Every row at work, one token further."""
    active_B, jobs, prompts = state.active, jobs_of(state), state.prompts
    router, thoughts = steering.of_rows(jobs)
    routing, directive = route_step(router, state.routing, state.last, state.logits, active_B)
    restart_B = active_B & directive.restart
    tail = emptied(state.cache.tail, restart_B)
    logits_BV = _restart(restart_B, state)
    place_B = tail.lengths
    # By tokens read, not by place: what a restart took back must not name the new draws too.
    keys_B = row_keys(key, jobs.row_id, routing.num_read)
    # A prefix comes first, then the opening that routing forces, then what ends the thought.
    thought, closing_B = thought_step(thoughts, state.thought, state.last, place_B)
    opening_B = first_forced(_prefix(jobs.prefix, place_B), directive.forced)
    held = dataclasses.replace(state.thought, closed=thought.closed)
    thought = where_rows(opening_B == FREE, thought, held)
    forced_B = first_forced(opening_B, closing_B)
    shape = Shape(
        lambda logits: steering.ban(temper_end(thoughts, thought, logits)),
        jnp.any(steering.banned) | jnp.any(active_B & (thoughts.stop_tau != 1)),
    )
    dist = distribution(logits_BV, jobs.draw, shape)
    token_B = pick(keys_B, dist, forced_B, jobs.draw, shape)
    thought, token_B, free_B = withhold_end(thoughts, thought, token_B, forced_B == FREE)
    chosen = score(dist, token_B, free_B)
    prompt_B = prompts.seat // prompts.places
    at_B = jnp.take(prompts.stored.lengths, prompt_B, mode="clip") + place_B
    hidden_B1D, kv = forward_cached(
        cfg,
        params,
        chosen.token[:, None],
        at_B[:, None],
        mask_BTT=jnp.ones((*at_B.shape, 1, 1), bool),
        cache=Cache(tail, (prompts,)),
        angles=_at(angles, at_B),
    )
    writes_B = active_B & chosen.finite
    # By what comes last, so that every layer has read its part of the cache before it is written:
    # the compiler then writes in place.
    tail = append(tail, kv, writes_B, jnp.all(jnp.isfinite(hidden_B1D[:, 0]), axis=-1))
    entropy_B = jax.lax.cond(
        steering.entropy, dist.entropy, lambda: jnp.zeros(active_B.shape, jnp.float32)
    )
    results = _write(state.results, prompts.seat, place_B, writes_B, chosen, entropy_B)
    stopped_B = writes_B & stops_here(results.tokens, prompts.seat, place_B, jobs.stops)
    ended_B = stopped_B | (active_B & ((tail.lengths >= jobs.budget) | ~chosen.finite))
    last_B = jnp.where(writes_B, chosen.token, state.last)
    routing = where_rows(active_B, routing, state.routing)
    results = _finish(
        results,
        jnp.where(ended_B, prompts.seat, state.status.shape[0]),
        lengths=tail.lengths,
        stopped=stopped_B,
        finite=chosen.finite,
        route=routes(router, routing, last_B),
        p_easy=probability_of_easy(routing),
    )
    state = state.with_cache(
        tail,
        prompts,
        routing=routing,
        thought=where_rows(active_B, thought, state.thought),
        logits=logits(params, hidden_B1D[:, 0]),
        last=last_B,
        results=results,
        num_steps=state.num_steps + 1,
        num_row_steps=state.num_row_steps + active_B.shape[0],
    )
    return free_rows(state, ended_B)


def _restart(restart_B: Bool[Array, " B"], state: LoopState) -> Float[Array, "B V"]:
    """The logits of the next token, where rows that start over are back behind their prompt."""
    prompt_B = state.prompts.seat // state.prompts.places

    def with_prompts(logits_BV):
        first_BV = jnp.take(state.first_logits, prompt_B, axis=0, mode="clip")
        return jnp.where(restart_B[:, None], first_BV, logits_BV)

    return jax.lax.cond(jnp.any(restart_B), with_prompts, lambda same: same, state.logits)


def _at(angles: Turns, position_B: Int[Array, " B"]) -> Angles:
    """The angles of each row's next position."""
    cos_Bh, sin_Bh = (jnp.take(x_Sh, position_B, axis=0, mode="clip") for x_Sh in angles)
    return cos_Bh[:, None], sin_Bh[:, None]


def first_forced(one_B: Int[Array, " B"], other_B: Int[Array, " B"]) -> Int[Array, " B"]:
    """What the first controller forces; where it leaves the choice, the other's word."""
    return jnp.where(one_B == FREE, other_B, one_B)


def _prefix(prefix_BF: Int[Array, "B F"], place_B: Int[Array, " B"]) -> Int[Array, " B"]:
    """The prefix's id at each row's place; FREE, which is -1 as its filling is, behind it."""
    length = prefix_BF.shape[1]
    here_B = jnp.take_along_axis(prefix_BF, jnp.minimum(place_B, length - 1)[:, None], axis=1)[:, 0]
    return jnp.where(place_B < length, here_B, FREE)


def stops_here(
    tokens_JT: Int[Array, "J T"],
    seat_B: Int[Array, " B"],
    place_B: Int[Array, " B"],
    stops_BXY: Int[Array, "B X Y"],
) -> Bool[Array, " B"]:
    """True where what a row wrote up to `place_B` ends with one of its stop sequences."""
    longest = stops_BXY.shape[2]
    at_BY = place_B[:, None] - jnp.arange(longest - 1, -1, -1)[None]
    seat_B1 = jnp.minimum(seat_B, tokens_JT.shape[0] - 1)[:, None]
    window_BY = jnp.where(at_BY >= 0, tokens_JT[seat_B1, jnp.maximum(at_BY, 0)], -2)
    no_id_BXY = stops_BXY == -1
    same_BX = jnp.all(no_id_BXY | (stops_BXY == window_BY[:, None]), axis=-1)
    return jnp.any(same_BX & ~jnp.all(no_id_BXY, axis=-1), axis=-1)


def _write(results: Results, seat_B, place_B, writes_B, chosen, entropy_B) -> Results:
    """The results with each writing row's token at its place."""
    seat_B = jnp.where(writes_B, seat_B, results.lengths.shape[0])  # out of bounds is dropped

    def put(buffer, value_B):
        return buffer.at[seat_B, place_B].set(value_B, mode="drop")

    return dataclasses.replace(
        results,
        tokens=put(results.tokens, chosen.token),
        logp=put(results.logp, chosen.logp),
        kept_logp=put(results.kept_logp, chosen.kept_logp),
        entropy=put(results.entropy, entropy_B),
        free=put(results.free, chosen.free),
    )


def _finish(results: Results, seat_B, **values_B) -> Results:
    """The results with what is known when a row ends."""
    put = {
        name: getattr(results, name).at[seat_B].set(value_B, mode="drop")
        for name, value_B in values_B.items()
    }
    return dataclasses.replace(results, **put)


@functools.partial(jax.jit, static_argnames=("mesh", "apart"))  # the sizes differ: nothing to reuse
def shrink(mesh: Mesh, state: LoopState, kept: Int[Array, " B"], *, apart: bool) -> LoopState:
    """`state` on fewer rows, when no job is pending.

    Args:
      kept: each device's rows that go on, all those at work among them.
      apart: leave each row the one job that it works on, and its prompt to itself. With few rows
        left, most of a prompt's seats are empty, and attention computes empty ones too.
    """
    specs = state_specs(state)
    inside: Any = jax.shard_map(
        _apart if apart else _on_rows,
        mesh=mesh,
        in_specs=(specs, ROWS),
        out_specs=specs,
        axis_names=DATA_AXES,
        check_vma=False,
    )
    return in_place(inside(state, kept), mesh)


def _on_rows(state: LoopState, kept_B: Int[Array, " B"]) -> LoopState:
    """The state with the kept rows alone."""
    rows = kept_B.shape[0]
    of_row: Any = functools.partial(_take, kept_B)
    seat_B, row_at = of_row(state.prompts.seat), jnp.full(state.status.shape, rows, jnp.int32)
    row_at = row_at.at[seat_B].set(jnp.arange(rows, dtype=jnp.int32), mode="drop")
    return state.with_cache(
        on_rows(state.cache.tail, kept_B),
        dataclasses.replace(
            state.prompts, row_at=row_at.reshape(state.prompts.row_at.shape), seat=seat_B
        ),
        routing=of_row(state.routing),
        thought=of_row(state.thought),
        logits=of_row(state.logits),
        last=of_row(state.last),
    )


def _apart(state: LoopState, kept_B: Int[Array, " B"]) -> LoopState:
    """The state with the kept rows, one job, prompt place and seat for each."""
    state, idle_B = _on_rows(state, kept_B), ~state.active[kept_B]
    job_B, rows = state.prompts.seat, kept_B.shape[0]
    place_B = job_B // state.prompts.places
    own_B = jnp.arange(rows, dtype=jnp.int32)
    prompts = Shared(
        stored=_take(place_B, state.prompts.stored),
        row_at=jnp.where(idle_B, rows, own_B)[:, None],
        seat=jnp.where(idle_B, rows, own_B),
    )
    return state.with_cache(
        state.cache.tail,
        prompts,
        first_logits=_take(place_B, state.first_logits),
        jobs=_take(job_B, state.jobs),
        results=_take(job_B, state.results),
        status=jnp.where(idle_B, EMPTY, _take(job_B, state.status)),
        ticket=jnp.full(rows, NO_TICKET, jnp.int32),
    )


def _take(index: Int[Array, " B"], tree: Any) -> Any:
    """The entries of every leaf; zeros where the index is out of range."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0, mode="fill", fill_value=0), tree)


@functools.partial(jax.jit, donate_argnames="state")
def forget(state: LoopState) -> LoopState:
    """`state` with the places of finished prompts empty; the host has their results."""
    done_N = jnp.all((state.status == DONE).reshape(state.prompts.row_at.shape), axis=1)
    done_J = jnp.repeat(done_N, state.prompts.places)
    return dataclasses.replace(state, status=jnp.where(done_J, EMPTY, state.status))
