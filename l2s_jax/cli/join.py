"""One process of several: how it finds the others, and how it leaves when one of them is gone.

Lives here: `together`, around a run. Not here: what hosts do together (`training/hosts.py`).

On a TPU slice jax knows from the machine who is who. Elsewhere, as in tests, three environment
variables say it: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
JAX_PROCESS_ID.
"""

import contextlib
import importlib.util
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

from l2s_jax.cli.devices import tpu_chips

ADDRESS, COUNT, INDEX = VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
HEARTBEAT = "L2S_HEARTBEAT_SECONDS"
HEARTBEAT_SECONDS = 60  # of silence, after which a process counts as gone and all others end
FAREWELL_SECONDS = 10.0  # for the others' last words; the first process carries their connection
# How an error of the machinery begins; where jax waits for a program, it raises it as ValueError.
STATUS = re.compile(
    "(CANCELLED|UNKNOWN|DEADLINE_EXCEEDED|FAILED_PRECONDITION|ABORTED|INTERNAL|UNAVAILABLE): "
)
LOST = (
    "process {index} of {count} ended by the error above. If that speaks of a closed connection, a"
    " heartbeat or a task that is gone, another process ended first, and its own log says why."
    " Start all of them again with the same arguments: they go on from the last checkpoint."
)


@contextlib.contextmanager
def together(say: Callable[[str], None]) -> Iterator[None]:
    """A run of this process, joined with others if it has any; a failure does not wait for them."""
    count = join_hosts()
    try:
        yield
    except Exception as error:
        if count == 1:
            raise
        if isinstance(error, (ValueError, OSError)) and not of_machinery(error):
            say(str(error))
            leave(2, farewell=True)
        traceback.print_exc()
        say(LOST.format(index=sys.modules["jax"].process_index(), count=count))
        leave(1, farewell=False)


def of_machinery(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, is of what joins the processes, not of the user.

    A checkpoint that waits for a process which is gone ends as a TimeoutError, an OSError.
    """
    while error is not None:
        if isinstance(error, TimeoutError | ConnectionError) or STATUS.match(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def join_hosts() -> int:
    """Meets the run's other processes, if it has any; returns how many they are with this one."""
    given = [name for name in VARIABLES if os.environ.get(name)]
    if not given and not is_tpu_host():
        return 1
    if given and len(given) < len(VARIABLES):
        missing = ", ".join(name for name in VARIABLES if name not in given)
        raise ValueError(
            f"{', '.join(given)} set, but not {missing}. A process of several needs all three;"
            " unset them to run alone."
        )
    import jax

    if jax.distributed.is_initialized():
        return jax.process_count()
    silence = _number(HEARTBEAT, str(HEARTBEAT_SECONDS))
    if silence < 1:
        raise ValueError(f"{HEARTBEAT}={silence}: seconds, at least 1.")
    if not given:
        return _join_slice(silence)
    count, index = _number(COUNT), _number(INDEX)
    if not 0 <= index < count:
        raise ValueError(f"{INDEX}={index}, {COUNT}={count}: processes are numbered from 0.")
    # Its own devices: collectives of overlapping programs wait for each other on a CPU with few
    # cores.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.distributed.initialize(os.environ[ADDRESS], count, index, heartbeat_timeout_seconds=silence)
    return count


def _join_slice(silence: int) -> int:
    """Meets the other hosts of a TPU slice; a machine that belongs to none stays alone."""
    import jax

    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=silence)
    except ValueError:  # jax found no slice around it, as on a notebook's machine
        return 1
    except RuntimeError:
        # Too late, for jax is awake already, as it may be in a notebook. One host needs no other.
        if jax.process_count() > 1:
            raise
    return jax.process_count()


def is_tpu_host() -> bool:
    """True on a machine with TPU chips on which jax would use them."""
    wanted = (os.environ.get("JAX_PLATFORMS") or "tpu").split(",")
    return bool(tpu_chips()) and "tpu" in wanted and importlib.util.find_spec("libtpu") is not None


def _number(name: str, usual: str = "") -> int:
    text = os.environ.get(name, usual)
    if not text.isdigit():
        raise ValueError(f"{name}={text!r}: expected a whole number.")
    return int(text)


def leave(code: int, *, farewell: bool) -> None:
    """Ends a process of several that has failed, without waiting for those that it leaves behind.

    An ordinary end would wait minutes for the others, who wait for this one.

    Args:
      farewell: where all failed alike: they part within a moment. Where another is gone, jax would
        abort the process in it.
    """
    import jax

    if farewell:
        parting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        parting.start()
        parting.join(FAREWELL_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
