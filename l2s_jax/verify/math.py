r"""Whether a prediction equals the reference: as text, as numbers, by structure, or by algebra.

Lives here: `Verifier`, which settles what it can in this process and hands the rest to killable
workers, and `equivalent`, one decision with a verifier of the process's own. Not here: finding the
answer in a text (`verify/answers.py`), the decision (`verify/decide.py`), the processes
(`verify/pool.py`), the conventions (`verify/policy.py`).

Works from threads (they take turns at the workers), from asyncio (`await
asyncio.to_thread(verifier.equivalent_many, pairs)`), in forks of a process that has workers (a fork
starts its own) and in notebooks. No signal handler and no alarm of the caller is touched.
"""

import atexit
import os
import threading
import time
from collections.abc import Callable, Sequence

from l2s_jax.types import Verdict
from l2s_jax.verify.decide import DEFAULT, decide
from l2s_jax.verify.policy import Policy
from l2s_jax.verify.pool import Pool

MIN_MEMORY_BYTES = 256 << 20  # below, a worker that holds sympy has nothing left to work with

Pair = tuple[str, str | None]


class Verifier:
    """Decides pairs (gold, prediction), in process where it can, else in killable workers.

    Use it as a context manager. Workers start when the first pair needs one and end with the
    context (or with this process, however it ends).

    Args:
      num_workers: processes at most.
      seconds: bound on one decision by algebra, wall time, parsing included.
      memory_bytes: address space of one worker, which sympy and the interpreter share.
      policy: what counts as the same answer where mathematics does not say.
    """

    def __init__(
        self,
        num_workers: int = 2,
        seconds: float = 5.0,
        memory_bytes: int = 2 << 30,
        policy: Policy = DEFAULT,
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
        self.policy = policy
        self._pool = Pool(num_workers, seconds, memory_bytes, policy)
        self._turn = threading.Lock()
        self._process = os.getpid()

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; the next pair that needs one starts them again."""
        self._own_after_fork()
        with self._turn:
            self._pool.close()

    def equivalent(self, gold: str, prediction: str | None) -> Verdict:
        """The verdict on one pair."""
        return self.equivalent_many([(gold, prediction)])[0]

    def equivalent_many(
        self, pairs: Sequence[Pair], check: Callable[[], None] | None = None
    ) -> list[Verdict]:
        """One verdict per pair, in order. Equal pairs are decided once.

        Args:
          check: asked every half second while workers are waited for; what it raises ends the call,
            and its workers.
        """
        verdicts: dict[Pair, Verdict] = {}
        undecided: list[tuple[str, str]] = []
        for pair in dict.fromkeys(pairs):
            verdict = self._without_algebra(*pair)
            if verdict is not None:
                verdicts[pair] = verdict
            elif pair[1] is not None:
                undecided.append((pair[0], pair[1]))
        if undecided:
            self._own_after_fork()
            with self._turn:
                verdicts.update(zip(undecided, self._pool.decide(undecided, check), strict=True))
        return [verdicts[pair] for pair in pairs]

    def _without_algebra(self, gold: str, prediction: str | None) -> Verdict | None:
        start = time.perf_counter()
        decision = decide(gold, prediction, self.policy)
        if decision is None:
            return None
        seconds = time.perf_counter() - start
        return Verdict(equivalent=decision[0], reason=decision[1], seconds=seconds)

    def _own_after_fork(self) -> None:
        """In a fork: a lock and workers of its own. The parent's go on working for the parent."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._turn = threading.Lock()  # the parent's may have been held in the fork's moment
            self._pool.forget()


_shared: Verifier | None = None
_shared_made = threading.Lock()


def equivalent(gold: str, prediction: str | None) -> Verdict:
    """The verdict on one pair, by a verifier that this process keeps until its end."""
    global _shared  # noqa: PLW0603  # one per process is the point: workers are dear to start
    with _shared_made:
        if _shared is None:
            _shared = Verifier(num_workers=1)
            atexit.register(_shared.close)
    return _shared.equivalent(gold, prediction)
