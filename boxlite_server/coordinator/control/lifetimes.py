"""Boxes that are stopped and removed without being asked: when they are idle, and when they were stopped long ago.

The deadlines are rows, not timers: they outlive the process, and one that passed meanwhile is due at the next
start. A deadline is a reason to look, never an order. What really is the case is asked under the box's lock:
of the coordinators, for who uses the box through them, and at the worker, for commands that nobody watches.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from ... import errors
from ..._gen import worker_pb2 as pb
from ..domain.boxes import Boxes
from ..domain.deadlines import Schedule
from ..domain.turns import ref
from ..fleet.registry import Fleet
from ..limits import CALL_SECONDS
from ..store import Box, Store

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0  # a worker that was restarted is back by then
LONGEST_SLEEP = 60.0  # the wall clock may be set
MAX_AT_ONCE = 16
LEASES_SECONDS = 3600.0  # those that ran out so long ago are nobody's


class Lifetimes:
    """The one task that keeps the deadlines; `clock` gives Unix seconds."""

    def __init__(
        self, store: Store, schedule: Schedule, boxes: Boxes, fleet: Fleet, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._schedule = schedule
        self._boxes = boxes
        self._fleet = fleet
        self._clock = clock
        self._keeper: asyncio.Task[None] | None = None
        self._acts: dict[str, asyncio.Task[None]] = {}  # by box id
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        tasks = [*self._acts.values(), *([self._keeper] if self._keeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            try:
                wakes_at = await self.look()
            except errors.BoxliteError as exc:
                log.error("the deadlines cannot be read, trying again: %s", exc)
                wakes_at = self._clock() + RETRY_SECONDS
            await self._schedule.sleep_until(wakes_at)

    async def look(self) -> float:
        """Begin with what is due; the time of the next look."""
        now = self._clock()
        await self._store.purge_answers(now)
        await self._store.purge_leases(now - LEASES_SECONDS)
        for box_id in await self._store.deadlines(now):
            if box_id not in self._acts:
                task = self._acts[box_id] = asyncio.create_task(self._act(box_id))
                task.add_done_callback(lambda _, box_id=box_id: self._acts.pop(box_id))  # type: ignore[misc]
        return min(await self._store.next_deadline(now) or math.inf, now + LONGEST_SLEEP)

    async def _act(self, box_id: str) -> None:
        async with self._slots:
            try:
                await self._stop_or_remove(box_id)
            except errors.NotFoundError:
                pass  # removed meanwhile, and its deadline with it
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
            return  # for as long as that lasts, without a word for each box and each time
        if box.status == "running":
            await self._boxes.stop(box.prefix, box.id, None, unless=self._is_in_use)
        elif box.status == "stopped":
            await self._boxes.remove(box.prefix, box.id, force=False, unless=self._is_wanted)
        else:
            await self._schedule.plan(box)

    async def _is_in_use(self, box: Box) -> bool:
        """Whether a running box must not be stopped now; if so, its deadline has been moved."""
        if box.status != "running" or await self._schedule.is_used(box.id):
            await self._schedule.plan(box)
            return True
        if await self._is_moved(box):
            return True
        state: pb.Box = await self._fleet.call(box.worker_id, "GetBox", ref(box), timeout=CALL_SECONDS)
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
        """Whether a stopped box must not be removed now; if so, its deadline has been moved."""
        if box.status != "stopped":
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
