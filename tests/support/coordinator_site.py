"""Coordinators without their HTTP surface on one database, the workers they call, and their common clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.http.handlers import workers as workers_api
from boxlite_server.coordinator.store import Box, Store, Worker
from support.clock import NOON, Clock
from support.fake_worker import FakeLink, FakeWorker, epoch, id_of
from support.tasks import break_off, settle

PREFIX = "default"

_Story = Callable[["CoordinatorSite"], Awaitable[None]]


class CoordinatorSite:
    """One or two coordinators to test. Their control loops run only when a test calls `look` or `core.start()`.

    `control`: the control loop that `look` has the coordinator run. `memory_mib`: of each worker. `options`: those of
    `Core.over`, as `policy` and `orphan_grace`.
    """

    core: Core
    other: Core  # see `open_other`

    def __init__(
        self,
        database: Path | str,
        *,
        clock: Any = None,
        control: Literal["lifetimes", "reconciler"] = "reconciler",
        memory_mib: int = 8192,
        **options: Any,
    ) -> None:
        self.database = database
        self.clock = clock or Clock()
        self.workers: dict[str, FakeWorker] = {}  # by name
        self.links: list[FakeLink] = []  # all that were ever made
        self._control = control
        self._options = options
        self._memory_mib = memory_mib
        self.one, self.two = self.worker("one"), self.worker("two")

    def worker(self, name: str) -> FakeWorker:
        """The worker of this name, made at first use; coordinators know it once it is registered or `put`."""
        return self.workers.setdefault(name, FakeWorker(name, memory_mib=self._memory_mib))

    # ---- coordinators ----

    async def open(self, *workers: FakeWorker) -> CoordinatorSite:
        """Start a coordinator, which finds these workers in its database; one that was opened before is over."""
        self.core = self._coordinator(await Store.open(self.database))
        await self.put(*workers)
        return self

    async def open_other(self) -> None:
        """Start a second coordinator beside the first. Over SQLite they share a store: only one process may open it."""
        over_file = isinstance(self.database, Path)
        self.other = self._coordinator(self.core.store if over_file else await Store.open(self.database))

    async def reopen(self) -> None:
        """Restart the coordinator."""
        await self.core.close()
        await self.open()

    async def crash(self, *under_way: asyncio.Task[Any]) -> None:
        """End the coordinator in the middle of everything, and start the next one."""
        await self.core.store.close()
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self.open()

    async def close(self) -> None:
        """Break off whatever goes on, and close the coordinators."""
        await break_off()
        for core in [self.core, *([self.other] if hasattr(self, "other") else [])]:
            await core.close()

    def run(self, story: _Story, *workers: FakeWorker, pair: bool = False) -> None:
        """Run the story with an open coordinator, or a `pair` of them, which knows these workers."""

        async def whole() -> None:
            await self.open(*workers)
            if pair:
                await self.open_other()
            try:
                await story(self)
            finally:
                await self.close()

        asyncio.run(whole())

    def _coordinator(self, store: Store) -> Core:
        return Core.over(store, None, clock=self.clock, connect=self._connect, **self._options)

    def _connect(self, row: Worker) -> FakeLink:
        link = FakeLink(self.workers[row.name], row)
        self.links.append(link)
        return link

    # ---- workers ----

    async def put(self, *workers: FakeWorker) -> None:
        """Write the rows of workers as if just heard; no registration and no inventory comes with that."""
        for worker in workers:
            await self.core.store.put_worker(worker.row(self.clock()))

    async def register(self, name: str, life: int = 1, **fields: Any) -> FakeWorker:
        worker = self.worker(name)
        introduction = worker.introduction(life, started_at=NOON + life)
        await workers_api.register_worker(self.core, {**introduction, **fields})
        return worker

    async def beat(self, name: str, life: int = 1, **fields: Any) -> dict[str, Any]:
        """Send one heartbeat of a worker. Returns the answer."""
        body = {"epoch": epoch(life), **fields}
        answer: dict[str, Any] = await workers_api.heartbeat(self.core, id_of(name), body)
        return answer

    # ---- time ----

    async def pass_time(self, seconds: float, *, beats: bool = True) -> None:
        """Let time pass; the workers send heartbeats meanwhile, without inventories, unless told otherwise."""
        self.clock.now += seconds
        for worker in await self.core.store.list_workers() if beats else ():
            await self.core.store.update_worker(worker.id, last_heartbeat=self.clock())

    async def beats(self, *workers: FakeWorker, seconds: float = 5.0) -> None:
        """Let time pass, have these workers report all they hold, and wait for what follows from it."""
        self.clock.now += seconds
        for worker in workers:
            await self.beat(worker.name, boxes=worker.inventory(), engine_life=worker.engine_life)
        await settle()

    async def look(self, seconds: float = 5.0, *, beats: bool = True) -> None:
        """Let time pass, have the control loop look once, and wait for what it does about it."""
        await self.pass_time(seconds, beats=beats)
        await getattr(self.core, self._control).look()
        await settle()

    # ---- boxes ----

    async def create(self, **fields: Any) -> Box:
        return await self.core.creation.create(PREFIX, {"image": "alpine", "memory_mib": 128, **fields})

    async def running(self, **fields: Any) -> Box:
        box = await self.create(**fields)
        return await self.core.boxes.start(PREFIX, box.id)

    async def row(self, box: Box) -> Box:
        row = await self.core.store.get_box(box.id)
        assert row is not None
        return row

    async def status(self, box: Box) -> str | None:
        row = await self.core.store.get_box(box.id)
        return row.status if row else None

    async def state(self, box: Box) -> tuple[str, str] | None:
        """What a box is, and what it is desired to be; None when it is gone."""
        row = await self.core.store.get_box(box.id)
        return (row.status, row.desired) if row else None
