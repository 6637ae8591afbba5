"""What the sampler's programs carry: jobs, rows, results.

Lives here: the records, how they are cut over devices, and how rows take jobs. Not here: the
programs (`sampling/loop.py`), filling the queue (`sampling/engine.py`).

A job is one completion to write: sample c of the prompt in place n, seat n * C + c. Rows are the
slots of the compiled loop; a row whose job ends takes the pending job with the lowest ticket.

Letters beyond `types.py`: N prompt places, C samples of a prompt, J = N * C jobs, X stop sequences
of up to Y ids, F ids of a prefix.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from l2s_jax.model.cache import (
    Cache,
    Shared,
    Tail,
    emptied,
    empty,
    empty_tail,
    most_pages,
)
from l2s_jax.model.config import ModelConfig
from l2s_jax.sampling.choose import FREE, Draw
from l2s_jax.sampling.controllers.routing import Router, RouterState, begin_routing
from l2s_jax.sampling.controllers.thought import ThoughtState, begin_thoughts
from l2s_jax.sharding import BATCH

NO_TICKET = jnp.iinfo(jnp.int32).max
EMPTY, PENDING, RUNNING, DONE = range(4)

ROWS = BATCH  # rows, prompts and jobs are cut over the mesh's data axes
WHOLE = PartitionSpec()
PLAIN = Draw(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
# Rows are cut by hand over these axes; heads and vocabulary over the others, by the compiler.
DATA_AXES = {"data", "fsdp"}


@struct.dataclass
class Jobs:
    """What each job asks for."""

    row_id: Any  # [J] uint32, names the draws
    draw: Draw  # [J]
    budget: Any  # [J] int32, most tokens to write
    mode: Any  # [J] int32, of routing
    threshold: Any  # [J] float32
    prefix: Any  # [J, F] int32: ids that open the completion; -1 is no id
    max_thought: Any  # [J] int32, `controllers/thought.py`
    num_waits: Any  # [J] int32
    stop_tau: Any  # [J] float32
    stops: Any  # [J, X, Y] int32: X id sequences that end the job, right-aligned; -1 is no id


@struct.dataclass
class Results:
    """What each job has become; columns past its length hold nothing."""

    tokens: Any  # [J, T] int32
    logp: Any  # [J, T] float32, nats
    kept_logp: Any  # [J, T] float32, nats, after truncation
    entropy: Any  # [J, T] float32, nats; 0 where it was not asked for
    free: Any  # [J, T] bool
    lengths: Any  # [J] int32
    stopped: Any  # [J] bool, ended by a stop token
    finite: Any  # [J] bool, False where the model's logits were no numbers and the job ended there
    route: Any  # [J] int32: 0 short, 1 long, 2 none
    p_easy: Any  # [J] float32


@struct.dataclass
class LoopState:
    """All that changes from one token to the next."""

    cache: Cache
    routing: RouterState
    thought: ThoughtState
    logits: Any  # [B, V] float32, of the next token
    last: Any  # [B] int32, the token that entered last; FREE before the first
    first_logits: Any  # [N, V] float32, of each prompt's first token
    jobs: Jobs
    results: Results
    status: Any  # [J] int32, EMPTY to DONE
    ticket: Any  # [J] int32, the order in which pending jobs are taken
    num_steps: Any  # [devices] int32, passes of each device's loop
    num_row_steps: Any  # [devices] int32, passes times rows

    @property
    def prompts(self) -> Shared:
        """The prompts, and which row works on which of their jobs: a job's seat is its number."""
        return self.cache.shared[0]

    @property
    def active(self) -> Bool[Array, " B"]:
        return self.prompts.seat < self.status.shape[0]

    def with_cache(self, tail: Tail, prompts: Shared, **changes: Any) -> "LoopState":
        return dataclasses.replace(self, cache=Cache(tail, (prompts,)), **changes)


