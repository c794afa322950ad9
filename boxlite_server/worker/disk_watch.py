"""Stops boxes that wrote more to their disks than their limits allow, where the engine's storage has no quotas, and
boxes that are about to fill the disk of the host.

A box is measured between 24 and 36 seconds after its start and again as long after each measurement, less often when
that takes long: nine tenths of the time nothing of a box is read. What it writes between two looks goes unnoticed.
So a box that is started again, for its files to be deleted, has as long for that.

The disk of the host is looked at several times in a second, since a box can fill what is left in a few. When less of it
is free than its reserve, the running box that is writing the most, into its volumes too, is killed, and a moment later
the next, as long as any writes. Meanwhile nothing is made that takes room, so that the engine and the worker can go on,
and files can be deleted.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

from ..errors import BoxliteError, EngineError, ResourceExhaustedError
from .runtime import BoxRef, BoxRuntime, BoxStatus

INTERVAL = 30.0  # seconds between two measurements of a box
JITTER = 0.2  # fraction by which the interval varies either way
REST = 9  # times as long as a measurement took, no other follows
LOOKS = 6  # times in an interval the running boxes are listed
ROOM_SECONDS = 0.25  # between two looks at the disk of the host, which cost a system call each
GROWTH_SECONDS = 0.5  # for which boxes are watched to see which writes the most
STOP_SECONDS = 10.0  # from SIGTERM to SIGKILL

RESERVE_SHARE = 20  # a part of the disk of so many is its reserve
MAX_RESERVE = 2 * 1024**3  # bytes, unless the operator says otherwise

_MIB = 1024 * 1024

log = logging.getLogger(__name__)


class DiskRoom:
    """The disk that the boxes of a runtime write to. `reserve`: bytes of it that are to stay free; None: a twentieth of
    it, and 2 GiB at most."""

    def __init__(self, runtime: BoxRuntime, reserve: int | None = None) -> None:
        self._runtime = runtime
        self._reserve = reserve

    def is_short(self) -> bool:
        """Whether less is free than the reserve; False where that cannot be told."""
        try:
            free, size = self._runtime.disk_free()
        except EngineError as exc:
            log.debug("the room on the disk is unknown: %s", exc)
            return False
        return free < (min(size // RESERVE_SHARE, MAX_RESERVE) if self._reserve is None else self._reserve)

    def check(self) -> None:
        """Raise `ResourceExhaustedError` when less is free than the reserve."""
        if self.is_short():
            raise ResourceExhaustedError("no space left: the disk of the worker's host is nearly full; try again later")


class DiskWatch:
    """Watches the boxes of a runtime. `turn(box)`: the turn of one operation on the box, for the duration of a `with`
    block. `interval` is in seconds."""

    def __init__(
        self,
        runtime: BoxRuntime,
        turn: Callable[[BoxRef], AbstractContextManager[None]],
        rng: random.Random,
        *,
        room: DiskRoom | None = None,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtime = runtime
        self._turn = turn
        self._rng = rng
        self._room = room or DiskRoom(runtime)
        self._interval = interval
        self._clock = clock
        self._due: dict[BoxRef, float] = {}  # when each running box is measured next
        self._ending: set[BoxRef] = set()  # boxes that are being stopped

    def run(self, stopping: threading.Event) -> None:
        """Watch until `stopping`."""
        pause, due = self._interval / LOOKS, 0.0
        while not stopping.wait(min(ROOM_SECONDS, pause)):
            try:
                if self._room.is_short():
                    self._make_room(stopping)
                if self._clock() >= due:
                    due = self._clock() + pause
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
            if use.limit is not None and use.written > use.limit:
                self._end(
                    box,
                    f"it had written {use.written // _MIB} MiB to its disk, more than the {use.limit // _MIB} MiB of "
                    "its disk_size_gb; start it and delete files soon, or it is stopped again",
                )
        except BoxliteError as exc:
            log.warning("the disk of box %s cannot be measured: %s", box.box_id, exc)
        self._due[box] = self._next(REST * (self._clock() - began))

    def _make_room(self, stopping: threading.Event) -> None:
        """End the running box that is writing the most, unless one is about to end already."""
        if self._ending:
            return
        before = self._written()
        stopping.wait(GROWTH_SECONDS)
        grown = {box: size - before[box] for box, size in self._written().items() if box in before}
        box = max(grown, key=grown.__getitem__, default=None)
        if box is not None and grown[box] >= _MIB:
            self._end(
                box,
                "the disk of its host was nearly full, and it was the box that wrote the most, "
                f"{grown[box] // _MIB} MiB within a moment; start it once there is room",
                grace=0,
            )

    def _written(self) -> dict[BoxRef, int]:
        """The bytes of each running box on the disk, its volumes included."""
        found: dict[BoxRef, int] = {}
        for state in self._runtime.list_boxes():
            if state.status is BoxStatus.RUNNING:
                with suppress(BoxliteError):  # it has gone, or cannot be measured
                    use = self._runtime.disk_use(state.box)
                    found[state.box] = use.written + use.volumes
        return found

    def _end(self, box: BoxRef, reason: str, grace: float = STOP_SECONDS) -> None:
        # In a thread: the turn may be a long time coming, and the other boxes write meanwhile.
        self._ending.add(box)
        threading.Thread(target=self._stop, args=(box, reason, grace), name=f"stop {box.box_id}", daemon=True).start()

    def _stop(self, box: BoxRef, reason: str, grace: float) -> None:
        try:
            with self._turn(box):
                if self._runtime.inspect(box).status is BoxStatus.RUNNING:
                    log.info("box %s is stopped: %s", box.box_id, reason)
                    self._runtime.stop(box, grace, reason)
        except BoxliteError as exc:
            log.warning("box %s, which writes too much, cannot be stopped: %s", box.box_id, exc)
        finally:
            self._ending.discard(box)
