"""Who is served when: prompts into places, results out of them, rows given up as work runs out.

Lives here: `serve`, the host's side of one call. Not here: the programs (`sampling/loop.py`), what
a request is (`sampling/engine.py`).

Between two runs of the decode loop the host takes finished prompts out and puts waiting ones in;
inside the loop a row that ends takes the next pending job by itself. When nothing waits any more,
rows that stay idle are given up in a few declared sizes.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from l2s_jax.model.cache import PAGE, most_pages, room
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params
from l2s_jax.sampling import load, loop
from l2s_jax.sampling.state import DONE, EMPTY, NO_TICKET, Jobs, LoopState, Results

MIN_WIDTH = 16  # prompts are padded to this or a power of two above it
LONG_RUN = 128  # tokens; shorter completions do not repay a program for fewer rows
SMALLEST = 4  # rows
NOBODY = -1  # on a seat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The shapes of one device's state."""

    rows: int
    group: int  # samples of a prompt
    prompts: int  # places
    width: int  # of a prompt
    max_tokens: int
    stops: tuple[int, int]  # stop sequences of a job, and their longest
    prefix: int = 1  # ids that a job may be made to open with
    largest_page: int = PAGE

    @property
    def page(self) -> int:
        """Places of a page of a row's own tokens."""
        return min(self.largest_page, room(self.max_tokens))

    def as_static(self) -> tuple[tuple[str, Any], ...]:
        named = dataclasses.asdict(self) | {"page": self.page}
        del named["largest_page"]
        return tuple(sorted(named.items()))

    @property
    def row_sizes(self) -> list[int]:
        """Numbers of rows that a program is made for, the most first."""
        if self.max_tokens < LONG_RUN:
            return [self.rows]
        sizes, part = [self.rows], self.rows
        while part // 2 >= SMALLEST:
            # Few rows more or less cost a step little: no program for three quarters of eight.
            sizes += [part * 3 // 4, part // 2] if part > 2 * SMALLEST else [part // 2]
            part //= 2
        return sizes

    def cache_bytes(self, cfg: ModelConfig) -> int:
        """Of keys and values, on one device."""
        per_token = (
            2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim * cfg.compute_dtype.itemsize
        )
        pages = 1 + most_pages(self.page, self.max_tokens)
        return per_token * (self.rows * pages * self.page + self.prompts * self.width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
    """Somebody who looks at the rows at work, and may change them, every so many steps."""

    every: int  # passes of the decode loop
    look: Callable[["Program", LoopState], LoopState]

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"Watch.every={self.every}: passes of the loop, at least 1.")


@dataclasses.dataclass(frozen=True)
class Program:
    """What stays the same over a call."""

    model: ModelConfig
    mesh: Mesh
    params: Params
    steering: loop.Steering
    key: Key[Array, ""]
    watch: Watch | None = None
    ended: Callable[[Results, np.ndarray], None] | None = None  # told which jobs are done


@dataclasses.dataclass(frozen=True, kw_only=True)
class Queue:
    """What is asked for: prompts, and `group` jobs for each."""

    prompts: list[tuple[int, ...]]
    jobs: Jobs  # numpy [len(prompts) * group]
    group: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """What a call cost."""

    steps: int = 0  # passes of the decode loop; the slowest device's
    row_steps: int = 0  # passes times rows, over all devices
    tokens: int = 0  # written, stops included
    loads: int = 0  # calls of the prefill program
    not_finite: int = 0  # completions that ended because the logits were no numbers

    @property
    def wasted_fraction(self) -> float:
        """Row-steps on which a row wrote nothing."""
        return 1 - self.tokens / self.row_steps if self.row_steps else 0.0


def serve(program: Program, queue: Queue, sizes: Sizes) -> tuple[Results, Served]:
    """The results of all jobs, in the queue's order (numpy), and what they cost."""
    shards = program.mesh.shape["data"] * program.mesh.shape["fsdp"]
    desk = Desk(queue, sizes, shards)
    state = load.begin(program.model, program.mesh, sizes.as_static())
    rows, loads = sizes.rows, 0
    while True:
        while desk.can_load():
            state = load.load(program.model, program.mesh, program.params, state, desk.next_load())
            loads += 1
        state = loop.run(
            program.model,
            program.mesh,
            program.params,
            state,
            program.steering,
            desk.until(rows, program.watch),
            program.key,
        )
        jobs = desk.collect(state)
        if program.ended is not None:
            program.ended(desk.results, jobs)
        if desk.finished:
            break
        state = loop.forget(state)
        if program.watch is not None:
            state = program.watch.look(program, state)
        fewer = desk.fewer_rows(state, rows)
        if fewer < rows:
            apart = fewer <= sizes.prompts  # else one place a row would take more than they do now
            kept = desk.keep_rows(state, fewer, apart)
            state, rows = loop.shrink(program.mesh, state, kept, apart=apart), fewer
    results = desk.results
    cost = Served(
        steps=int(np.max(state.num_steps)),
        row_steps=int(np.sum(state.num_row_steps)),
        tokens=int(results.lengths.sum()),
        loads=loads,
        not_finite=int((~results.finite).sum()),
    )
    return results, cost


class Desk:
    """Which prompt is on which place of which device, and what has come back."""

    def __init__(self, queue: Queue, sizes: Sizes, shards: int):
        self._queue, self._sizes, self.shards = queue, sizes, shards
        self._waiting = collections.deque(range(len(queue.prompts)))
        self._free = [list(range(sizes.prompts)) for _ in range(shards)]
        # Of each device, the number of the job on each seat.
        self._job_at = np.full((shards, sizes.prompts * queue.group), NOBODY)
        self._group = queue.group  # seats of a place
        self._tickets = 0
        num_jobs = len(queue.prompts) * queue.group
        self._batch = sizes.rows // sizes.group  # prompts of one load, per device
        wide = (num_jobs, sizes.max_tokens)
        self.results = Results(
            tokens=np.zeros(wide, np.int32),
            logp=np.zeros(wide, np.float32),
            kept_logp=np.zeros(wide, np.float32),
            entropy=np.zeros(wide, np.float32),
            free=np.zeros(wide, bool),
            lengths=np.zeros(num_jobs, np.int32),
            stopped=np.zeros(num_jobs, bool),
            finite=np.ones(num_jobs, bool),
            route=np.zeros(num_jobs, np.int32),
            p_easy=np.zeros(num_jobs, np.float32),
        )

    @property
    def finished(self) -> bool:
        return not self._waiting and bool(np.all(self._job_at == NOBODY))

    def can_load(self) -> bool:
        return bool(self._waiting) and any(self._free)

    def next_load(self) -> load.Load:
        """The next prompts, spread evenly over the devices."""
        size, group = self._batch, self._queue.group
        num = self.shards * size
        prompts = np.zeros((num, self._sizes.width), np.int32)
        lengths, place = np.zeros(num, np.int32), np.zeros(num, np.int32)
        jobs = jax.tree.map(
            lambda a: np.zeros((num * group, *a.shape[1:]), a.dtype), self._queue.jobs
        )
        ticket = np.full(num * group, NO_TICKET, np.int32)
        for entry in (shard * size + i for i in range(size) for shard in range(self.shards)):
            shard = entry // size
            if not self._waiting or not self._free[shard]:
                continue
            n, place[entry] = self._waiting.popleft(), self._free[shard].pop(0)
            seat = place[entry] * group
            self._job_at[shard, seat : seat + group] = n * group + np.arange(group)
            ids = self._queue.prompts[n]
            prompts[entry, : len(ids)], lengths[entry] = ids, len(ids)
            here = slice(entry * group, (entry + 1) * group)
            theirs = slice(n * group, (n + 1) * group)
            for into, source in zip(
                jax.tree.leaves(jobs), jax.tree.leaves(self._queue.jobs), strict=True
            ):
                into[here] = source[theirs]
            ticket[here] = self._tickets + np.arange(group)
            self._tickets += group
        return load.Load(prompts=prompts, lengths=lengths, place=place, jobs=jobs, ticket=ticket)

    def until(self, rows: int, watch: Watch | None) -> loop.Until:
        """Come back for waiting prompts as soon as a load of them has room, else to shrink."""
        fewer = [size for size in self._sizes.row_sizes if size < rows]
        waiting = bool(self._waiting)
        return loop.Until(
            done_prompts=jnp.int32(self._batch if waiting else NO_TICKET),
            rows=jnp.int32(fewer[0] if fewer and not waiting else 0),
            steps=jnp.int32(NO_TICKET if watch is None else watch.every),
        )

    def collect(self, state: LoopState) -> np.ndarray:
        """Takes over what done jobs have become; places where all are done are free again.

        Returns their numbers, those again that were done before beside others that are not.
        """
        status, found = jax.device_get((state.status, state.results))
        done = (status == DONE).reshape(self._job_at.shape)
        jobs = self._job_at[done]
        for into, source in zip(jax.tree.leaves(self.results), jax.tree.leaves(found), strict=True):
            into[jobs] = source[done.reshape(-1)]
        whole = done.reshape(self.shards, -1, self._group).all(axis=2)
        self._job_at[np.repeat(whole, self._group, axis=1)] = NOBODY
        for shard, place in zip(*np.nonzero(whole), strict=True):
            self._free[shard].append(int(place))
        return jobs

    def fewer_rows(self, state: LoopState, rows: int) -> int:
        """The smallest declared number of rows that holds all that are left to do."""
        if self._waiting:
            return rows
        left = np.asarray(state.status).reshape(self._job_at.shape)
        most = int(((left != DONE) & (left != EMPTY)).sum(axis=1).max())
        return min(size for size in self._sizes.row_sizes if size >= min(most, rows))

    def keep_rows(self, state: LoopState, rows: int, apart: bool) -> jax.Array:
        """For each device the rows that go on, those at work first; where they go is noted.

        Args:
          apart: their jobs are the only ones that stay (`loop.shrink`).
        """
        seats = self._job_at.shape[1]
        seat_at = np.asarray(state.prompts.seat).reshape(self.shards, -1)
        kept = np.argsort(seat_at == seats, axis=1, kind="stable")[:, :rows]
        if apart:
            seat_of = np.take_along_axis(seat_at, kept, axis=1)
            with_nobody = np.pad(self._job_at, ((0, 0), (0, 1)), constant_values=NOBODY)
            self._job_at = np.take_along_axis(with_nobody, seat_of, axis=1)
            self._group = 1
        return jnp.asarray(kept.reshape(-1).astype(np.int32))