def fresh_state(
    cfg: ModelConfig,
    *,
    rows: int,
    prompts: int,
    group: int,
    width: int,
    page: int,
    max_tokens: int,
    stops: tuple[int, int],
    prefix: int,
) -> LoopState:
    """A device's state with room for `prompts` of `width` tokens, and nothing to do.

    Args:
      page: places of a page of a row's own tokens.
      stops: how many stop sequences a job may have, and how long they may be.
      prefix: ids that a job may be made to open with.
    """
    jobs = prompts * group
    layers, heads, size = cfg.num_layers, cfg.num_kv_heads, cfg.head_dim
    dtype = cfg.compute_dtype
    zero_B, zero_J = jnp.zeros(rows, jnp.int32), jnp.zeros(jobs, jnp.int32)
    real_B, real_J = jnp.zeros(rows, jnp.float32), jnp.zeros(jobs, jnp.float32)
    real_JT = jnp.zeros((jobs, max_tokens), jnp.float32)
    return LoopState(
        cache=Cache(
            tail=empty_tail((layers, rows, heads, page, size), most_pages(page, max_tokens), dtype),
            shared=(
                Shared(
                    stored=empty((layers, prompts, heads, width, size), dtype),
                    row_at=jnp.full((prompts, group), rows, jnp.int32),
                    seat=jnp.full(rows, jobs, jnp.int32),
                ),
            ),
        ),
        routing=RouterState(zero_B, zero_B, zero_B, zero_B, real_B, real_B, real_B),
        thought=begin_thoughts(rows),
        logits=jnp.zeros((rows, cfg.vocab_size), jnp.float32),
        last=jnp.full(rows, FREE, jnp.int32),
        first_logits=jnp.zeros((prompts, cfg.vocab_size), jnp.float32),
        jobs=Jobs(
            row_id=zero_J.astype(jnp.uint32),
            draw=Draw(real_J, zero_J, real_J, real_J),
            budget=zero_J,
            mode=zero_J,
            threshold=real_J,
            prefix=jnp.full((jobs, prefix), -1, jnp.int32),
            max_thought=zero_J,
            num_waits=zero_J,
            stop_tau=real_J,
            stops=jnp.full((jobs, *stops), -1, jnp.int32),
        ),
        results=Results(
            tokens=jnp.zeros((jobs, max_tokens), jnp.int32),
            logp=real_JT,
            kept_logp=real_JT,
            entropy=real_JT,
            free=jnp.zeros((jobs, max_tokens), bool),
            lengths=zero_J,
            stopped=jnp.zeros(jobs, bool),
            finite=jnp.ones(jobs, bool),
            route=zero_J,
            p_easy=real_J,
        ),
        status=zero_J,
        ticket=jnp.full(jobs, NO_TICKET, jnp.int32),
        num_steps=jnp.zeros(1, jnp.int32),
        num_row_steps=jnp.zeros(1, jnp.int32),
    )


def state_specs(state: Any) -> Any:
    """The mesh axes of every leaf of a state: all of it is cut over the data axes."""
    return jax.tree.map(lambda _: ROWS, state)


def state_places(state: LoopState, mesh: Mesh) -> LoopState:
    """Where every leaf of a state lies: rows over the data axes, heads and vocabulary over tensor.

    What tensor does not cut evenly is whole on all of its devices.
    """

    def by_row(_: Any) -> NamedSharding:
        return NamedSharding(mesh, ROWS)

    def by_row_and_axis(leaf: Any) -> NamedSharding:
        even = leaf.shape[1] % mesh.shape["tensor"] == 0
        return NamedSharding(mesh, PartitionSpec(*ROWS, "tensor") if even else ROWS)

    def of_keys(held: Any, places: Any) -> Any:
        k, v = jax.tree.map(by_row_and_axis, (held.k, held.v))
        return dataclasses.replace(places, k=k, v=v)

    places = jax.tree.map(by_row, state)
    tail, stored = state.cache.tail, state.prompts.stored
    pages = of_keys(tail.pages, places.cache.tail.pages)
    return places.with_cache(
        dataclasses.replace(of_keys(tail, places.cache.tail), pages=pages),
        dataclasses.replace(places.prompts, stored=of_keys(stored, places.prompts.stored)),
        logits=by_row_and_axis(state.logits),
        first_logits=by_row_and_axis(state.first_logits),
    )


