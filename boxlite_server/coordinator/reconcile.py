"""What workers report, held against what the registry says.

A report is a hint, never an order: it may be older than the operation that just ended. Where it contradicts a
row, the worker is asked about that box under the box's lock, and that answer counts. A container that is ours
by its labels and has no row is removed, but only after it was a stray for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from .. import errors
from .._gen import worker_pb2 as pb
from .boxes import Boxes
from .snapshots import Snapshots
from .store import Box, Store

log = logging.getLogger(__name__)

STRAY_GRACE_SECONDS = 60.0

_Stray = tuple[str, str, int]  # worker id, box id, generation


class Reconciler:
    """Takes the inventories that come with registrations and heartbeats; `clock` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        boxes: Boxes,
        snapshots: Snapshots,
        clock: Callable[[], float],
        *,
        stray_grace: float = STRAY_GRACE_SECONDS,
    ) -> None:
        self._store = store
        self._boxes = boxes
        self._snapshots = snapshots
        self._clock = clock
        self._stray_grace = stray_grace
        self._strays: dict[_Stray, float] = {}  # since when
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by box id
        self._again: set[str] = set()

    async def close(self) -> None:
        self._again.clear()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def report(self, worker_id: str, inventory: Iterable[Mapping[str, Any]]) -> None:
        """Compare a worker's inventory with its rows and start asking about what differs."""
        rows = {box.id: box for box in await self._store.boxes_of_worker(worker_id)}
        unfinished = await self._store.boxes_with_unfinished_snapshots(worker_id)
        for box_id in unfinished:
            self._ask(box_id, self._snapshots.finish(box_id))
        strays: dict[_Stray, float] = {}
        for item in inventory:
            if item["box_id"] in unfinished:
                continue  # it may be there in two generations, and neither is a stray
            box = rows.get(item["box_id"])
            if box is None or box.generation != item["generation"]:
                key = (worker_id, item["box_id"], item["generation"])
                strays[key] = self._strays.get(key, self._clock())
                continue
            del rows[box.id]
            if _contradicts(box, item):
                self._ask(box.id, self._boxes.refresh(box.id))
        for box in rows.values():  # not reported
            if box.status != "failed" and box.id not in unfinished:
                self._ask(box.id, self._boxes.refresh(box.id))
        self._watch_strays(worker_id, strays)

    def _watch_strays(self, worker_id: str, seen: dict[_Stray, float]) -> None:
        for key in [key for key in self._strays if key[0] == worker_id and key not in seen]:
            del self._strays[key]
        self._strays.update(seen)
        for (_, box_id, generation), since in seen.items():
            if self._clock() - since >= self._stray_grace:
                log.warning("removing container of unknown box %s from worker %s", box_id, worker_id)
                stray = pb.BoxRef(box_id=box_id, generation=generation)
                self._ask(box_id, self._boxes.remove_stray(worker_id, stray))

    def _ask(self, box_id: str, question: Coroutine[Any, Any, None]) -> None:
        """One question per box at a time. What is reported meanwhile may be news to it: then once more."""
        if box_id in self._tasks:
            question.close()
            self._again.add(box_id)
            return
        task = asyncio.create_task(_logged(box_id, question))
        self._tasks[box_id] = task
        task.add_done_callback(lambda _: self._answered(box_id))

    def _answered(self, box_id: str) -> None:
        del self._tasks[box_id]
        if box_id in self._again:
            self._again.discard(box_id)
            self._ask(box_id, self._boxes.refresh(box_id))


def _contradicts(box: Box, reported: Mapping[str, Any]) -> bool:
    if box.status != reported["status"]:
        return True
    return box.status == "stopped" and bool(box.spec["auto_remove"])  # should be gone


async def _logged(box_id: str, question: Coroutine[Any, Any, None]) -> None:
    try:
        await question
    except errors.BoxliteError as exc:
        log.warning("box %s could not be reconciled: %s", box_id, exc)
    except Exception:
        log.exception("fault while reconciling box %s", box_id)
