"""The sockets of an HTTP client, so that one who gives up need not wait for a slow server.

Lives here: `Connections`, which sees every socket that a client opens and can end all reads on
them at once. Not here: what is asked over them (`sampling/endpoint.py`).

A thread that waits in a read cannot be interrupted, and closing the socket under it wakes nobody;
shutting the socket down does, and the thread then closes it itself. Sockets are seen by the `trace`
extension of httpx requests, which names each connection as it is made.
"""

import contextlib
import socket
import threading
import weakref
from collections.abc import Mapping
from typing import Any


class Connections:
    """Every socket that the client's requests have opened. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._ended = False

    def watch(self, request: Any) -> None:
        """An httpx event hook for requests."""
        request.extensions["trace"] = self._see

    def _see(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            opened = info["return_value"].get_extra_info("socket")
            with self._lock:
                self._sockets.add(opened)
                if self._ended:  # it was on its way while the others were ended
                    _shut_down(opened)

    def end(self) -> None:
        """Ends what is being read or written, and whatever is opened from now on."""
        with self._lock:
            self._ended = True
            for opened in list(self._sockets):
                _shut_down(opened)


def _shut_down(opened: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed already, or by the other side
        # The plain socket's method: an SSLSocket's own also drops what its reader is using.
        socket.socket.shutdown(opened, socket.SHUT_RDWR)
