"""What a verification process runs: math-verify on one pair after the other.

Lives here: the process's limits, its loop, and the only calls of math-verify. Not here: who
starts, bounds and replaces it (`verify/math.py`). Imports neither jax nor `l2s_jax.types`, which
would cost each worker seconds and a gigabyte.

math-verify's own time limits are off: they are signal handlers, which C code never lets run.
"""

import contextlib
import json
import logging
import resource
import signal
import sys
from multiprocessing.connection import Connection

from math_verify import LatexExtractionConfig, parse, verify


def decide(gold: str, prediction: str) -> tuple[bool, str]:
    """(equivalent, reason) of two normalised answers, as mathematics."""
    try:
        gold_parsed, parsed = _parse(gold), _parse(prediction)
        if not gold_parsed or not parsed:
            return False, "unparsable"
        equal = verify(gold_parsed, parsed, timeout_seconds=None)
    except (RecursionError, MemoryError):
        return False, "crashed"
    return (True, "symbolic") if equal else (False, "different")


def _parse(answer: str) -> list:
    return parse(
        f"${answer}$",
        [LatexExtractionConfig()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]  # None is documented
    )


def serve(connection: Connection, seconds: float) -> None:
    """Answers pairs until the other side closes."""
    connection.send_bytes(b"ready")
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            gold, prediction = json.loads(connection.recv_bytes())
            # The parent kills an overrun. This default-action alarm ends it even without one.
            signal.setitimer(signal.ITIMER_REAL, seconds + 1.0)
            answer = decide(gold, prediction)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            connection.send_bytes(json.dumps(answer).encode())


def main(descriptor: int, seconds: float, memory_bytes: int) -> None:
    """Limits this process, then serves on the socket that the parent left open."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes us
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses; the time bound still holds
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    logging.disable(logging.CRITICAL)  # math-verify warns that its own limits are off
    serve(Connection(descriptor), seconds)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
