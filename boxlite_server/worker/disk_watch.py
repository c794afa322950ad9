"""Stops boxes that wrote more to their disks than their limits allow, where the engine's storage has no quotas.

A box is measured between 24 and 36 seconds after its start and again as long after each measurement, less often when
that takes long: nine tenths of the time nothing of a box is read. What it writes between two looks goes unnoticed.
So a box that is started again, for its files to be deleted, has as long for that.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from ..errors import BoxliteError
from .runtime import BoxRef, BoxRuntime, BoxStatus, DiskUse

INTERVAL = 30.0  # seconds between two measurements of a box
JITTER = 0.2  # fraction by which the interval varies either way
REST = 9  # times as long as a measurement took, no other follows
LOOKS = 6  # times in an interval the running boxes are listed
STOP_SECONDS = 10.0  # from SIGTERM to SIGKILL

_MIB = 1024 * 1024

log = logging.getLogger(__name__)


class DiskWatch:
    """Watches the boxes of a runtime. `turn(box)`: the turn of one operation on the box, for the duration of a `with`
    block. `interval` is in seconds."""

    def __init__(
        self,
        runtime: BoxRuntime,
        turn: Callable[[BoxRef], AbstractContextManager[None]],
        rng: random.Random,
        *,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtime = runtime
        self._turn = turn
        self._rng = rng
        self._interval = interval
        self._clock = clock
        self._due: dict[BoxRef, float] = {}  # when each running box is measured next
        self._ending: set[BoxRef] = set()  # boxes that are being stopped

    def run(self, stopping: threading.Event) -> None:
        """Watch until `stopping`."""
        while not stopping.wait(self._interval / LOOKS):
            try:
                self._look(stopping)
            except BoxliteError as exc:
                log.debug("disks cannot be watched: %s", exc)
            except Exception:
                log.exception("fault while watching disks")

    def _look(self, stopping: threading.Event) -> None:
        boxes = self._runtime.watched_boxes()
        self._due = {box: self._due.get(box) or self._next() for box in boxes}
        for box in sorted(boxes, key=self._due.__getitem__):
            if stopping.is_set() or self._clock() < self._due[box]:
                return
            if box not in self._ending:
                self._measure(box)

    def _next(self, rest: float = 0) -> float:
        pause = self._interval * self._rng.uniform(1 - JITTER, 1 + JITTER)
        return self._clock() + max(pause, rest)

    def _measure(self, box: BoxRef) -> None:
        began = self._clock()
        try:
            use = self._runtime.disk_use(box)
            if use.written > use.limit:
                # In a thread: the turn may be a long time coming, and the other boxes write meanwhile.
                self._ending.add(box)
                threading.Thread(target=self._stop, args=(box, use), name=f"stop {box.box_id}", daemon=True).start()
        except BoxliteError as exc:
            log.warning("the disk of box %s cannot be measured: %s", box.box_id, exc)
        self._due[box] = self._next(REST * (self._clock() - began))

    def _stop(self, box: BoxRef, use: DiskUse) -> None:
        reason = (
            f"it had written {use.written // _MIB} MiB to its disk, more than the {use.limit // _MIB} MiB of its "
            "disk_size_gb; start it and delete files soon, or it is stopped again"
        )
        try:
            with self._turn(box):
                if self._runtime.inspect(box).status is BoxStatus.RUNNING:
                    log.info("box %s is stopped: %s", box.box_id, reason)
                    self._runtime.stop(box, STOP_SECONDS, reason)
        except BoxliteError as exc:
            log.warning("box %s, whose disk is over its limit, cannot be stopped: %s", box.box_id, exc)
        finally:
            self._ending.discard(box)
