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
        self._heap: list[tuple[float, int, str, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._names: set[str] = set()  # of the alarms that can be cancelled
        self._cancelled = 0  # alarms that are still in the heap

    def set(self, delay: float, ring: Callable[[], None], name: str = "") -> None:
        """Make the call `ring` due in `delay` seconds, and notify those who wait on `changed`. `name`: to cancel it."""
        with self._changed:
            if name:
                self._names.add(name)
            heapq.heappush(self._heap, (self._clock() + delay, next(self._sequence), name, ring))
            self._changed.notify_all()

    def cancel(self, name: str) -> None:
        """Drop the alarm of that name, if there is one."""
        with self._changed:
            if name not in self._names:
                return
            self._names.discard(name)
            self._cancelled += 1
            if self._cancelled > len(self._heap) // 2:
                self._heap = [alarm for alarm in self._heap if self._is_set(alarm[2])]
                heapq.heapify(self._heap)
                self._cancelled = 0

    def next_time(self, latest: float) -> float:
        """The time at which the first call is due, at most `latest`. Call it with `changed` held."""
        return min(latest, self._heap[0][0]) if self._heap else latest

    def ring_due(self) -> None:
        """Make the calls that are due, each in its own thread: a call that waits for a slow engine must not delay
        the others."""
        with self._changed:
            due = []
            while self._heap and self._heap[0][0] <= self._clock():
                _, _, name, ring = heapq.heappop(self._heap)
                if self._is_set(name):
                    self._names.discard(name)
                    due.append(ring)
                else:
                    self._cancelled -= 1
        for ring in due:
            threading.Thread(target=ring, name="alarm", daemon=True).start()

    def _is_set(self, name: str) -> bool:
        return not name or name in self._names
