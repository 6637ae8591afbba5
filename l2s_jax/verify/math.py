r"""Whether a prediction equals the reference: exactly, as numbers, or as mathematics.

Lives here: the in-process decision (`equivalent`), and `Verifier`, which hands what that cannot
decide to worker processes and bounds each decision in time. Not here: finding the answer in a
text (`verify/answers.py`), what a worker runs (`verify/worker.py`).

Why workers: sympy can take for ever and all memory on a short text (a tower of powers), and
inside C code no exception or alarm handler gets a turn. A worker that overruns is killed and
replaced; the others go on. The bound covers the whole decision, both parses included.

Reasons: same-text, numeric, symbolic (equivalent); different, unparsable, timeout, no-answer,
crashed (not equivalent). "numeric" is exact rational equality: 0.333 is not 1/3.
"""

import collections
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from multiprocessing.connection import Connection, wait

from l2s_jax.types import Verdict
from l2s_jax.verify.answers import normalise

START_SECONDS = 120.0  # for a worker to import sympy: 0.3 idle, many times that on a busy machine
MIN_MEMORY_BYTES = 256 << 20  # below, a worker that holds sympy has nothing left to work with
MAX_DIGITS = 1000  # of a number that is decided in process; int() is quadratic

_DECIMAL = r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|[+-]?\.\d+"
_PLAIN = re.compile(_DECIMAL)
_FRACTIONS = (
    re.compile(rf"(?P<sign>[+-]?)\(?(?P<top>{_DECIMAL})\)?\s*/\s*\(?(?P<bottom>{_DECIMAL})\)?"),
    re.compile(
        rf"(?P<sign>[+-]?)\s*\\frac\s*"
        rf"(?:\{{\s*(?P<top>{_DECIMAL})\s*\}}\s*\{{\s*(?P<bottom>{_DECIMAL})\s*\}}"
        r"|(?P<top1>\d)\s*(?P<bottom1>\d))"
    ),
)


def equivalent(gold: str, prediction: str | None) -> Verdict:
    """Verdict without workers: exact text and exact numbers; "unparsable" where that can't tell."""
    start = time.perf_counter()
    equal, reason = _decide(gold, prediction) or (False, "unparsable")
    return Verdict(equivalent=equal, reason=reason, seconds=time.perf_counter() - start)


def number(text: str) -> Fraction | None:
    r"""The exact value of a whole number, decimal, a/b or \frac{a}{b}; None for all else."""
    text = text.strip()
    if len(text) > MAX_DIGITS:
        return None
    if _PLAIN.fullmatch(text):
        return Fraction(text.replace(",", ""))
    matches = (pattern.fullmatch(text) for pattern in _FRACTIONS)
    parts = next((match.groupdict() for match in matches if match), None)
    if parts is None:
        return None
    top, bottom = (parts[side] or parts[f"{side}1"] for side in ("top", "bottom"))
    value, divisor = (Fraction(side.replace(",", "")) for side in (top, bottom))
    return None if divisor == 0 else (value / divisor) * (-1 if parts["sign"] == "-" else 1)


def _decide(gold: str, prediction: str | None) -> tuple[bool, str] | None:
    """(equivalent, reason) where text and numbers settle it; None where mathematics must."""
    if prediction is None or not prediction.strip():
        return False, "no-answer"
    gold, prediction = normalise(gold), normalise(prediction)
    if gold == prediction:
        return True, "same-text"
    gold_value, value = number(gold), number(prediction)
    if gold_value is not None and value is not None:
        return (True, "numeric") if gold_value == value else (False, "different")
    # A chain such as 0=1=2=5 would be judged by its last side.
    if "=" in prediction and "=" not in gold:
        return False, "different"
    return None


