"""The events in both databases: each change of a row is told of, once, in order, and with the change itself."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.rows import WORKER, box, open_store

from boxlite_server.coordinator.states import BoxStatus, DesiredState, SnapshotState, VolumeState, WorkerStatus
from boxlite_server.coordinator.store import WARM_PREFIX, Event, Snapshot, Store, Volume

pytestmark = pytest.mark.anyio

SPEC = yaml.safe_load((Path(__file__).parents[3] / "openapi.yaml").read_text())
KINDS = set(SPEC["components"]["schemas"]["EventKind"]["enum"])
CREATING = box(1, name="web", status=BoxStatus.CREATING)
RUNNING, STOPPED = DesiredState.RUNNING, DesiredState.STOPPED


@pytest.fixture
async def store(database: Path | str) -> AsyncIterator[Store]:
    async with open_store(database) as store:
        yield store


async def events(store: Store, prefix: str | None = "default", after: int = 0) -> list[Event]:
    found = await store.list_events(prefix, after, 1000)
    assert {event.kind for event in found} <= KINDS
    return found


async def kinds(store: Store, prefix: str | None = "default", after: int = 0) -> list[str]:
    return [event.kind for event in await events(store, prefix, after)]


async def change(store: Store, **changes: Any) -> list[str]:
    """Change the box; the kinds of the events of that change alone."""
    after = await store.last_event()
    await store.update_box(CREATING.id, **changes)
    told = await events(store, after=after)
    assert all((event.box_id, event.worker) == (CREATING.id, WORKER.name) for event in told)
    return [event.kind.removeprefix("box.") for event in told]


async def test_the_life_of_a_box_is_told(store: Store) -> None:
    await store.insert_box(CREATING)
    assert await change(store, status=BoxStatus.CONFIGURED) == ["created"]
    assert await change(store, desired=RUNNING) == ["starting"]
    assert await change(store, status=BoxStatus.RUNNING, pid=7) == ["started"]
    assert await change(store, status=BoxStatus.PAUSED) == ["paused"]
    assert await change(store, status=BoxStatus.RUNNING) == ["resumed"]
    assert await change(store, status=BoxStatus.STOPPING, desired=STOPPED) == ["stopping"]
    assert await change(store, status=BoxStatus.STOPPED, exit_code=3) == ["stopped"]
    assert await change(store, status=BoxStatus.STOPPED, exit_code=3, updated_at=5.0) == []
    assert await change(store, status=BoxStatus.REMOVING) == ["removing"]
    await store.delete_box(CREATING.id)
    first, *_, stopped, removing, removed = told = await events(store)
    assert (first.kind, first.status) == ("box.placed", "configured")
    assert first.details == {"image": "alpine", "cpus": 1, "memory_mib": 256}
    assert (stopped.status, stopped.details) == ("stopped", {"exit_code": 3, "error_message": None})
    assert (removing.status, removed.kind, removed.status) == ("stopping", "box.removed", None)
    assert {event.name for event in told} == {"web"}
    assert [event.id for event in told] == list(range(told[0].id, told[-1].id + 1))
    assert all(abs(event.at - time.time()) < 60 for event in told)


async def test_what_goes_wrong_with_a_box_is_told(store: Store) -> None:
    await store.insert_box(CREATING)
    assert await change(store, status=BoxStatus.RUNNING, desired=RUNNING) == ["created", "started"]
    killed = "out of memory: the box hit its memory limit"
    assert await change(store, status=BoxStatus.STOPPED, desired=STOPPED, exit_code=137, error=killed) == [
        "out_of_memory",
        "stopped",
    ]
    assert (await events(store))[-1].details == {"exit_code": 137, "error_message": killed}
    assert await change(store, status=BoxStatus.CONFIGURED, desired=RUNNING) == ["starting"]
    assert await change(store, desired=STOPPED) == ["not_started"]
    assert await change(store, status=BoxStatus.FAILED, error="no such command") == ["failed"]
    assert (await events(store))[-1].details == {"error_message": "no such command"}
    await store.update_box(CREATING.id, status=BoxStatus.RUNNING, desired=RUNNING)
    assert await change(store, status=BoxStatus.CONFIGURED, error="it was killed") == ["restarting"]
    assert (await events(store))[-1].details == {"error_message": "it was killed"}
    assert await change(store, status=BoxStatus.RUNNING) == ["started"]
    assert await change(store, status=BoxStatus.STOPPING, desired=STOPPED) == ["stopping"]
    assert await change(store, status=BoxStatus.RUNNING, desired=RUNNING) == ["stop_failed"]
    assert await change(store, status=BoxStatus.REMOVING) == ["removing"]
    assert await change(store, status=BoxStatus.RUNNING) == ["remove_failed"]


async def test_a_box_that_was_not_made_is_told(store: Store) -> None:
    await store.insert_box(CREATING)
    await store.update_worker(WORKER.id, name="w")
    await store.put_worker(WORKER._replace(id="w2", name="another"))
    await store.update_box(CREATING.id, worker_id="w2", generation=2)
    await store.delete_box(CREATING.id)
    told = [(event.kind, event.worker) for event in await events(store)]
    assert told == [
        ("box.placed", WORKER.name),
        ("box.placed", "another"),
        ("box.create_failed", "another"),
        ("box.removed", "another"),
    ]
    await store.insert_box(CREATING)
    await store.update_box(CREATING.id, status=BoxStatus.REMOVING)
    assert (await kinds(store))[-2:] == ["box.placed", "box.create_failed"]


async def test_other_changes_of_a_box_are_told(store: Store) -> None:
    await store.insert_box(CREATING._replace(status=BoxStatus.STOPPED))
    assert await change(store, labels={"a": "b"}) == ["updated"]
    assert await change(store, labels={"a": "b"}, name="web") == []
    assert await change(store, name="other", cpus=2) == ["updated"]
    assert await change(store, status=BoxStatus.CONFIGURED, generation=2) == ["restored", "reset"]


async def test_a_warm_box_is_told_of_once_somebody_has_it(store: Store) -> None:
    await store.insert_box(CREATING._replace(prefix=WARM_PREFIX, name=None, warm="k"))
    await store.update_box(CREATING.id, status=BoxStatus.CONFIGURED)
    assert await kinds(store, None) == ["worker.registered"]
    await store.update_box(CREATING.id, prefix="default", name="web", status=BoxStatus.CREATING, warm=None)
    await store.update_box(CREATING.id, status=BoxStatus.CONFIGURED)
    assert await kinds(store) == ["box.placed", "box.created"]


async def test_snapshots_and_volumes_are_told(store: Store) -> None:
    await store.insert_box(CREATING._replace(status=BoxStatus.STOPPED))
    for number, name in enumerate(("one", "two", "half")):
        await store.insert_snapshot(Snapshot(f"s{number}", CREATING.id, name, SnapshotState.CREATING, 1.0))
    for snapshot_id in ("s0", "s1"):
        await store.update_snapshot(snapshot_id, state=SnapshotState.READY)
    await store.update_snapshot("s0", state=SnapshotState.RESTORING)
    await store.update_snapshot("s0", state=SnapshotState.READY)
    await store.delete_snapshot("s0")
    await store.delete_snapshot("s2")
    await store.delete_box(CREATING.id)
    await store.insert_volume(Volume("v1", "default", "data", "w1", VolumeState.CREATING, 1.0, 1.0))
    await store.update_volume("v1", state=VolumeState.READY)
    await store.update_volume("v1", state=VolumeState.DELETING)
    await store.delete_volume("v1")
    told = [(e.kind, e.box_id, e.name, next(iter(e.details.values()), None)) for e in await events(store)]
    assert told[1:] == [
        ("snapshot.created", "box1", "one", "s0"),
        ("snapshot.created", "box1", "two", "s1"),
        ("snapshot.restoring", "box1", "one", "s0"),
        ("snapshot.removed", "box1", "one", "s0"),
        ("box.removed", "box1", "web", None),
        ("volume.created", None, "data", "v1"),
        ("volume.removed", None, "data", "v1"),
    ]


async def test_workers_are_told_to_those_who_read_everything(store: Store) -> None:
    await store.insert_box(CREATING._replace(status=BoxStatus.RUNNING))
    await store.update_worker("w1", status=WorkerStatus.DRAINING)
    await store.update_worker("w1", status=WorkerStatus.ACTIVE)
    for lost in ({"lost_at": 5.0}, {"engine_error": "gone"}, {"left_at": 6.0}):
        await store.update_worker("w1", **lost)
        await store.update_worker("w1", last_heartbeat=7.0)
        await store.update_worker("w1", **dict.fromkeys(lost))
    await store.put_worker(WORKER._replace(epoch="f"))
    await store.delete_box(CREATING.id)
    await store.delete_worker("w1")
    told = await events(store, None)
    workers = [event for event in told if not event.prefix]
    assert [event.kind.removeprefix("worker.") for event in workers] == [
        *("registered", "draining", "active"),
        *("lost", "back", "lost", "back", "lost", "back"),
        *("registered", "removed"),
    ]
    assert [event.details["error_message"] for event in workers if event.kind == "worker.lost"] == [
        "its heartbeats have stopped",
        "its engine does not answer: gone",
        "it was shut down",
    ]
    assert [(event.kind, event.status) for event in told if event.prefix][1:3] == [
        ("box.unreachable", "unknown"),
        ("box.reachable", "running"),
    ]


async def test_a_change_that_is_undone_is_not_told(store: Store) -> None:
    before = await store.last_event()
    with pytest.raises(RuntimeError):
        async with store.transaction() as tx:
            await tx.insert_box(CREATING)
            await tx.tell("default", "image.pulled", name="alpine")
            raise RuntimeError
    assert await store.last_event() == before
    await store.tell("default", "image.pulled", name="alpine:latest", worker_id="w1")
    assert [(e.id, e.name, e.worker, e.details) for e in await events(store)] == [
        (before + 1, "alpine:latest", WORKER.name, {})
    ]


async def test_a_reader_behind_many_writers_sees_every_event_in_order(database: Path | str) -> None:
    """Single writes run beside each other in PostgreSQL, through two coordinators."""
    async with open_store(database) as store:
        other = store if isinstance(database, Path) else await Store.open(database)
        writes, seen, last = 150, list[int](), await store.last_event()

        async def write(through: Store) -> None:
            for number in range(writes):
                await through.tell(f"p{number % 3}", "image.pulled")
                if random.random() < 0.3:
                    async with through.transaction() as tx:
                        await tx.tell("p0", "image.pulled")

        writing = asyncio.gather(*(write(each) for each in (store, other) * 3))
        while not writing.done() or await store.last_event() > last:
            found = await store.list_events(None, last, 10)
            seen += [event.id for event in found]
            last = seen[-1] if seen else last
            await asyncio.sleep(0)
        await writing
        assert len(seen) >= 6 * writes
        assert seen == list(range(seen[0], seen[0] + len(seen)))
        if other is not store:
            await other.close()


async def test_old_events_are_deleted_and_that_is_noted(store: Store) -> None:
    for _ in range(3):
        await store.tell("a", "image.pulled")
    await store.tell("b", "image.pulled")
    last = await store.last_event()
    assert sorted(await store.subjects_of_events(last - 2)) == [("a", None, last - 1), ("b", None, last)]
    async with store.transaction() as tx:
        assert not await tx.purge_events(3600.0, most=1000, most_of_prefix=2)
    assert [event.id for event in await events(store, "a")] == [last - 2, last - 1]
    assert [await store.forgotten_events(prefix) for prefix in ("a", "b", None)] == [last - 3, 0, last - 3]
    async with store.transaction() as tx:
        assert not await tx.purge_events(-3600.0, most=1000, most_of_prefix=2)
    assert [event.id for event in await events(store, None)] == [last]
    assert [await store.forgotten_events(prefix) for prefix in ("a", "b", None)] == [last - 1, 0, last - 1]
    await store.tell("b", "image.pulled")
    assert await store.last_event() == last + 1
