"""The coordinator dies at each step of each operation: before it, after it, and, where the step is a call to a
worker, while the call is on its way, to arrive when the next coordinator has long been asking. "After" a call
means that the worker has done it and nobody has read the answer. Afterwards all must be as if the operation
had never been, or had ended well; and it can be asked for again.

Which steps there are is found by watching the operations, and written down here: a new step needs its tests.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import pytest
from simulation.cluster import Cluster, Coordinator, simulate
from simulation.life import Dead
from simulation.truth import Truth
from simulation.wires import Fault
from support.fake_runtime import IMAGE

from boxlite_server import errors
from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.domain.warm import pool_of
from boxlite_server.coordinator.store import WARM_PREFIX

# A process that is killed leaves coroutines that it has not begun to run.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")

PREFIX = "default"
NAME = "it"
LATE = 8.0  # seconds; the next coordinator is there after one, and has had a report from each worker after six
SETTLED = 90.0

Look = dict[str, tuple[str, str, frozenset[str], str]]  # of each box: see `Watcher.look`

_watched: ContextVar[bool] = ContextVar("watched", default=False)


class Kind(NamedTuple):
    """An operation: what comes before it, how it is asked for, and its steps between the first lease and the last."""

    before: tuple[str, ...]  # operations
    ask: Callable[[Core, bytes], Any]  # the bytes: an archive
    steps: tuple[str, ...]
    leases: int = 1
    finds_it_done: bool = True  # whether a repetition gets the answer that the first one did not live to give
    first: tuple[str, ...] = ()  # steps between the first lease and the second
    has_pool: bool = False  # whether there is a warm box before, and another one afterwards


def _request(name: str) -> dict[str, Any]:
    return {"image": IMAGE, "name": name, "cpus": 1, "memory_mib": 256}


async def _once(core: Core, key: str, operation: Callable[[str], Any]) -> Any:
    """Run the operation under the lease of its key, as a request with an Idempotency-Key does."""
    async with core.leases.hold(f"key/{key}", "this key"):
        return await operation(key)


def _create(core: Core, archive: bytes) -> Any:
    return _once(core, "create", lambda key: core.creation.create(PREFIX, _request(NAME), request_key=key))


def _create_and_start(core: Core, archive: bytes) -> Any:
    async def ask(key: str) -> Any:
        box = await core.creation.create(PREFIX, {**_request(NAME), "start": True}, request_key=key)
        return await core.boxes.start(PREFIX, NAME) if box.status == "configured" else box

    return _once(core, "create", ask)


def _snapshot(core: Core, archive: bytes) -> Any:
    return _once(core, "snapshot", lambda key: core.snapshots.create(PREFIX, NAME, "kept", request_key=key))


def _clone(core: Core, archive: bytes) -> Any:
    return _once(core, "clone", lambda key: core.snapshots.clone(PREFIX, NAME, "copy", request_key=key))


def _change_size(core: Core, archive: bytes) -> Any:
    return core.boxes.update(PREFIX, NAME, {"cpus": 2, "memory_mib": 384})


def _shrink(core: Core, archive: bytes) -> Any:
    return core.boxes.update(PREFIX, NAME, {"memory_mib": 128})


def _volume(core: Core, archive: bytes) -> Any:
    return _once(core, "volume", lambda key: core.volumes.create(PREFIX, "data", request_key=key))


def _import(core: Core, archive: bytes) -> Any:
    async def chunks() -> AsyncIterator[bytes]:
        yield archive

    return _once(core, "import", lambda key: core.archives.load(PREFIX, NAME, chunks(), request_key=key))


async def _keep_warm(core: Core) -> None:
    """Keep a warm box, and wait until it is there."""
    async with core.store.transaction() as tx:
        await tx.put_warm_pools([pool_of(IMAGE, 1, 1, 256)])
    await asyncio.sleep(LATE)
    assert [wish.pool.boxes - ready for wish, ready in await core.pools.ready()] == [0]


# What a warm box is told at its claim.
_OWN = {"env": {"OWN": "own"}, "cmd": ["sh"]}


def _claim(core: Core, archive: bytes) -> Any:
    request = {**_request(NAME), **_OWN}
    return _once(core, "claim", lambda key: core.creation.create(PREFIX, request, request_key=key))


def _claim_and_start(core: Core, archive: bytes) -> Any:
    async def ask(key: str) -> Any:
        box = await core.creation.create(PREFIX, {**_request(NAME), **_OWN, "start": True}, request_key=key)
        return await core.boxes.start(PREFIX, NAME) if box.status == "configured" else box

    return _once(core, "claim", ask)


KINDS = {
    "create": Kind((), _create, ("insert boxes", "call CreateBox", "update boxes to configured"), leases=2),
    "create and start": Kind(
        (),
        _create_and_start,
        ("insert boxes", "call CreateBox", "update boxes to running, desired running"),
        leases=2,
    ),
    "claim": Kind(
        (),
        _claim,
        ("call CreateBox", "update boxes to configured"),
        leases=2,
        first=("update boxes to creating",),
        has_pool=True,
    ),
    "claim and start": Kind(
        (),
        _claim_and_start,
        ("call CreateBox", "update boxes to running, desired running"),
        leases=2,
        first=("update boxes to creating, desired running",),
        has_pool=True,
    ),
    "start": Kind(
        ("create",),
        lambda core, _: core.boxes.start(PREFIX, NAME),
        (
            "update boxes, desired running",
            "call StartBox",
            "update boxes to running, desired running",
        ),
    ),
    "stop": Kind(
        ("create", "start"),
        lambda core, _: core.boxes.stop(PREFIX, NAME, 5),
        (
            "update boxes to stopping, desired stopped",
            "call StopBox",
            "update boxes to stopped, desired stopped",
        ),
    ),
    "start again": Kind(
        ("create", "start", "stop"),
        lambda core, _: core.boxes.start(PREFIX, NAME),
        (
            "update boxes to configured, desired running",
            "call StartBox",
            "update boxes to running, desired running",
        ),
    ),
    "remove": Kind(
        ("create", "start", "stop"),
        lambda core, _: core.boxes.remove(PREFIX, NAME, force=False),
        ("update boxes to removing", "call RemoveBox", "delete boxes"),
        finds_it_done=False,
    ),
    "remove running": Kind(
        ("create", "start"),
        lambda core, _: core.boxes.remove(PREFIX, NAME, force=True),
        ("update boxes to removing", "call RemoveBox", "delete boxes"),
        finds_it_done=False,
    ),
    "snapshot": Kind(
        ("create", "start"),
        _snapshot,
        ("insert snapshots", "call CreateSnapshot", "update snapshots to ready"),
        leases=2,
    ),
    "remove snapshot": Kind(
        ("create", "start", "snapshot"),
        lambda core, _: core.snapshots.remove(PREFIX, NAME, "kept"),
        ("update snapshots to removing", "call RemoveSnapshot", "delete snapshots"),
        finds_it_done=False,
    ),
    "restore": Kind(
        ("create", "start", "snapshot", "stop"),
        lambda core, _: core.snapshots.restore(PREFIX, NAME, "kept"),
        (
            "update boxes to configured",
            "update snapshots to restoring",
            "call RestoreSnapshot",
            "update snapshots to ready and update boxes",
            "update boxes to configured, desired stopped",
        ),
    ),
    "clone": Kind(
        ("create", "start"), _clone, ("insert boxes", "call CloneBox", "update boxes to configured"), leases=3
    ),
    "change the size": Kind(
        ("create", "start"),
        _change_size,
        ("update boxes", "call UpdateBox", "update boxes (2)"),
    ),
    "shrink a stopped box": Kind(
        ("create", "start", "stop"),
        _shrink,
        ("update boxes", "call UpdateBox", "update boxes (2)"),
    ),
    "volume": Kind((), _volume, ("insert volumes", "call CreateVolume", "update volumes to ready"), leases=2),
    "remove volume": Kind(
        ("volume",),
        lambda core, _: core.volumes.remove(PREFIX, "data", force=False),
        ("update volumes to deleting", "call RemoveVolume", "delete volumes"),
        finds_it_done=False,
    ),
    "import": Kind((), _import, ("insert boxes", "call ImportBox", "update boxes to configured"), leases=2),
}


class Watcher:
    """Watches the steps of a cluster's coordinator, and may kill it at one of them. A second box runs there, the
    bystander."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.truth = Truth(cluster)
        self.steps: list[str] = []
        self._kill: tuple[str, str] | None = None
        self._archive = b""

    async def prepare(self, kind: Kind) -> None:
        self.coordinator.life.kill()
        await self.cluster.start_coordinator(self._on_step)
        await self.coordinator.run(lambda core: core.creation.create(PREFIX, _request("bystander")))
        await self.coordinator.run(lambda core: core.boxes.start(PREFIX, "bystander"))
        self._archive = await self.coordinator.run(self._export)
        for name in kind.before:
            await self.ask(KINDS[name])
        if kind.has_pool:
            await self.coordinator.run(_keep_warm)

    @property
    def coordinator(self) -> Coordinator:
        return self.cluster.coordinators[0]

    async def ask(self, kind: Kind) -> Any:
        return await self.coordinator.run(lambda core: kind.ask(core, self._archive))

    async def watch(self, kind: Kind, kill: tuple[str, str] | None = None) -> None:
        """Ask while the steps are watched; `kill`: before, during or after which step."""
        self._kill = kill
        token = _watched.set(True)
        try:
            await self.ask(kind)
        finally:
            _watched.reset(token)

    def look(self) -> Look:
        """Of each box that somebody owns: what its row says, what its container does, which snapshots there are of it,
        the environment and the size that its worker was told, and the size in its row. Of each volume: what its row
        says; and how many there are at the workers."""
        there = {box_id: state for host in self.cluster.hosts for box_id, state in host.containers().items()}
        told = {
            box_id: f"{host.told(box_id)} {host.size(box_id)}"
            for host in self.cluster.hosts
            for box_id in host.containers()
        }
        boxes = {
            str(row.name): (
                row.status,
                str(there[row.id].status),
                frozenset(self.truth.snapshots(row.id)),
                f"{told[row.id]} {(row.cpus, row.memory_mib)}",
            )
            for row in self.truth.rows()
            if row.prefix != WARM_PREFIX
        }
        held = sum(len(host.runtime.volumes.list()) for host in self.cluster.hosts)
        return boxes | {name: (state, str(held), frozenset(), "") for name, state in self.truth.volumes().items()}

    async def loads(self) -> dict[str, int]:
        """MiB reserved at each worker that has boxes; in all of them, where the warm ones may be at any."""
        loads = await self.coordinator.run(lambda core: core.store.loads())
        if await self.coordinator.run(lambda core: core.store.warm_pools()):
            return {"": sum(load.memory_mib for load in loads.values())}
        return {worker_id: load.memory_mib for worker_id, load in loads.items() if load.boxes}

    def _on_step(self, name: str, is_done: bool) -> None:
        if not _watched.get():
            return
        if not is_done:
            again = sum(step.split(" (")[0] == name for step in self.steps)
            self.steps.append(f"{name} ({again + 1})" if again else name)
        moment, step = self._kill or ("", "")
        if step != self.steps[-1]:
            return
        life = self.coordinator.life
        if moment == ("after" if is_done else "before"):
            life.kill()
        elif moment == "during" and not is_done:
            self.cluster.wires.faults += [Fault(host.id, late=LATE) for host in self.cluster.hosts]
            asyncio.get_running_loop().call_later(LATE / 100, self._kill_with, life)

    def _kill_with(self, life: Any) -> None:
        self.cluster.wires.faults.clear()
        life.kill()

    async def _export(self, core: Core) -> bytes:
        _, chunks = await core.archives.export(PREFIX, "bystander")
        return b"".join([chunk async for chunk in chunks])


