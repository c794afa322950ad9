"""Stops boxes that are idle, and removes boxes that were stopped long ago.

The deadlines are rows, not timers: they outlive the process, and a deadline that passed meanwhile is due at the next
start. A deadline is a reason to look, never an order. Whether the box may be stopped or removed is decided in the
box's turn: the coordinators say whether somebody uses the box, and the worker whether commands run that nobody
watches.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Callable

from ... import errors
from ..domain.boxes import Boxes
from ..domain.deadlines import Schedule
from ..domain.turns import ref
from ..fleet.calls import Calls
from ..fleet.registry import Fleet
from ..loops import Loop, Tasks
from ..states import BoxStatus
from ..store import Box, Store

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0  # a worker that was restarted is back by then
LONGEST_SLEEP = 60.0  # somebody may set the wall clock
MAX_AT_ONCE = 16
LEASES_SECONDS = 3600.0  # a lease that ran out so long ago is nobody's


class Lifetimes:
    """Acts on boxes whose deadline has passed; `clock` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        calls: Calls,
        schedule: Schedule,
        boxes: Boxes,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._calls = calls
        self._schedule = schedule
        self._boxes = boxes
        self._clock = clock
        self._loop = Loop("the deadlines cannot be read", self._look_again, retry=RETRY_SECONDS, sleep=self._sleep)
        self._tasks = Tasks()  # by box id
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    def start(self) -> None:
        self._loop.start()

    async def close(self) -> None:
        await self._loop.close()
        await self._tasks.close()

    async def _look_again(self) -> float:
        return await self.look() - self._clock()

    async def _sleep(self, seconds: float) -> None:
        await self._schedule.sleep_until(self._clock() + seconds)

    async def look(self) -> float:
        """Begin with the boxes that are due; returns when to look again, in Unix seconds."""
        now = self._clock()
        await self._store.purge_answers(now)
        await self._store.purge_leases(now - LEASES_SECONDS)
        for box_id in await self._store.deadlines(now):
            self._tasks.begin(box_id, functools.partial(self._act, box_id))
        return min(await self._store.next_deadline(now) or math.inf, now + LONGEST_SLEEP)

    async def _act(self, box_id: str) -> None:
        async with self._slots:
            try:
                await self._stop_or_remove(box_id)
            except errors.NotFoundError:
                pass  # the box was removed meanwhile, and its deadline with it
            except errors.BoxliteError as exc:
                log.warning("box %s is due, but cannot be acted on yet: %s", box_id, exc)
            except Exception:
                log.exception("fault while acting on box %s, which is due", box_id)
        due_at = await self._store.deadline(box_id)
        if due_at is not None and due_at <= self._clock():
            await self._schedule.postpone(box_id, RETRY_SECONDS)

    async def _stop_or_remove(self, box_id: str) -> None:
        box = await self._store.get_box(box_id)
        if box is None:
            return
        if not self._fleet.is_reachable(await self._fleet.get(box.worker_id)):
            return  # without a log line for each box and each try, for as long as that lasts
        if box.status == BoxStatus.RUNNING:
            await self._boxes.stop(box.prefix, box.id, None, unless=self._is_in_use)
        elif box.status == BoxStatus.STOPPED:
            await self._boxes.remove(box.prefix, box.id, force=False, unless=self._is_wanted)
        else:
            await self._schedule.plan(box)

    async def _is_in_use(self, box: Box) -> bool:
        """Whether a running box must not be stopped now. If so, its deadline is moved."""
        if box.status != BoxStatus.RUNNING or await self._schedule.is_used(box.id):
            await self._schedule.plan(box)
            return True
        if await self._is_moved(box):
            return True
        state = await self._calls.get_box(box.worker_id, ref(box))
        if state.live_executions or await self._schedule.is_used(box.id):
            await self._schedule.plan(box)
            return True
        if state.HasField("idle_seconds"):
            await self._schedule.plan(box, since=self._clock() - state.idle_seconds)
        if await self._is_moved(box):
            return True
        log.info("box %s is idle and will be stopped", box.id)
        return False

    async def _is_wanted(self, box: Box) -> bool:
        """Whether a stopped box must not be removed now. If so, its deadline is moved."""
        if box.status != BoxStatus.STOPPED:
            await self._schedule.plan(box)
            return True
        if await self._schedule.is_used(box.id):
            await self._schedule.postpone(box.id, RETRY_SECONDS)
            return True
        if await self._is_moved(box):
            return True
        log.info("box %s was stopped long enough ago and will be removed", box.id)
        return False

    async def _is_moved(self, box: Box) -> bool:
        due_at = await self._store.deadline(box.id)
        return due_at is None or due_at > self._clock()
