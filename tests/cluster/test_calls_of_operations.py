"""What each operation on a box costs: calls to the engine and to the worker, and waits for the coordinator's disk."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from docker.transport.unixconn import UnixHTTPConnection
from support.calls import EPOCH, SECRET, service_of
from support.sites import Site, hearing

from boxlite_server import ids
from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.domain.warm import pool_of
from boxlite_server.coordinator.fleet.link import GrpcLink
from boxlite_server.coordinator.store import Box, Store, Worker, sqlite
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.holder import Holder
from boxlite_server.worker.runtime import Owner
from boxlite_server.worker.service.servicer import make_server
from boxlite_server.worker.supervisor.links import Links
from boxlite_server.worker.supervisor.program import program

PREFIX = "default"
OWNER = Owner(ids.new_id(), ids.new_id())

# Of the engine.
LIST, IMAGES = "GET containers/json", "GET images/json"
CREATE, START, INSPECT = "POST containers/create", "POST containers/*/start", "GET containers/*/json"
STOP, DELETE = "POST containers/*/stop", "DELETE containers/*"
# By operation: calls to the engine, calls to the worker, and how often the client waits for the coordinator's disk.
TABLE = {
    "create": ([CREATE], ["CreateBox"], 1),
    "start": ([START, INSPECT], ["StartBox"], 1),
    "create and start": ([CREATE, START, INSPECT], ["CreateBox"], 1),
    "stop": ([INSPECT, STOP, INSPECT], ["StopBox"], 1),
    "start again": ([INSPECT, START, INSPECT], ["StartBox"], 1),
    "command in a stopped box": ([INSPECT, START, INSPECT], ["StartBox", "StartExecution"], 1),  # before the command
    "remove": ([LIST, DELETE, IMAGES, IMAGES], ["RemoveBox"], 1),
}


class Count:
    """What was called since `begin`."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.engine: list[str] = []
        self.worker: list[str] = []
        self.syncs = 0

    def note_engine(self, request: Any) -> None:
        path = request.url.partition("?")[0].rpartition("/v")[2].partition("/")[2]
        self.engine.append(f"{request.method} " + re.sub(r"^(containers|images)/.*[-:][^/]*", r"\1/*", path))


class CountedLink(GrpcLink):
    def __init__(self, worker: Worker, count: Count) -> None:
        super().__init__(worker)
        self._count = count

    async def unary(self, method: str, request: Any, *, timeout: float) -> Any:
        self._count.worker.append(method)
        return await super().unary(method, request, timeout=timeout)


@pytest.fixture
def links(request: pytest.FixtureRequest, tmp_path: Path) -> Links | None:
    """Links to supervisors, for a test that asks for them."""
    supervisor = program()
    assert supervisor is not None
    return Links(tmp_path / "boxes", supervisor) if getattr(request, "param", False) else None


@pytest.fixture
def runtime(docker_host: str, test_image: str, tmp_path: Path, links: Links | None) -> Iterator[DockerRuntime]:
    """A runtime that hears the engine's events, as a worker's does."""
    with hearing(
        DockerRuntime(
            lambda: OWNER, docker_host, holder=Holder(tmp_path), records=tmp_path / "system-files", links=links
        )
    ) as runtime:
        yield runtime


@contextmanager
def serving(runtime: DockerRuntime, directory: Path) -> Iterator[Worker]:
    """The row of a worker that serves the runtime in this process."""
    (directory / "spool").mkdir()
    server = make_server(service_of(Site(runtime, "", "", directory), directory / "spool"), SECRET, EPOCH)
    url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    row = {"id": OWNER.worker_id, "name": "one", "url": url, "secret": SECRET, "epoch": EPOCH, "labels": {}}
    capacity = {"cpus": 8, "memory_mib": 8192, "max_boxes": None, "version": "", "engine_version": ""}
    yield Worker(**row, **capacity, status="active", registered_at=0, last_heartbeat=time.time() + 3600)  # type: ignore[arg-type]
    server.stop(grace=None)


@pytest.fixture
def count(runtime: DockerRuntime, monkeypatch: pytest.MonkeyPatch) -> Count:
    count = Count()
    client: Any = runtime._engine.api
    send, sync = client.send, sqlite._Log.sync

    def counted_send(request: Any, **how: Any) -> Any:
        count.note_engine(request)
        return send(request, **how)

    async def counted_sync(log: Any) -> None:
        count.syncs += 1
        await sync(log)

    monkeypatch.setattr(client, "send", counted_send)
    monkeypatch.setattr(sqlite._Log, "sync", counted_sync)
    return count


