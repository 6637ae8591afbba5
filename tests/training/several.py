"""Processes that run as hosts of one program, on this machine: `tests.training.host` in each."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

REPOSITORY = pathlib.Path(__file__).parents[2]
PATIENCE = 300  # seconds; processes that take longer hang


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def run_hosts(
    commands: Sequence[Sequence[str]],
    *,
    hosts: int,
    compiled: pathlib.Path,
    traps: Mapping[int, Any] | None = None,
    more: Mapping[str, str] | None = None,
) -> list[tuple[int, str]]:
    """Exit code and what was said, of every host.

    Args:
      commands: of `l2s`, one after another.
      compiled: where programs that are compiled lie for the next ones.
      traps: host → what `tests.training.host` does to it, and when.
    """
    address, processes = free_address(), []
    for number in range(hosts):
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "L2S_TRAP": json.dumps((traps or {}).get(number)),
        }
        if hosts > 1:
            env["JAX_COORDINATOR_ADDRESS"] = address
            env |= {"JAX_NUM_PROCESSES": str(hosts), "JAX_PROCESS_ID": str(number)}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.training.host", json.dumps(commands)],
                cwd=REPOSITORY,
                env=env | dict(more or {}),
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return _ends(processes)


def _ends(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """How all ended; none outlives this call, and one that hangs says where."""
    ends, deadline, hangs = [], time.monotonic() + PATIENCE, []
    try:
        for number, process in enumerate(processes):
            try:
                said = process.communicate(timeout=max(1.0, deadline - time.monotonic()))[1]
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # faulthandler writes where it is
                said = process.communicate(timeout=30)[1]
                hangs.append(f"host {number} hung:\n{said[-3000:]}")
            ends.append((process.returncode, said))
    finally:
        for process in processes:
            process.kill()
    assert not hangs, "\n".join(hangs)
    return ends


def finish_hosts(*args: Any, **kwargs: Any) -> None:
    """As `run_hosts`; all must end well."""
    ends = run_hosts(*args, **kwargs)
    wrong = [f"host {n}: {code}\n{said[-3000:]}" for n, (code, said) in enumerate(ends) if code]
    assert not wrong, "\n".join(wrong)
