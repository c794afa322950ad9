"""Closes what came from a box.

A socket may linger: its last close waits until the other end has taken all that was written, for as long as the box has
said. The worker's close may be the last one of a descriptor that was passed to it, also of one that lies unread in a
connection. So no thread that others wait for closes such things.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from contextlib import suppress


class Closing:
    """What came from one box and is to be closed, one thing after the other, in a thread that ends with the last
    one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._things: deque[int | socket.socket] = deque()
        self._is_busy = False

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be closed."""
        return self._is_busy

    def close(self, *things: int | socket.socket) -> None:
        """Have descriptors and sockets closed soon."""
        with self._lock:
            self._things.extend(things)
            if self._is_busy or not self._things:
                return
            self._is_busy = True
        threading.Thread(target=self._run, name="closing", daemon=True).start()

    def _run(self) -> None:
        while (thing := self._next()) is not None:
            with suppress(OSError):
                if isinstance(thing, int):
                    os.close(thing)
                else:
                    thing.close()

    def _next(self) -> int | socket.socket | None:
        with self._lock:
            self._is_busy = bool(self._things)
            return self._things.popleft() if self._is_busy else None
