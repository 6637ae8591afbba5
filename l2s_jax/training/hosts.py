"""Several hosts that run one program: who does what, and what all must hear of the others.

Lives here: a host's share of work, exchanging what hosts made, arrays that lie on all of them, and
notices. Not here: how a process joins the others (`cli/join.py`), leaving together
(`training/stop.py`).

Every host runs the same program and must reach the same exchanges in the same order; `everyone`,
`check_all`, `Vote` and `whole` are such. With one host each of them is what it would be without
this file.
"""

import contextlib
import pathlib
import pickle
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from l2s_jax.sharding import replicated

T = TypeVar("T")
POLL_SECONDS = 0.5  # between two looks for a notice


def is_first() -> bool:
    """True on the host that writes what there must be one of: logs, completions, descriptions."""
    return jax.process_index() == 0


def alone() -> bool:
    """True where there is no other host."""
    return jax.process_count() == 1


def share(items: Sequence[T]) -> list[T]:
    """This host's part of what all have: every so manieth, so that parts are of equal kind."""
    return list(items[jax.process_index() :: jax.process_count()])


def joined(shares: Sequence[Sequence[T]]) -> list[T]:
    """All parts in the order that they had before `share`."""
    longest = max(map(len, shares))
    return [part[n] for n in range(longest) for part in shares if n < len(part)]


def everyone(value: T) -> list[T]:
    """What every host has under this name, in the order of the hosts."""
    if alone():
        return [value]
    mine = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(mine.size))
    # Powers of two: the gathering is compiled anew for each size.
    sent = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    sent[: mine.size] = mine
    found = multihost_utils.process_allgather(sent)
    # These bytes come from processes of our own run, which may do whatever this one may.
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(found, sizes, strict=True)]


def check_all(check: Callable[[], Any]) -> None:
    """Does `check` on every host; where it raises ValueError or OSError on one, all raise."""
    error = None
    try:
        check()
    except (ValueError, OSError) as raised:
        error = raised
    found = everyone(None if error is None else str(error))
    if error is not None:
        raise error
    for number, message in enumerate(found):
        if message is not None:
            raise ValueError(f"host {number} of {len(found)}: {message}")


def check_shared(folder: pathlib.Path) -> None:
    """Refuses a folder that not all hosts see as one."""
    name = everyone(f".seen-by-all.{uuid.uuid4().hex}")[0]
    if is_first():
        (folder / name).touch()
    everyone(None)

    def look() -> None:
        if not (folder / name).exists():
            raise ValueError(
                f"--workdir {folder} is not the same folder on all hosts. Give one on a disk that"
                " they share, such as a Filestore or a mounted bucket."
            )

    try:
        check_all(look)
    finally:
        if is_first():
            (folder / name).unlink(missing_ok=True)


class Vote:
    """Whether some host says yes: cast before a program is started, read while that is at work.

    Reading waits for the devices to get as far as where the vote was cast, no further.
    """

    def __init__(self, mesh: Mesh):
        self._places = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._size = mesh.size
        self._program = jax.jit(jnp.any, out_shardings=replicated(mesh))

    def cast(self, yes: bool) -> None:
        """Says yes or no for this host."""
        if not alone():
            self._cast = self._program(place(np.full(self._size, yes), self._places))

    def outcome(self, yes: bool) -> bool:
        """True where some host said yes; one that is alone may still change its mind."""
        return yes if alone() else bool(self._cast)


def place(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every host has, on the devices of all; each gives its own devices their part.

    `jax.device_put` would do, but compares the values of all hosts each time.
    """
    if alone():
        return jax.device_put(array, sharding)
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def whole(array: Any) -> np.ndarray:
    """The values of an array of which this host may hold only a part."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(jax.device_get(array))
    return multihost_utils.process_allgather(array, tiled=True)


# ---- notices: words between hosts that wait for nothing ----


def tell(name: str, word: str) -> None:
    """Tells all hosts; the first word under a name stays."""
    with contextlib.suppress(Exception):  # it may be said already, or nobody be left to hear it
        _client().key_value_set(name, word)


def hear(name: str, act: Callable[[str], None]) -> Callable[[], None]:
    """Calls `act(word)` in a thread soon after some host tells one; returns what ends the thread.

    It must be ended before the program: a thread inside the client cannot be left behind.
    """
    over = threading.Event()

    def listen() -> None:
        while not over.wait(POLL_SECONDS):
            try:
                word = _client().key_value_try_get(name)
            except Exception as error:
                if "NOT_FOUND" in str(error):
                    continue
                return  # the hosts have parted
            act(word)
            return

    thread = threading.Thread(target=listen, name=f"hear {name}", daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join()

    return end


def _client() -> Any:
    # Not public; Orbax uses the same. What is public (`multihost_utils`) are collectives, and a
    # host that hears nothing but collectives hears too late.
    from jax._src import distributed

    return distributed.global_state.client