async def operations(core: Core, image: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    """The operations of the table, in an order in which each finds its box as it has to be."""
    request = {"image": image, "memory_mib": 128}
    made: list[Box] = []
    commands: list[str] = []

    async def create(**fields: Any) -> None:
        made.append(await core.creation.create(PREFIX, {**request, **fields}))

    async def command() -> None:
        _, execution = await core.executions.start(PREFIX, made[0].id, {"command": "true"})
        commands.append(execution.execution_id)

    async def end() -> None:
        async for _ in core.executions.read(made[0], commands[0], 0):
            pass

    return {
        "create": create,
        "start": lambda: core.boxes.start(PREFIX, made[0].id),
        "stop": lambda: core.boxes.stop(PREFIX, made[0].id, None),
        "start again": lambda: core.boxes.start(PREFIX, made[0].id),
        "stop again": lambda: core.boxes.stop(PREFIX, made[0].id, None),
        "command in a stopped box": command,
        "end of the command": end,
        "remove": lambda: core.boxes.remove(PREFIX, made[0].id, force=True),
        "create and start": lambda: create(start=True),
    }


def test_an_operation_makes_no_call_that_it_does_not_need(
    runtime: DockerRuntime, test_image: str, tmp_path: Path, count: Count
) -> None:
    found = {}

    async def story() -> None:
        store = await Store.open(tmp_path / "coordinator.db")
        core = Core.over(store, None, connect=lambda worker: CountedLink(worker, count))
        await store.put_worker(worker)
        for _ in range(2):  # some is asked only once: in the first box, and with the life of the engine that it tells
            former = await core.creation.create(PREFIX, {"image": test_image, "start": True})
            await core.boxes.remove(PREFIX, former.id, force=True)
        for name, operate in (await operations(core, test_image)).items():
            count.begin()
            await operate()
            found[name] = (before_command(count.engine), count.worker, count.syncs)
        await core.close()

    with serving(runtime, tmp_path) as worker:
        asyncio.run(story())
    del found["stop again"], found["end of the command"]
    assert found == TABLE


@pytest.mark.parametrize("links", [True], indirect=True)
def test_a_claim_asks_the_engine_nothing_and_waits_for_the_disk_once(
    runtime: DockerRuntime, test_image: str, tmp_path: Path, count: Count
) -> None:
    found = []

    async def story() -> None:
        store = await Store.open(tmp_path / "coordinator.db")
        core = Core.over(store, None, connect=lambda worker: CountedLink(worker, count))
        await store.put_worker(worker._replace(engine_life=runtime.life()))
        await core.pools.keep([pool_of(test_image, 2, memory_mib=128)])
        await core.pools.look()
        assert [count for _, count in await core.pools.ready()] == [2]
        request = {"image": test_image, "memory_mib": 128, "env": {"A": "b"}, "cmd": ["tail", "-f", "/dev/null"]}
        for start in (True, False):
            count.begin()
            box = await core.creation.create(PREFIX, {**request, "start": start})
            found.append((box.status, count.engine, count.worker, count.syncs))
        await core.close()

    with serving(runtime, tmp_path) as worker:
        asyncio.run(story())
    assert found == [("running", [], ["CreateBox"], 1), ("configured", [], ["CreateBox"], 1)]


def before_command(calls: list[str]) -> list[str]:
    """The calls up to the one that prepares a command, without the last of them that only look again: on a busy
    machine the first process takes its time."""
    commands = [number for number, call in enumerate(calls) if call.endswith("/exec")]
    calls = calls[: commands[0] - 1] if commands else calls[:]
    while calls[-2:] == [INSPECT, INSPECT]:
        del calls[-1]
    return calls


def test_no_connection_is_made_for_a_call(
    runtime: DockerRuntime, test_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(runtime, test_image, "", Path())
    runtime.remove(site.running_box(), force=True)
    made: Counter[str] = Counter()
    connect = UnixHTTPConnection.connect

    def counted(connection: UnixHTTPConnection) -> None:
        made["connections"] += 1
        connect(connection)

    monkeypatch.setattr(UnixHTTPConnection, "connect", counted)
    for _ in range(3):
        box = site.running_box()
        runtime.stop(box, 0)
        runtime.remove(box, force=True)
    assert made["connections"] <= 1, "the thread that hears the events may have connected again"
