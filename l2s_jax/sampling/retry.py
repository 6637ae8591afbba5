"""How long to wait before a server is asked again, and threads that ask it.

Lives here: Retry-After, exponential backoff with jitter, the gate that holds all askers back
together, and `answered`, a bounded crew of threads. Not here: which failures are worth another
try (`sampling/remote.py`).

Threads and not asyncio: a call works alike in a script, in a thread of a server, under a running
event loop (`await asyncio.to_thread(sampler.sample, ...)`) and in a notebook, which has one.
"""

import collections
import datetime
import email.utils
import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")

LONGEST_BACKOFF = 60.0  # seconds, where the server does not say how long


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait; None where it does not say, or not legibly."""
    exact, text = _number(headers.get("retry-after-ms")), headers.get("retry-after")
    if exact is not None:
        return max(0.0, exact / 1000)
    seconds = _number(text)
    if seconds is not None:
        return max(0.0, seconds)
    return None if text is None else _seconds_until(text)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _seconds_until(date: str) -> float | None:
    try:
        when = email.utils.parsedate_to_datetime(date)
    except ValueError:
        return None
    if when.tzinfo is None:  # "-0000": in UTC, and nothing said of a zone
        when = when.replace(tzinfo=datetime.UTC)
    return max(0.0, when.timestamp() - time.time())


def backoff(num_tries: int, first_seconds: float) -> float:
    """Seconds to wait after so many tries: doubled each time, then half of it by chance."""
    longest = min(LONGEST_BACKOFF, first_seconds * 2 ** (num_tries - 1))
    return longest * random.uniform(0.5, 1.0)


class Gate:
    """Where all who ask one server wait, once it has asked one of them to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opens = 0.0  # on the monotonic clock

    def close_for(self, seconds: float) -> None:
        with self._lock:
            self._opens = max(self._opens, time.monotonic() + seconds)

    def wait(self, halt: threading.Event) -> None:
        """Returns when the gate is open, or `halt` is set."""
        while not halt.is_set():
            with self._lock:
                seconds = self._opens - time.monotonic()
            if seconds <= 0:
                return
            halt.wait(seconds)


def answered(
    asks: Iterable[A],
    answer: Callable[[A], B],
    num_threads: int,
    halt: threading.Event,
    hang_up: Callable[[], None],
) -> Generator[B, None, None]:
    """What `answer` makes of each, as they finish. What it raises ends all, and loses answers.

    Nothing new is begun once `halt` is set; what is at work then is still handed out. Answers that
    nobody takes hold up new ones, so that one who gives up loses at most 2 × `num_threads`. No
    thread is left when it ends or is closed.

    Args:
      hang_up: makes every `answer` at work return soon; called where one gives up.
    """
    waiting = collections.deque(asks)
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        while (one := todo.get()) is not None:
            try:
                done.put((answer(one[0]), None))
            except Exception as error:
                done.put((None, error))  # in silence, the caller would wait for ever

    # Daemons: a program that ends without closing this does not wait for a slow server.
    threads = [
        threading.Thread(target=work, daemon=True, name=f"l2s-ask-{n}")
        for n in range(min(num_threads, len(waiting)))
    ]
    for thread in threads:
        thread.start()
    num_pending = 0
    try:
        while True:
            while waiting and num_pending < 2 * num_threads and not halt.is_set():
                todo.put((waiting.popleft(),))
                num_pending += 1
            if not num_pending:
                return
            got, error = done.get()
            num_pending -= 1
            if error is not None:
                raise error
            yield got
    finally:
        halt.set()
        if num_pending:
            hang_up()
        for _ in threads:
            todo.put(None)
        for thread in threads:
            thread.join()