def in_place(state: LoopState, mesh: Mesh) -> LoopState:
    """`state` laid out as `state_places` says, inside a program.

    Every program ends with it. The compiler would choose otherwise, and keep a fresh cache whole on
    every device of the tensor axis; programs would be compiled anew for what others gave them.
    """
    return jax.lax.with_sharding_constraint(state, state_places(state, mesh))


def take_jobs(state: LoopState, router: Router) -> LoopState:
    """`state` with pending jobs on its idle rows, by their tickets."""
    pending_J = state.status == PENDING
    wanted = jnp.any(~state.active) & jnp.any(pending_J)
    return jax.lax.cond(wanted, lambda s: _take_jobs(s, router), lambda s: s, state)


def _take_jobs(state: LoopState, router: Router) -> LoopState:
    idle_B, num_jobs = ~state.active, state.status.shape[0]
    prompts = state.prompts
    order_J = jnp.argsort(state.ticket)
    rank_B = jnp.cumsum(idle_B) - 1
    takes_B = idle_B & (rank_B < jnp.sum(state.status == PENDING))
    seat_B = jnp.where(takes_B, order_J[jnp.minimum(rank_B, num_jobs - 1)], num_jobs)
    rows_B = jnp.arange(idle_B.shape[0], dtype=jnp.int32)
    row_at_J = prompts.row_at.reshape(-1).at[seat_B].set(rows_B, mode="drop")
    starts = begin_routing(dataclasses.replace(router, mode=_of(state.jobs.mode, seat_B)))
    first_BV = jnp.take(state.first_logits, seat_B // prompts.places, axis=0, mode="clip")
    return state.with_cache(
        state.cache.tail,
        dataclasses.replace(
            prompts,
            row_at=row_at_J.reshape(prompts.row_at.shape),
            seat=jnp.where(takes_B, seat_B, prompts.seat).astype(jnp.int32),
        ),
        routing=where_rows(takes_B, starts, state.routing),
        thought=where_rows(takes_B, begin_thoughts(idle_B.shape[0]), state.thought),
        logits=jnp.where(takes_B[:, None], first_BV, state.logits),
        last=jnp.where(takes_B, FREE, state.last),
        status=state.status.at[seat_B].set(RUNNING, mode="drop"),
        ticket=state.ticket.at[seat_B].set(NO_TICKET, mode="drop"),
    )


def _of(values_J: Array, seat_B: Int[Array, " B"]) -> Array:
    """Each row's value of what its job asks for; an idle row gets some other's."""
    return jnp.take(values_J, seat_B, axis=0, mode="clip")


def jobs_of(state: LoopState) -> Jobs:
    """What each row's job asks for [B]; an idle row gets some other's, and a plain draw.

    One row that truncates makes all of them search: an idle one must not.
    """
    jobs = jax.tree.map(lambda values_J: _of(values_J, state.prompts.seat), state.jobs)
    return dataclasses.replace(jobs, draw=where_rows(state.active, jobs.draw, PLAIN))


def free_rows(state: LoopState, ended_B: Bool[Array, " B"]) -> LoopState:
    """`state` with the jobs of `ended_B` done and their rows idle."""
    num_jobs, rows = state.status.shape[0], state.active.shape[0]
    prompts = state.prompts
    seat_B = jnp.where(ended_B, prompts.seat, num_jobs)
    row_at_J = prompts.row_at.reshape(-1).at[seat_B].set(rows, mode="drop")
    return state.with_cache(
        emptied(state.cache.tail, ended_B),  # an idle row has no tail, and takes up a new job so
        dataclasses.replace(
            prompts,
            row_at=row_at_J.reshape(prompts.row_at.shape),
            seat=jnp.where(ended_B, num_jobs, prompts.seat),
        ),
        status=state.status.at[seat_B].set(DONE, mode="drop"),
    )


def where_rows(chosen_B: Bool[Array, " B"], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(chosen_B, n, o), new, old)
