"""Killable processes that decide pairs, each within one time bound.

Lives here: starting, asking, hearing, killing and replacing workers. Not here: what a worker runs
(`verify/worker.py`), what is decided without one (`verify/math.py`).

Why workers: sympy can take for ever and all memory on a short text (a tower of powers), and inside
C code no exception or alarm handler gets a turn. A worker that overruns is killed and replaced; the
pairs that were handed to it and not yet begun go to others. The bound covers the whole decision,
both parses included.
"""

import collections
import dataclasses
import json
import math
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait

from l2s_jax.types import Verdict
from l2s_jax.verify.policy import Policy

START_SECONDS = 120.0  # for a worker to import sympy: 1 idle, many times that on a busy machine
CHECK_SECONDS = 0.5
ENDING = 0.05  # of the bound, to end a worker that overran: its memory is given back first
BATCH = 16  # pairs handed to a worker at once, so that it never waits for the parent


class Worker:
    """One process; `jobs` are the pairs that it holds, the first of which it is at."""

    def __init__(self, seconds: float, memory_bytes: int, policy: Policy):
        ours, theirs = socket.socketpair()
        package_root = str(pathlib.Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        # A plain subprocess, as multiprocessing would import the caller's __main__ in the worker:
        # jax with it, or the whole script again where its author wrote no __main__ guard.
        command = [sys.executable, "-P", "-m", "l2s_jax.verify.worker"]
        command += [str(theirs.fileno()), str(seconds), str(memory_bytes)]
        command += [json.dumps(dataclasses.asdict(policy))]
        self.process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.seconds = seconds
        self.ready = False
        self.jobs: collections.deque[int] = collections.deque()
        self.since = time.monotonic()
        self.deadline = self.since + START_SECONDS

    def ask(self, jobs: Sequence[int], pairs: Sequence[tuple[str, str]]) -> None:
        self.jobs.extend(jobs)
        self.restart_clock()
        message = json.dumps([pairs[job] for job in jobs]).encode()
        try:
            self.connection.send_bytes(message)
        except ConnectionError:
            self.deadline = self.since  # died in this moment: it is found at the next look

    def restart_clock(self) -> None:
        self.since = time.monotonic()
        self.deadline = self.since + (1 - ENDING) * self.seconds

    def died_idle(self) -> bool:
        return self.ready and not self.jobs and self.process.poll() is not None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()

    def forget(self) -> None:
        """Lets go of a worker that belongs to the process that this one was forked from."""
        self.connection.close()
        self.process.returncode = 0  # not ours to wait for


class Pool:
    """At most `num_workers` workers, started when a pair needs one. One caller at a time."""

    def __init__(self, num_workers: int, seconds: float, memory_bytes: int, policy: Policy):
        self.num_workers, self.seconds = num_workers, seconds
        self.memory_bytes, self.policy = memory_bytes, policy
        self.workers: list[Worker] = []

    def close(self) -> None:
        while self.workers:
            self.workers.pop().kill()

    def forget(self) -> None:
        while self.workers:
            self.workers.pop().forget()

    def decide(
        self, pairs: list[tuple[str, str]], check: Callable[[], None] | None = None
    ) -> list[Verdict]:
        """One verdict per pair, in order; `check` is asked while workers are waited for."""
        waiting = collections.deque(range(len(pairs)))
        done: dict[int, Verdict] = {}
        try:
            while len(done) < len(pairs):
                self._hand_out(waiting, pairs)
                self._collect(waiting, done, math.inf if check is None else CHECK_SECONDS)
                if check is not None:
                    check()
        except BaseException:
            self.close()  # a worker left on a job would hand its answer to the next call
            raise
        return [done[job] for job in range(len(pairs))]

    def _hand_out(self, waiting: collections.deque[int], pairs: list[tuple[str, str]]) -> None:
        """Starts the workers that are missing and gives each free one its share."""
        for worker in [worker for worker in self.workers if worker.died_idle()]:
            self.workers.remove(worker)
            worker.kill()
        busy = sum(bool(worker.jobs) for worker in self.workers)
        while len(self.workers) < min(self.num_workers, busy + len(waiting)):
            self.workers.append(Worker(self.seconds, self.memory_bytes, self.policy))
        share = min(BATCH, max(1, len(waiting) // (2 * self.num_workers)))
        for worker in self.workers:
            if waiting and worker.ready and not worker.jobs:
                jobs = [waiting.popleft() for _ in range(min(share, len(waiting)))]
                worker.ask(jobs, pairs)

    def _collect(
        self, waiting: collections.deque[int], done: dict[int, Verdict], most: float
    ) -> None:
        """Waits, `most` seconds at most, for an answer or deadline; kills what overran."""
        active = [worker for worker in self.workers if worker.jobs or not worker.ready]
        pause = min(worker.deadline for worker in active) - time.monotonic()
        speaking = wait([worker.connection for worker in active], min(max(0.0, pause), most))
        for worker in active:
            if worker.connection in speaking:
                self._hear(worker, waiting, done)
            elif time.monotonic() >= worker.deadline:
                self._lose(worker, "timeout", waiting, done)

    def _hear(self, worker: Worker, waiting, done: dict[int, Verdict]) -> None:
        try:
            message = worker.connection.recv_bytes()
        except (EOFError, ConnectionError):
            overran = time.monotonic() >= worker.deadline
            self._lose(worker, "timeout" if overran else "crashed", waiting, done)
            return
        if not worker.ready:
            worker.ready = True
            return
        equivalent, reason = json.loads(message)
        done[worker.jobs.popleft()] = _verdict(equivalent, reason, worker.since)
        worker.restart_clock()

    def _lose(self, worker: Worker, reason: str, waiting, done: dict[int, Verdict]) -> None:
        """Kills a worker; the pair that it was at is not equivalent, for that reason."""
        self.workers.remove(worker)
        worker.kill()
        if not worker.ready:
            raise RuntimeError(
                f"a verification worker ended before it was ready ({reason}, exit code"
                f" {worker.process.returncode}); its own message is above. Is math-verify"
                " installed in this environment?"
            )
        done[worker.jobs.popleft()] = _verdict(False, reason, worker.since)
        waiting.extendleft(reversed(worker.jobs))


def _verdict(equivalent: bool, reason: str, since: float) -> Verdict:
    return Verdict(equivalent=equivalent, reason=reason, seconds=time.monotonic() - since)
