"""Starts boxes that should run and do not, with pauses, until it gives up."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable

from ... import errors
from ..domain.boxes import NOT_THE_BOX, Boxes
from ..domain.observing import Observer
from ..store import Box

log = logging.getLogger(__name__)

MAX_STARTS = 4  # at once, per worker: its clients want to start boxes, too

# A box that has to be started again and again is left alone in the end.
MAX_RESTARTS = 6
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds
FULL_PAUSE = 2.0  # seconds, when the worker has no room
FORGET_SECONDS = 600.0  # how long a box must run for its restarts to be forgotten


class Restarts:
    """Starts boxes again, with a growing pause between two restarts of one box; `clock` gives Unix seconds."""

    def __init__(self, boxes: Boxes, observer: Observer, clock: Callable[[], float]) -> None:
        self._boxes = boxes
        self._observer = observer
        self._clock = clock
        self._due_at: dict[str, float] = {}  # by box id; a coordinator without an entry computes it from the row
        self._starts: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MAX_STARTS))

    def due_at(self, box_id: str) -> float:
        """When the box may be started again, in Unix seconds; 0 for now."""
        return self._due_at.get(box_id, 0.0)

    def drop_past(self) -> None:
        """Drop the pauses that are over."""
        now = self._clock()
        self._due_at = {box_id: due_at for box_id, due_at in self._due_at.items() if now < due_at}

    async def restart(self, box: Box) -> None:
        """Start a box that should run, if its pause is over; give up after MAX_RESTARTS. Raises why it did not
        start."""
        now, attempts = self._clock(), 0
        if box.restarted_at is not None and now < box.restarted_at + FORGET_SECONDS:
            attempts = box.restarts
            self._due_at[box.id] = max(self.due_at(box.id), box.restarted_at + _pause(attempts))
        if now < self.due_at(box.id):
            return
        if attempts >= MAX_RESTARTS:
            await self._give_up(box, "it was ended again each time")
            return
        try:
            async with self._starts[box.worker_id]:
                started = await self._boxes.restart(box, attempts + 1)
        except errors.ResourceExhaustedError:
            self._due_at[box.id] = self._clock() + FULL_PAUSE
            raise
        except NOT_THE_BOX:
            raise
        except errors.BoxliteError as exc:
            self._due_at[box.id] = self._clock() + _pause(attempts + 1)
            if attempts + 1 >= MAX_RESTARTS:
                await self._give_up(box, exc.public)
            raise
        if started is not None:
            log.info("box %s runs again", box.id)
            self._due_at[box.id] = self._clock() + _pause(attempts + 1)

    async def _give_up(self, box: Box, reason: str) -> None:
        self._due_at.pop(box.id, None)
        await self._observer.give_up(box.id, f"it was started again {MAX_RESTARTS} times, in vain: {reason}")


def _pause(attempts: int) -> float:
    """Seconds from a box's `attempts`th restart to the next one."""
    return min(FIRST_PAUSE * 2.0 ** (attempts - 1), LONGEST_PAUSE)
