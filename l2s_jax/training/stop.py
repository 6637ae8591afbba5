"""Leaving in order when the machine is taken away: SIGTERM and SIGINT become a question.

Lives here: `StopSignal`, which a loop asks between its stages, and `Stopped`, which it leaves with.
Not here: what is saved on the way out (the loops), what makes a checkpoint whole
(`training/checkpoint.py`), notices and votes (`training/hosts.py`).

Python runs a signal handler only between two of its own instructions, so a compilation, a device
program or a write that takes minutes would be deaf. A thread hears the signal at once, and ends
the process when the loop has not left in time. Nothing is lost by that but steps since the last
checkpoint: what is being written then never gets its final name.

Of several hosts one is enough to be told: it tells the others, and each goes on as if the signal
had come to itself. When they leave they agree on (`together`, `Vote`), for a checkpoint takes all.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar, cast

from l2s_jax.sampling.serve import Program, Watch
from l2s_jax.sampling.state import LoopState
from l2s_jax.training import hosts

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
RELAYED = signal.SIGUSR1  # how this process tells itself what another host was told
NOTICE = "l2s/stop"
GRACE_SECONDS = 25.0  # clouds give 30 from SIGTERM to the end of the machine
WATCH_STEPS = 32  # passes of the decode loop between two looks; each look costs one host round trip


class Stopped(SystemExit):
    """The run left on request, all that was complete saved; `code` is the program's exit code."""

    def __init__(self, signum: int):
        super().__init__(128 + signum)
        self.signum = signum


@dataclasses.dataclass(frozen=True)
class Interrupted:
    """What a host has to show whose part a signal ended."""

    signum: int


class StopSignal:
    """While this context is open, the first SIGTERM or SIGINT sets a flag; a second ends at once.

    Until `hold` is called, the first also raises `Stopped`: a run that is still being prepared has
    nothing to save. The caller's handlers are back afterwards. Outside the main thread no handler
    can be set: the context is then inert, and signals do what they did before.
    """

    def __init__(self, grace_seconds: float = GRACE_SECONDS):
        if not grace_seconds > 0:
            raise ValueError(f"StopSignal.grace_seconds={grace_seconds}: above 0; 25 is usual.")
        self._grace = grace_seconds
        self._signum: int | None = None
        self._elsewhere = int(signal.SIGTERM)
        self._end_hearing: Callable[[], None] = lambda: None
        self._before: dict[signal.Signals, Any] = {}
        self._left = threading.Event()
        self._announced = threading.Lock()
        self._may_raise = True

    @property
    def asked(self) -> bool:
        """True once a signal came."""
        return self._signum is not None

    def check(self) -> None:
        """Leaves by `Stopped` if a signal came. Call it only where nothing is half done."""
        if self._signum is not None:
            raise Stopped(self._signum)

    def leave(self) -> None:
        """Leaves by `Stopped` because some host was told to; this one may not have heard yet."""
        if self._signum is None:
            self._announce(self._elsewhere, " on another host")
        raise Stopped(self._signum or self._elsewhere)

    def hold(self) -> None:
        """From here on a signal waits to be asked for. Call it when there is something to save."""
        self.check()
        self._may_raise = False

    def interruptible(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a signal raises `Stopped` wherever Python is. For what can be thrown away whole.

        Loading, sampling and verifying are such: their results are gone, and nothing else is. An
        update or a write is not. With several hosts a signal waits until `together`.
        """
        return self._interruptible() if hosts.alone() else contextlib.nullcontext()

    def together(self, make: Callable[[], T]) -> list[T]:
        """What `make` gives on every host; if a signal interrupts it on one, all leave here."""
        if hosts.alone():
            return [make()]
        found = hosts.everyone(self._attempt(make))
        for one in found:
            if isinstance(one, Interrupted):
                raise Stopped(one.signum)
        return cast(list[T], found)

    def _attempt(self, make: Callable[[], T]) -> "T | Interrupted":
        try:
            with self._interruptible():
                return make()
        except Stopped as stopped:
            return Interrupted(stopped.signum)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        self._may_raise = True  # before the look: what comes after it raises
        try:
            self.check()
            yield
        finally:
            self._may_raise = False
        self.check()

    def watch(self) -> Watch:
        """For `Engine.sample`: the decode loop comes back often enough to hear a signal."""

        def look(_: Program, state: LoopState) -> LoopState:
            self.check()
            return state

        return Watch(every=WATCH_STEPS, look=look)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self
        ours, theirs = socket.socketpair()
        self._ours, self._theirs = ours, theirs
        theirs.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        taken = SIGNALS if hosts.alone() else (*SIGNALS, RELAYED)
        self._before = {number: signal.signal(number, self._note) for number in taken}
        self._listener = threading.Thread(target=self._listen, name="stop signal", daemon=True)
        self._listener.start()
        if not hosts.alone():
            self._end_hearing = hosts.hear(NOTICE, lambda word: self._relay(int(word)))
        return self

    def __exit__(self, *_: Any) -> None:
        self._left.set()
        self._end_hearing()
        if not self._before:
            return
        for number, handler in self._before.items():
            # None: the handler was set by C code, and Python cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
        signal.set_wakeup_fd(self._wakeup_before)
        self._theirs.close()  # which ends the listener, once it has told the other hosts
        self._listener.join(self._grace)

    def _relay(self, signum: int) -> None:
        self._elsewhere = signum
        os.kill(os.getpid(), RELAYED)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._signum = self._signum or self._meant(signum)
        if self._may_raise:
            self._may_raise = False
            raise Stopped(self._signum)

    def _meant(self, signum: int) -> int:
        """The signal that came, here or to another host."""
        return self._elsewhere if signum == RELAYED else signum

    def _listen(self) -> None:
        """Hears a signal whatever the main thread is doing."""
        with self._ours as ours:
            numbers = _numbers(ours)
            first = next(numbers, None)
            if first is None:
                return
            signum = self._signum = self._signum or self._meant(first)
            self._announce(signum, " on another host" if first == RELAYED else "")
            hurry = threading.Thread(
                target=self._leave_in_time, args=(signum,), name="stop deadline", daemon=True
            )
            hurry.start()
            if first != RELAYED and not hosts.alone():
                hosts.tell(NOTICE, str(signum))
            # All hosts of a slice may be told at once; only what comes twice to one is a second.
            own = [number for number in (first,) if number != RELAYED]
            for number in numbers:
                own += [number] if number != RELAYED else []
                if len(own) > 1:
                    _say(f"{signal.Signals(number).name} again: leaving at once")
                    _exit(128 + number)
        hurry.join()  # the context was left, so at once

    def _announce(self, signum: int, where: str) -> None:
        """Says why this host leaves, once."""
        if self._announced.acquire(blocking=False):
            _say(f"{signal.Signals(signum).name}{where}: saving what is complete, then leaving")

    def _leave_in_time(self, signum: int) -> None:
        if not self._left.wait(self._grace):
            _say(f"not done after {self._grace:g} seconds: the last whole checkpoint stays")
            _exit(128 + signum)


def _numbers(ours: socket.socket) -> Iterator[int]:
    """Our signals' numbers as they come; ends with the context."""
    while received := ours.recv(1):
        if received[0] in (*SIGNALS, RELAYED):
            yield received[0]


def _exit(code: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)


def _say(message: str) -> None:
    # Not print: the main thread may hold the stream's lock, and be stuck.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{message}\n".encode())
