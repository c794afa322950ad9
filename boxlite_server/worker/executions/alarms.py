"""Calls that are to be made later: time limits, hang-ups, the grace period after a kill."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable


class Alarms:
    """The calls that are due later. `clock` is monotonic, in seconds; `changed` guards them."""

    def __init__(self, clock: Callable[[], float], changed: threading.Condition) -> None:
        self._clock = clock
        self._changed = changed
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()

    def set(self, delay: float, ring: Callable[[], None]) -> None:
        """Make the call `ring` due in `delay` seconds, and notify those who wait on `changed`."""
        with self._changed:
            heapq.heappush(self._heap, (self._clock() + delay, next(self._sequence), ring))
            self._changed.notify_all()

    def next_time(self, latest: float) -> float:
        """The time at which the first call is due, at most `latest`. Call it with `changed` held."""
        return min(latest, self._heap[0][0]) if self._heap else latest

    def ring_due(self) -> None:
        """Make the calls that are due, each in its own thread: a call that waits for a slow engine must not delay
        the others."""
        with self._changed:
            due = []
            while self._heap and self._heap[0][0] <= self._clock():
                due.append(heapq.heappop(self._heap)[2])
        for ring in due:
            threading.Thread(target=ring, name="alarm", daemon=True).start()