def _steps(kind: Kind) -> Iterator[str]:
    def numbered(step: str) -> Iterator[str]:
        return (f"{step} ({number})" if number > 1 else step for number in range(1, kind.leases + 1))

    leases = list(numbered("take lease"))
    yield from (*leases[:1], *kind.first, *leases[1:], *kind.steps, *numbered("give back lease"))


def _points() -> Iterator[Any]:
    for name, kind in KINDS.items():
        for step in _steps(kind):
            for moment in ("before", "during", "after") if step.startswith("call ") else ("before", "after"):
                yield pytest.param(name, moment, step, id=f"{name} {moment} {step}".replace(",", "").replace(" ", "-"))


@pytest.mark.parametrize("name", KINDS)
def test_each_step_has_a_name(name: str) -> None:
    async def story(cluster: Cluster) -> None:
        watcher = Watcher(cluster)
        await watcher.prepare(KINDS[name])
        await watcher.watch(KINDS[name])
        assert watcher.steps == list(_steps(KINDS[name]))

    simulate(story, workers=2)


@functools.cache
def _undisturbed(name: str) -> tuple[list[Look], list[dict[str, int]]]:
    """How boxes are before and after the operation, and what is reserved for them."""
    looks, reserved = [], []

    async def story(cluster: Cluster) -> None:
        watcher = Watcher(cluster)
        await watcher.prepare(KINDS[name])
        looks.append(watcher.look())
        reserved.append(await watcher.loads())
        await watcher.watch(KINDS[name])
        await asyncio.sleep(LATE)
        looks.append(watcher.look())
        reserved.append(await watcher.loads())

    simulate(story, workers=2)
    return looks, reserved


