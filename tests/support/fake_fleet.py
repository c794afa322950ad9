"""A coordinator without its HTTP surface, and workers that answer as a test says. The clock is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.http.handlers import workers
from boxlite_server.coordinator.store import Worker

NOON = 1_800_014_400.0  # 12:00:00 UTC


_STATUS = {
    pb.BOX_STATUS_CONFIGURED: "configured",
    pb.BOX_STATUS_RUNNING: "running",
    pb.BOX_STATUS_STOPPED: "stopped",
}


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class FakeWorker:
    """What stands behind a link, of all lives of a worker. `on` holds what happens before a method is done; it
    may raise. Boxes are known by id and generation."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[str] = []
        self.boxes: dict[tuple[str, int], int] = {}
        self.on: dict[str, Callable[[], Awaitable[None]]] = {}

    def inventory(self) -> list[dict[str, Any]]:
        """What it reports of its boxes."""
        return [
            {"box_id": box_id, "generation": generation, "status": _STATUS[status]}
            for (box_id, generation), status in self.boxes.items()
        ]

    def fails(self, method: str, error: Exception) -> None:
        async def fail() -> None:
            raise error

        self.on[method] = fail

    async def do(self, method: str, request: Any) -> Any:
        self.calls.append(method)
        await self.on.get(method, _nothing)()
        ref = request if isinstance(request, pb.BoxRef) else getattr(request, "box", None)
        if method in ("CreateVolume", "RemoveVolume"):
            return pb.Empty()
        assert isinstance(ref, pb.BoxRef)
        key = ref.box_id, ref.generation
        if method == "RemoveBox":
            self.boxes.pop(key, None)
            return pb.Empty()
        if method == "CreateBox":
            self.boxes.setdefault(key, pb.BOX_STATUS_CONFIGURED)
        if key not in self.boxes:
            raise errors.NotFoundError(f"no such box: {key}")
        if method == "StartBox":
            self.boxes[key] = pb.BOX_STATUS_RUNNING
        if method == "StopBox":
            self.boxes[key] = pb.BOX_STATUS_STOPPED
        return pb.Box(box_id=key[0], generation=key[1], status=self.boxes[key])  # type: ignore[arg-type]


class FakeLink:
    def __init__(self, worker: FakeWorker, row: Worker) -> None:
        self.worker = worker
        self.row = row
        self.closed = False
        self.answers: AsyncIterator[Any] | None = None

    async def unary(self, method: str, request: Any, *, timeout: float) -> Any:
        try:
            async with asyncio.timeout(timeout):
                return await self.worker.do(method, request)
        except TimeoutError:
            raise errors.TimedOutError(f"worker {self.row.name} did not answer in time; try again") from None

    async def stream(self, method: str, request: Any) -> AsyncGenerator[Any, None]:
        assert self.answers is not None
        async for answer in self.answers:
            yield answer

    async def send(self, method: str, header: Any, requests: AsyncIterator[Any]) -> Any:
        taken = [header]
        async for request in requests:
            taken.append(request)
            await self.worker.on.get(method, _nothing)()
        return taken

    async def close(self) -> None:
        self.closed = True


class FakeFleet:
    """One coordinator over `database` and its workers."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.clock = Clock()
        self.workers: dict[str, FakeWorker] = {}
        self.links: list[FakeLink] = []
        self.core: Core

    async def open(self) -> FakeFleet:
        self.core = await Core.open(self.database, None, clock=self.clock, connect=self._connect)
        return self

    async def reopen(self) -> None:
        """The coordinator is restarted."""
        await self.core.close()
        await self.open()

    def _connect(self, row: Worker) -> FakeLink:
        link = FakeLink(self.workers[row.name], row)
        self.links.append(link)
        return link

    async def register(self, name: str, life: int = 1, **fields: Any) -> FakeWorker:
        self.workers.setdefault(name, FakeWorker(name))
        await workers.register_worker(self.core, self.introduction(name, life, **fields))
        return self.workers[name]

    def introduction(self, name: str, life: int = 1, **fields: Any) -> dict[str, Any]:
        return {
            "id": id_of(name),
            "name": name,
            "url": "http://127.0.0.1:1",
            "secret": "s" * 16,
            "epoch": epoch(life),
            "started_at": NOON + life,
            "capacity": {"cpus": 8, "memory_mib": 8192},
            "boxes": self.workers[name].inventory(),
            **fields,
        }

    async def beat(self, name: str, life: int = 1, **fields: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await workers.heartbeat(self.core, id_of(name), {"epoch": epoch(life), **fields})
        return answer

    async def create(self, **fields: Any) -> Any:
        return await self.core.creation.create("default", {"image": "alpine", "memory_mib": 128, **fields})


def id_of(name: str) -> str:
    return name.ljust(12, "0")


def epoch(life: int) -> str:
    return f"Ep0ch{life:07}"


async def _nothing() -> None:
    pass
