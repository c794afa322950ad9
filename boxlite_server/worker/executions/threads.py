"""Threads that are used again: to start one costs more than most commands' output."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

MAX_IDLE = 64  # threads that wait for the next function; others end

log = logging.getLogger(__name__)


class Threads:
    """Runs functions at once, each in a thread that has the function's name and does nothing else meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle = 0
        self._functions: SimpleQueue[tuple[str, Callable[[], None]]] = SimpleQueue()  # each for a thread that is idle

    def run(self, name: str, function: Callable[[], None]) -> None:
        with self._lock:
            is_idle = self._idle > 0
            self._idle -= is_idle
        if is_idle:
            self._functions.put((name, function))
        else:
            threading.Thread(target=self._work, args=(name, function), daemon=True).start()

    def _work(self, name: str, function: Callable[[], None]) -> None:
        thread = threading.current_thread()
        while True:
            thread.name = name
            try:
                function()
            except Exception:
                log.exception("fault in a thread")
            del function  # and what it refers to
            with self._lock:
                if self._idle == MAX_IDLE:
                    return
                self._idle += 1
            thread.name = "idle"
            name, function = self._functions.get()
