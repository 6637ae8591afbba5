"""What a verification process runs: one decision after the other, with algebra.

Lives here: the process's limits and its loop. Not here: the decision (`verify/decide.py`), the
algebra (`verify/symbolic.py`), who starts, bounds and replaces the process (`verify/pool.py`).
Imports neither jax nor `l2s_jax.types`, which would cost each worker seconds and a gigabyte.

math-verify's own time limits are off: they are signal handlers, which C code never lets run.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection

from l2s_jax.verify.decide import Decision, decide
from l2s_jax.verify.policy import Policy
from l2s_jax.verify.symbolic import Symbolic

WARM_UP = (("x+1", "1+x"), (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"))
"""Decided before the first pair: the parser builds its tables as it meets a rule, seconds on a busy
machine, and that time is not the pair's."""

ORPHAN_SECONDS = 2.0  # between two looks whether the parent still lives


def answer(gold: str, prediction: str, policy: Policy, judge: Symbolic) -> Decision:
    """(equivalent, reason); whatever breaks on a text makes it no match."""
    try:
        return decide(gold, prediction, policy, judge) or (False, "unparsable")
    except (RecursionError, MemoryError):
        return False, "crashed"
    except Exception:
        # sympy raises all there is on texts that mean nothing: RuntimeError from its solvers,
        # KeyError from its printers. The text is at fault, the pair is no match, others go on.
        return False, "unparsable"


def serve(connection: Connection, seconds: float, policy: Policy) -> None:
    """Answers pairs until the other side closes, or the process that it belongs to is gone."""
    parent, judge = os.getppid(), Symbolic()
    for warm, up in WARM_UP:
        decide(warm, up, policy, judge)
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send_bytes(b"ready")
        while True:
            # A fork of the parent holds our socket's other end too, and may outlive it.
            while not connection.poll(ORPHAN_SECONDS):
                if os.getppid() != parent:
                    return
            for gold, prediction in json.loads(connection.recv_bytes()):
                # The parent kills an overrun. This default-action alarm ends it even without one.
                signal.setitimer(signal.ITIMER_REAL, seconds + 1.0)
                decision = answer(gold, prediction, policy, judge)
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                connection.send_bytes(json.dumps(decision).encode())


def main(descriptor: int, seconds: float, memory_bytes: int, policy: Policy) -> None:
    """Limits this process, then serves on the socket that the parent left open."""
    # Both go to whole groups of processes; they are for the parent, which closes us. A worker that
    # died of one would make a right answer a wrong one in the parent's last step.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses; the time bound still holds
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)  # math-verify warns that its own limits are off
    serve(Connection(descriptor), seconds, policy)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), Policy(**json.loads(sys.argv[4])))
