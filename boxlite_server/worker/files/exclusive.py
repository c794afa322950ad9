"""Locks by name, each of which exists while somebody holds or awaits it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Exclusive:
    """Lets one thread at a time have a name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[str, tuple[threading.Lock, int]] = {}  # the lock, and how many threads hold or await it

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Wait until no other thread has the name, and have it during the `with` block."""
        with self._lock:
            turn, threads = self._turns.get(name, (threading.Lock(), 0))
            self._turns[name] = (turn, threads + 1)
        try:
            with turn:
                yield
        finally:
            with self._lock:
                turn, threads = self._turns[name]
                if threads == 1:
                    del self._turns[name]
                else:
                    self._turns[name] = (turn, threads - 1)
