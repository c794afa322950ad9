"""A bound on how many threads do something at once, and on how many wait for their turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import ResourceExhaustedError


class Gate:
    """Lets `places` threads in at once, while `queue` others wait for at most `patience` seconds each.

    `what` says in the refusal of a further thread what is too many.
    """

    def __init__(self, places: int, queue: int, patience: float, what: str) -> None:
        self._room = places + queue
        self._patience = patience
        self._what = what
        self._lock = threading.Lock()
        self._present = 0  # inside or waiting
        self._inside = 0
        self._places = threading.Semaphore(places)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place, once one is free, for the duration of the `with` block.

        Raises `ResourceExhaustedError`: at once when the queue is full, later when no place becomes free in time.
        """
        with self._lock:
            if self._present >= self._room:
                raise self._refusal()
            self._present += 1
        try:
            if not self._places.acquire(timeout=self._patience):
                raise self._refusal()
            try:
                self._enter(1)
                yield
            finally:
                self._enter(-1)
                self._places.release()
        finally:
            with self._lock:
                self._present -= 1

    @property
    def inside(self) -> int:
        return self._inside

    @property
    def waiting(self) -> int:
        return self._present - self._inside

    def _enter(self, number: int) -> None:
        with self._lock:
            self._inside += number

    def _refusal(self) -> ResourceExhaustedError:
        return ResourceExhaustedError(f"the worker has {self._what} under way; try again later")