@pytest.mark.parametrize("heir", ["the next", "another"])
@pytest.mark.parametrize(("name", "moment", "step"), list(_points()))
def test_the_coordinator_dies(name: str, moment: str, step: str, heir: str) -> None:
    """`heir`: a coordinator that is started afterwards, or one that has been there all the time."""
    kind = KINDS[name]
    looks, reserved = _undisturbed(name)

    async def story(cluster: Cluster) -> None:
        watcher = Watcher(cluster)
        await watcher.prepare(kind)
        if heir == "another":
            await cluster.start_coordinator()
        with pytest.raises(Dead):
            await watcher.watch(kind, (moment, step))
        if heir == "the next":
            await asyncio.sleep(1)
            await cluster.start_coordinator()
        await asyncio.sleep(SETTLED)
        assert [*watcher.truth.never_right(), *watcher.truth.not_yet_right()] == []
        now = watcher.look()
        assert now in looks
        assert await watcher.loads() == reserved[looks.index(now)]
        try:
            await watcher.ask(kind)
        except errors.NotFoundError:
            assert not kind.finds_it_done
            assert now == looks[1]
        assert watcher.look() == looks[1]
        await asyncio.sleep(LATE)
        assert watcher.look() == looks[1]
        assert await watcher.loads() == reserved[1]
        assert [*watcher.truth.never_right(), *watcher.truth.not_yet_right()] == []

    simulate(story, workers=2)
