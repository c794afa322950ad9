"""The answers that go on for as long as somebody reads, counted and ended together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from ...errors import ResourceExhaustedError, UpstreamUnavailableError


class Streams:
    """At most `limit` of them at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._count = 0
        self._ending = False
        self._closers: dict[int, Callable[[], None]] = {}
        self._next = 0

    @contextmanager
    def one(self, context: grpc.ServicerContext) -> Iterator[Callable[[Callable[[], None]], bool]]:
        """Be one of them. Gives the function that takes what is to be called when the reader goes away, or when
        all are to end; it answers False when that has come to pass.

        Raises `ResourceExhaustedError` when there are too many, and `UpstreamUnavailableError` in place of the
        stream's end when it was ended from here.
        """
        mine: list[int] = []

        def on_leaving(close: Callable[[], None]) -> bool:
            with self._lock:
                if self._ending:
                    return False
                self._next += 1
                mine.append(self._next)
                self._closers[self._next] = close
            return bool(context.add_callback(close))

        with self._lock:
            if self._count >= self._limit:
                raise ResourceExhaustedError(f"the worker serves {self._limit} readers already; try again later")
            self._count += 1
        try:
            yield on_leaving
            if self._ending:
                raise UpstreamUnavailableError("the worker is shutting down; what runs in its boxes goes on")
        finally:
            with self._lock:
                self._count -= 1
                for key in mine:
                    self._closers.pop(key, None)

    def end(self) -> None:
        """End all that are under way, and those that come."""
        with self._lock:
            self._ending = True
            closers = list(self._closers.values())
        for close in closers:
            close()
