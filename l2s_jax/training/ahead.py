"""The next step's input, made while this step is at work: one step ahead, never more.

Lives here: the thread and its end. Not here: what is made (`training/gather.py`), when that is
sound, which the loop knows (`training/grpo.py`).
"""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from l2s_jax.sampling.serve import Program, Watch
from l2s_jax.sampling.state import LoopState

T = TypeVar("T")


class Abandoned(Exception):
    """Nobody waits any more for what was being made."""


class Ahead(Generic[T]):
    """Makes what a step needs, before it is asked for where the caller says so.

    What is made must depend on the step alone; then nobody can tell from it when it was made.
    Leaving the context ends the thread as soon as what it makes calls `check`.
    """

    def __init__(self, make: Callable[[int], T]):
        self._make = make
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next: tuple[int, concurrent.futures.Future[T]] | None = None
        self._left = threading.Event()

    def begin(self, step: int) -> None:
        """Starts on a step in the background."""
        assert self._next is None, f"step {self._next} is not taken yet"
        self._next = (step, self._thread.submit(self._make, step))

    def take(self, step: int) -> T:
        """What the step needs: waited for if it was begun, made here and now if not."""
        begun, self._next = self._next, None
        if begun is None:
            return self._make(step)
        assert begun[0] == step, f"step {begun[0]} was begun, step {step} is asked for"
        return begun[1].result()

    def check(self) -> None:
        """Raises `Abandoned` once the context is left; for who makes things, between two parts."""
        if self._left.is_set():
            raise Abandoned

    def also(self, watch: Watch) -> Watch:
        """A watch over a rollout that ends it when the context is left, too."""

        def look(program: Program, state: LoopState) -> LoopState:
            self.check()
            return watch.look(program, state)

        return Watch(every=watch.every, look=look)

    def __enter__(self) -> "Ahead[T]":
        return self

    def __exit__(self, *_: Any) -> None:
        self._left.set()
        self._thread.shutdown(wait=True, cancel_futures=True)
