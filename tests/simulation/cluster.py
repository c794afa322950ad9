"""The simulated cluster, put together."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

from support.tasks import break_off

from boxlite_server import errors, ids
from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.http.handlers import workers as handlers
from boxlite_server.coordinator.store import Store, sqlite

from .host import TIMEOUT, Host
from .life import Dead, Life, connect, task_factory
from .loop import VirtualLoop
from .wires import SimLink, Wires

START = 1_800_000_000.0  # Unix time when the virtual clock shows 0
DATABASE = "coordinator.db"
FAST_DISK = Path("/dev/shm") if Path("/dev/shm").is_dir() else None

Operation = Callable[[Core], Coroutine[Any, Any, Any]]


class Coordinator:
    """One life of a coordinator."""

    def __init__(self, core: Core, life: Life) -> None:
        self.core = core
        self.life = life

    async def run(self, operation: Operation) -> Any:
        """Run an operation, to its end even if the caller is cancelled. Raises `Dead` if the coordinator dies first."""
        with self.life.inside():
            task = asyncio.get_running_loop().create_task(operation(self.core))
        try:
            return await asyncio.shield(task)
        except BaseException:
            if self.life.is_dead:
                raise Dead from None  # whatever the dying code raised
            raise


class Cluster:
    """`hosts` by id, and the `coordinators` that live, which share one database."""

    def __init__(self, directory: Path, workers: int) -> None:
        self.rng = random.Random(0)
        self.wires = Wires(self.rng)
        self.database = directory / DATABASE
        self._coordinators: list[Coordinator] = []
        for number in range(workers):
            home = directory / str(number)
            home.mkdir()
            host = Host(number, home, self._post, self.rng)
            self.wires.hosts[host.id] = host
        self.hosts: list[Host] = list(self.wires.hosts.values())

    def now(self) -> float:
        return START + asyncio.get_running_loop().time()

    async def start_coordinator(self, on_step: Callable[[str, bool], None] | None = None) -> Coordinator:
        """Start a coordinator; those that live share the database, as they would share a PostgreSQL."""
        life = Life(on_step)
        with contextlib.ExitStack() as stack:
            stack.enter_context(life.inside())
            stack.enter_context(mock.patch.object(sqlite, "_lock", self._lock))
            if self.coordinators:
                stack.enter_context(mock.patch.object(Store, "drop_leases", _nothing))
            core = await Core.open(
                self.database, None, clock=self.now, connect=lambda worker: SimLink(self.wires, life, worker)
            )
            core.start()
        coordinator = Coordinator(core, life)
        self._coordinators.append(coordinator)
        return coordinator

    @property
    def coordinators(self) -> list[Coordinator]:
        """The coordinators that live."""
        return [coordinator for coordinator in self._coordinators if not coordinator.life.is_dead]

    async def close(self) -> None:
        for coordinator in self.coordinators:
            coordinator.life.kill()
        for host in self.hosts:
            host.kill()
            host.runtime.close()
        await break_off()
        for coordinator in self._coordinators:
            await coordinator.core.store.close()

    def _lock(self, path: Path) -> int:
        """Take no lock: dead coordinators would keep theirs here."""
        return os.open(path, os.O_RDONLY)

    async def _post(self, host_id: str, call: str, body: dict[str, Any]) -> dict[str, Any]:
        """A worker's own call; raises what the coordinator says, or UpstreamUnavailableError without a word."""
        host = self.wires.hosts[host_id]
        await asyncio.sleep(self.wires.latency())
        if host.is_cut:
            await asyncio.sleep(TIMEOUT)
            raise errors.UpstreamUnavailableError("no answer")
        if not self.coordinators:
            raise errors.UpstreamUnavailableError("connection refused")
        coordinator = self.rng.choice(self.coordinators)
        if call == "register":
            handler = functools.partial(handlers.register_worker, body=body)
        else:
            handler = functools.partial(handlers.heartbeat, worker_id=host_id, body=body)
        try:
            async with asyncio.timeout(TIMEOUT):
                answer: dict[str, Any] = await coordinator.run(handler)
        except (Dead, TimeoutError):
            raise errors.UpstreamUnavailableError("no answer") from None
        await asyncio.sleep(self.wires.latency())
        if host.is_cut:
            raise errors.UpstreamUnavailableError("no answer")
        return answer


def simulate(story: Callable[[Cluster], Awaitable[None]], *, workers: int, coordinators: int = 1) -> None:
    """Run `story` in a new cluster with so many coordinators and registered workers."""
    directory = Path(tempfile.mkdtemp(prefix="simulation-", dir=FAST_DISK))
    (directory / DATABASE).write_bytes(_empty_database())
    try:
        with asyncio.Runner(loop_factory=_loop) as runner, _nothing_by_chance():
            runner.run(_simulate(story, directory, workers, coordinators))
    finally:
        shutil.rmtree(directory)


async def _simulate(
    story: Callable[[Cluster], Awaitable[None]], directory: Path, workers: int, coordinators: int
) -> None:
    cluster = Cluster(directory, workers)
    for _ in range(coordinators):
        await cluster.start_coordinator()
    for host in cluster.hosts:
        host.boot()
    await asyncio.sleep(1)
    try:
        await story(cluster)
    finally:
        await cluster.close()


async def _nothing(store: Store) -> None:
    pass


def _loop() -> VirtualLoop:
    loop = VirtualLoop()
    loop.set_task_factory(task_factory)
    return loop


class _Ids:
    """Replaces the operating system's entropy by a seeded generator."""

    def __init__(self) -> None:
        self._rng = random.Random(0)

    def choice(self, sequence: str) -> str:
        return self._rng.choice(sequence)

    def token_hex(self, size: int) -> str:
        return self._rng.randbytes(size).hex()

    token_urlsafe = token_hex


@contextlib.contextmanager
def _nothing_by_chance() -> Any:
    with mock.patch.object(ids, "secrets", _Ids()), mock.patch("sqlite3.connect", connect):
        yield


@functools.cache
def _empty_database() -> bytes:
    """A database with the schema, made once and copied, because it takes long to make."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "empty.db")

        async def make() -> None:
            await (await Core.open(path, None)).close()

        asyncio.run(make())
        return path.read_bytes()
