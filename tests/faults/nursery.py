"""Runs by fork: `python -m tests.faults.nursery` imports the program once, for all of them.

Lives here: both ends, the process that forks and `Nursery`, which asks it. Not here: what a run
does (`tests/faults/child.py`).

Each run is a process of its own, to be killed like any other; what it saves is the seconds in
which nothing can go wrong yet. The nursery has woken no backend when it forks, and so no thread of
one. It answers a request with two lines: the run's pid, and its exit code once it has ended.
"""

import contextlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import traceback
import warnings
from typing import Any


class Nursery:
    """Asks a nursery for runs, one at a time; it ends with the process that holds this."""

    def __init__(self, env: dict[str, str], folder: pathlib.Path):
        command, pipe = [sys.executable, "-m", "tests.faults.nursery"], subprocess.PIPE
        # Without buffers: a line that was read ahead would be missed by `select`.
        self._process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=pipe, stdout=pipe, bufsize=0
        )

    def start(self, arguments: list[str], env: dict[str, str], said: pathlib.Path) -> "Run":
        """A run of `l2s` with these arguments, variables added to the nursery's."""
        asked = {"arguments": arguments, "env": env, "said": str(said)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        return Run(int(self.read()), self, said)

    def read(self) -> bytes:
        """Its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the nursery has ended: {self._process.wait()}"
        return line

    def has_line(self, seconds: float) -> bool:
        """Whether `read` would return within that time."""
        return bool(select.select([self._process.stdout], [], [], seconds)[0])


class Run:
    """A run at work, or one that has ended."""

    def __init__(self, pid: int, nursery: Nursery, said: pathlib.Path):
        self._pid, self._nursery, self._said = pid, nursery, said
        self._code: int | None = None

    def poll(self, seconds: float = 0.0) -> int | None:
        """Its exit code, negative for the signal that ended it; None while it is at work."""
        if self._code is None and self._nursery.has_line(seconds):
            self._code = int(self._nursery.read())
        return self._code

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def end(self, patience: float) -> tuple[int, str]:
        """Exit code and what was said, once it has ended."""
        code = self.poll(patience)
        if code is None:
            self.kill()
            raise TimeoutError(f"at work for {patience} s: {self._said.read_text()[-4000:]}")
        return code, self._said.read_text()


def fork(asked: dict[str, Any]) -> int:
    """The pid of a run; in the run itself this never returns."""
    from tests.faults import child

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jax warns of its threads: there are none yet
        pid = os.fork()
    if pid:
        return pid
    os.environ.update(asked["env"])
    with open(asked["said"], "w") as said:
        os.dup2(said.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    code: Any = 1
    try:
        code = child.run(asked["arguments"])
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code or 0)


def main() -> None:
    from tests.faults import child

    child.wrap_all()  # before the loops take the functions' names
    import tests.training.resumable  # noqa: F401

    for line in sys.stdin:
        pid = fork(json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
