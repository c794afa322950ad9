"""The readers of output and logs: their calls last as long as somebody reads, and are counted and ended together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from ... import rpc
from ...errors import UpstreamUnavailableError
from ..shares import Shares


class Readers:
    """Counts the calls of readers, at most `limit` at once, which tenants share."""

    def __init__(self, limit: int) -> None:
        self.slots = Shares(limit, f"serves {limit} readers")
        self._lock = threading.Lock()
        self._ending = False
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._next = 0

    @contextmanager
    def register(self, context: grpc.ServicerContext) -> Iterator[Callable[[Callable[[], None]], bool]]:
        """Register a reader for the duration of the `with` block.

        Yields `on_end(callback)`: the callback runs when this reader disconnects or the worker shuts down;
        `on_end` returns False if that has already happened.

        Raises `ResourceExhaustedError` when there are too many readers, and `UpstreamUnavailableError` at the end
        of the block if the worker is shutting down.
        """
        keys: list[int] = []

        def on_end(callback: Callable[[], None]) -> bool:
            with self._lock:
                if self._ending:
                    return False
                self._next += 1
                keys.append(self._next)
                self._callbacks[self._next] = callback
            return bool(context.add_callback(callback))

        with self.slots.slot(rpc.TENANT.get()):
            try:
                yield on_end
                if self._ending:
                    raise UpstreamUnavailableError("the worker is shutting down; what runs in its boxes goes on")
            finally:
                with self._lock:
                    for key in keys:
                        self._callbacks.pop(key, None)

    def end(self) -> None:
        """End the calls of all readers, and of those that come later."""
        with self._lock:
            self._ending = True
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            callback()
