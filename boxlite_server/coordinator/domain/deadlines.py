"""Keeps when the coordinator will act unasked on each box, and who uses which box now. `control/lifetimes.py` acts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from ... import errors
from ..leases import Leases
from ..states import BoxStatus
from ..store import Box, Store, Tables


class Schedule:
    """Plans and writes the deadlines of boxes; `clock` gives Unix seconds."""

    def __init__(self, store: Store, leases: Leases, clock: Callable[[], float]) -> None:
        self._store = store
        self._leases = leases
        self._clock = clock
        self._users: Counter[str] = Counter()  # by box id, in this process; leases tell of the other processes
        self._earlier = asyncio.Event()
        self._wakes_at = 0.0

    async def plan(self, box: Box, *, since: float | None = None, tx: Tables | None = None, anew: bool = False) -> None:
        """Set the deadline that follows from the box as it is now. A running box may be stopped auto_stop seconds
        after it became idle at `since` (Unix seconds; None: now); a stopped box may be removed auto_delete seconds
        after its stop. `tx`: the transaction to write in. `anew`: the box has other lifetimes
        than before, perhaps none."""
        auto_stop, auto_delete = lifetimes(box)
        if not auto_stop and not auto_delete and not anew:
            return
        due_at = None
        if auto_stop and box.status == BoxStatus.RUNNING:
            due_at = (self._clock() if since is None else since) + auto_stop
        if auto_delete and box.status == BoxStatus.STOPPED and box.stopped_at is not None:
            due_at = box.stopped_at + auto_delete
        await self._set(tx or self._store, box.id, due_at)

    async def postpone(self, box_id: str, seconds: float) -> None:
        """Look at the box again in that many seconds."""
        await self._set(self._store, box_id, self._clock() + seconds)

    async def _set(self, tables: Tables, box_id: str, due_at: float | None) -> None:
        await tables.set_deadline(box_id, due_at)
        if due_at is not None and due_at < self._wakes_at:
            self._earlier.set()

    # ---- use ------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def use(self, box: Box) -> AsyncIterator[None]:
        """Use the box for the duration of the `with` block, as an attached client, a file transfer or a command
        about to start does. Meanwhile the box is not idle; its idle time begins when its last user leaves."""
        if not any(lifetimes(box)):
            yield  # the box has no deadlines, so it does not matter whether it is idle
            return
        self._users[box.id] += 1
        try:
            async with self._leases.share(f"{_uses(box.id)}{self._leases.holder}"):
                await self._used(box)
                try:
                    yield
                finally:
                    with suppress(errors.DatabaseError):  # the database is closed, or broken, which others report
                        await self._used(box)  # under the lease, so that no other coordinator takes the box for idle
        finally:
            self._users[box.id] -= 1
            if not self._users[box.id]:
                del self._users[box.id]

    async def is_used(self, box_id: str) -> bool:
        """Whether somebody uses the box, through whatever coordinator."""
        return box_id in self._users or await self._leases.is_any_held(_uses(box_id))

    async def _used(self, box: Box) -> None:
        if now := await self._store.get_box(box.id):
            await self.plan(now)

    # ---- waiting --------------------------------------------------------------------------------------

    async def sleep_until(self, time: float) -> None:
        """Sleep until `time` (Unix seconds), or until a deadline before it is planned."""
        self._wakes_at = time
        with suppress(TimeoutError):
            await asyncio.wait_for(self._earlier.wait(), max(time - self._clock(), 0.0))
        self._earlier.clear()
        self._wakes_at = 0.0


def _uses(box_id: str) -> str:
    """The beginning of the names of the leases by which coordinators use a box."""
    return f"use/{box_id}/"


def lifetimes(box: Box) -> tuple[int, int]:
    """Seconds until an idle box is stopped, and until a stopped one is removed; 0 for never."""
    return box.spec.auto_stop, box.spec.auto_delete