class _Worker:
    """One process that decides one pair at a time; `job` names the pair that it is on."""

    def __init__(self, seconds: float, memory_bytes: int):
        ours, theirs = socket.socketpair()
        package_root = str(pathlib.Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        # A plain subprocess, as multiprocessing would import the caller's __main__ in the worker:
        # jax with it, or the whole script again where its author wrote no __main__ guard.
        command = [sys.executable, "-P", "-m", "l2s_jax.verify.worker"]
        command += [str(theirs.fileno()), str(seconds), str(memory_bytes)]
        self.process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.ready = False
        self.job: int | None = None
        self.since = time.monotonic()
        self.deadline = self.since + START_SECONDS

    def ask(self, job: int, gold: str, prediction: str, seconds: float) -> None:
        self.job = job
        self.since = time.monotonic()
        self.deadline = self.since + seconds
        self.connection.send_bytes(json.dumps([gold, prediction]).encode())

    def died_idle(self) -> bool:
        return self.ready and self.job is None and self.process.poll() is not None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


class Verifier:
    """Decides pairs (gold, prediction), in process where it can, else in killable workers.

    Use it as a context manager. Workers start when the first pair needs one and end with the
    context (or with this process, however it ends). One caller at a time.

    Args:
      num_workers: processes at most.
      seconds: bound on one symbolic decision, wall time, parsing included.
      memory_bytes: address space of one worker, which sympy and the interpreter share.
    """

    def __init__(
        self, num_workers: int = 2, seconds: float = 5.0, memory_bytes: int = 2 << 30
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"Verifier num_workers={num_workers}: give at least 1.")
        if not seconds > 0:
            raise ValueError(
                f"Verifier seconds={seconds}: no decision fits in that. 5 is usual; most take 0.01."
            )
        if memory_bytes < MIN_MEMORY_BYTES:
            raise ValueError(
                f"Verifier memory_bytes={memory_bytes}: at least {MIN_MEMORY_BYTES} (256 MiB), or"
                " right answers are lost; 2 GiB is usual."
            )
        self.num_workers, self.seconds, self.memory_bytes = num_workers, seconds, memory_bytes
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *_: object) -> None:
        while self._workers:
            self._workers.pop().kill()

    def equivalent_many(self, pairs: Sequence[tuple[str, str | None]]) -> list[Verdict]:
        """One verdict per pair, in order. Equal pairs are decided once."""
        verdicts: dict[tuple[str, str | None], Verdict] = {}
        undecided: list[tuple[str, str]] = []
        for gold, prediction in dict.fromkeys(pairs):
            start = time.perf_counter()
            decision = _decide(gold, prediction)
            if decision is not None:
                verdicts[gold, prediction] = Verdict(
                    equivalent=decision[0],
                    reason=decision[1],
                    seconds=time.perf_counter() - start,
                )
            elif prediction is not None:
                undecided.append((gold, prediction))
        if undecided:
            verdicts.update(zip(undecided, self._symbolic(undecided), strict=True))
        return [verdicts[pair] for pair in pairs]

    def _symbolic(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        waiting = collections.deque(range(len(pairs)))
        done: dict[int, Verdict] = {}
        try:
            while len(done) < len(pairs):
                self._hand_out(waiting, pairs)
                self._collect(done)
        except BaseException:
            self.__exit__()  # a worker left on a job would hand its answer to the next call
            raise
        return [done[job] for job in range(len(pairs))]

    def _hand_out(self, waiting: collections.deque[int], pairs: list[tuple[str, str]]) -> None:
        """Starts the workers that are missing and gives each free one a pair."""
        for worker in [worker for worker in self._workers if worker.died_idle()]:
            self._workers.remove(worker)
            worker.kill()
        running = sum(worker.job is not None for worker in self._workers)
        while len(self._workers) < min(self.num_workers, running + len(waiting)):
            self._workers.append(_Worker(self.seconds, self.memory_bytes))
        for worker in self._workers:
            if waiting and worker.ready and worker.job is None:
                job = waiting.popleft()
                worker.ask(job, *map(normalise, pairs[job]), seconds=self.seconds)

    def _collect(self, done: dict[int, Verdict]) -> None:
        """Waits for the next answer or deadline and enters what came; kills what overran."""
        active = [worker for worker in self._workers if worker.job is not None or not worker.ready]
        pause = min(worker.deadline for worker in active) - time.monotonic()
        speaking = wait([worker.connection for worker in active], max(0.0, pause))
        for worker in active:
            if worker.connection in speaking:
                self._hear(worker, done)
            elif time.monotonic() >= worker.deadline:
                self._lose(worker, "timeout", done)

    def _hear(self, worker: _Worker, done: dict[int, Verdict]) -> None:
        try:
            message = worker.connection.recv_bytes()
        except (EOFError, ConnectionError):
            overran = time.monotonic() - worker.since >= self.seconds
            self._lose(worker, "timeout" if overran else "crashed", done)
            return
        if worker.job is None:
            worker.ready = True
            return
        equal, reason = json.loads(message)
        seconds = time.monotonic() - worker.since
        done[worker.job] = Verdict(equivalent=equal, reason=reason, seconds=seconds)
        worker.job = None

    def _lose(self, worker: _Worker, reason: str, done: dict[int, Verdict]) -> None:
        """Kills a worker; its pair, if it had one, is not equivalent for that reason."""
        self._workers.remove(worker)
        worker.kill()
        if worker.job is None:
            raise RuntimeError(
                f"a verification worker ended before it was ready ({reason}, exit code"
                f" {worker.process.returncode}); its own message is above. Is math-verify"
                " installed in this environment?"
            )
        seconds = time.monotonic() - worker.since
        done[worker.job] = Verdict(equivalent=False, reason=reason, seconds=seconds)
