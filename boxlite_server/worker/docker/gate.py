"""A bound on what is done at once, and on how many wait for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import ResourceExhaustedError


class Gate:
    """At most `places` inside at once and `queue` waiting, each for at most `patience` seconds; `what` names them
    in the refusal of further ones."""

    def __init__(self, places: int, queue: int, patience: float, what: str) -> None:
        self._room = places + queue
        self._patience = patience
        self._what = what
        self._lock = threading.Lock()
        self._present = 0
        self._places = threading.Semaphore(places)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Raises `ResourceExhaustedError` at once when the queue is full, later when its turn does not come."""
        with self._lock:
            if self._present >= self._room:
                raise self._refusal()
            self._present += 1
        try:
            if not self._places.acquire(timeout=self._patience):
                raise self._refusal()
            try:
                yield
            finally:
                self._places.release()
        finally:
            with self._lock:
                self._present -= 1

    def _refusal(self) -> ResourceExhaustedError:
        return ResourceExhaustedError(f"the worker has {self._what} under way; try again later")
