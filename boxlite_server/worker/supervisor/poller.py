"""One thread that waits for many descriptors, and for points in time."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress

log = logging.getLogger(__name__)


class Poller:
    """Calls functions in a thread of its own: whenever a descriptor can be read, and at certain times.

    All methods may be called from any thread, also from the functions. They must not block.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []  # a heap; the number decides between equal times
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        self.add(self._wake, self._woken)

    def add(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        """Call the function whenever the descriptor can be read or its other end is closed. The caller removes the
        descriptor before it closes it."""
        self._handlers[descriptor] = on_readable
        self._epoll.register(descriptor, select.EPOLLIN)

    def remove(self, descriptor: int) -> None:
        """Undo `add`. The function may still be called once. A descriptor that was not added is ignored."""
        if self._handlers.pop(descriptor, None) is not None:
            with suppress(OSError):
                self._epoll.unregister(descriptor)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call the function once, after so many seconds."""
        with self._lock:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), function))
        os.eventfd_write(self._wake, 1)

    def start(self) -> None:
        """Start the thread, unless it runs."""
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="supervisors", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            self._closed = True
            thread = self._thread
        os.eventfd_write(self._wake, 1)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while not self._closed:
            for descriptor, _ in self._epoll.poll(self._seconds_left()):
                if handler := self._handlers.get(descriptor):
                    _call(handler)
            while (function := self._next_due()) is not None:
                _call(function)

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _seconds_left(self) -> float | None:
        with self._lock:
            return max(self._due[0][0] - time.monotonic(), 0.0) if self._due else None

    def _next_due(self) -> Callable[[], None] | None:
        with self._lock:
            if self._due and self._due[0][0] <= time.monotonic():
                return heapq.heappop(self._due)[2]
        return None


def _call(function: Callable[[], None]) -> None:
    try:
        function()
    except Exception:
        log.exception("the thread for supervisors goes on")
