"""The database: what it promises to hold, and to refuse. Everything here holds for both databases."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.rows import WORKER, box, open_store

from boxlite_server import errors
from boxlite_server.coordinator.host_access import Mount
from boxlite_server.coordinator.spec import Spec
from boxlite_server.coordinator.states import BoxStatus, DesiredState, SnapshotState, VolumeState, WorkerStatus
from boxlite_server.coordinator.store import (
    RESERVING,
    Answer,
    Box,
    BoxState,
    Counters,
    Load,
    Snapshot,
    Store,
    Tables,
    Use,
    Volume,
)

pytestmark = pytest.mark.anyio

STATUSES = ("creating", "configured", "running", "stopping", "stopped", "paused", "failed", "removing")

# As earlier versions wrote them: before there were mounts, ports and lifetimes, and with them.
OLD_SPECS = (
    '{"name": null, "image": "alpine:latest", "cpus": 1, "memory_mib": 512, "env": {"K": "\\u00fc"}, '
    '"working_dir": "", "entrypoint": [], "cmd": ["sh"], "user": "", "network": "enabled", "tty": false, "labels": {}, '
    '"auto_remove": false, "auto_resume": true}',
    '{"name": null, "image": "alpine:latest", "cpus": 1, "memory_mib": 512, "env": {"K": "\\u00fc"}, '
    '"working_dir": "", "entrypoint": [], "cmd": ["sh"], "user": "", "network": "enabled", "tty": false, '
    '"mounts": [], "ports": [], '
    '"cap_add": [], "cap_drop": [], "labels": {}, "detach": true, "auto_remove": false, "auto_stop": 0, '
    '"auto_delete": 0, "auto_resume": true}',
)


@pytest.fixture
async def store(database: Path | str) -> AsyncIterator[Store]:
    """A store with one worker in it."""
    async with open_store(database) as store:
        yield store


async def ids(tables: Tables, **filters: Any) -> list[str]:
    return [row.id for row in (await tables.list_boxes("default", **filters)).boxes]


# ---- rows ------------------------------------------------------------------------------------------------------


async def test_rows_come_back_as_they_went_in(store: Store) -> None:
    row = box(
        1,
        name="web",
        labels={"b": "1", "a": "ü"},
        spec=Spec(cmd=("x",), env={"K": "ü\0☃"}),
        published=[{"host": 8080}],
        desired="running",
        engine_life="boot created",
        request_key="me default\0k",
        pid=2**40,
        created_at=1760000000.123456,
    )
    await store.insert_box(row)
    row = row._replace(request_key=(await store.get_box("box1")).request_key)
    assert await store.find_box("default", "web") == row == await store.find_box("default", "box1")
    assert list((await store.get_box("box1")).labels) == ["b", "a"]
    full = WORKER._replace(id="w2", name="two", max_boxes=3, cpu_limit=32, left_at=2.5, inventory="d", engine_life="l")
    await store.put_worker(full)
    assert await store.list_workers() == [WORKER, full]


async def test_everything_survives_a_restart(database: Path | str) -> None:
    first = await Store.open(database)
    await first.put_worker(WORKER)
    await first.insert_box(box(1))
    cluster = await first.cluster_id()
    await first.close()
    second = await Store.open(database)
    assert await second.cluster_id() == cluster
    assert await second.get_box("box1") == box(1)
    assert await second.list_workers() == [WORKER]
    await second.close()


async def test_a_name_is_unique_in_its_prefix_alone(store: Store) -> None:
    await store.insert_box(box(1, name="web"))
    await store.insert_box(box(2, name="web", prefix="other"))
    with pytest.raises(errors.AlreadyExistsError, match="'web'"):
        await store.insert_box(box(3, name="web"))
    found = await store.find_box("other", "web")
    assert found and found.id == "box2"
    assert await store.find_box("third", "web") is None
    assert await store.find_box("default", "box2") is None


async def test_an_id_wins_over_the_same_name(store: Store) -> None:
    await store.insert_box(box(1))
    await store.insert_box(box(2, name="box1"))
    found = await store.find_box("default", "box1")
    assert found and found.id == "box1"


async def test_a_request_makes_one_box(store: Store) -> None:
    await store.insert_box(box(1, request_key="me k"))
    with pytest.raises(errors.AlreadyExistsError):
        await store.insert_box(box(2, request_key="me k"))
    found = await store.find_box_by_request("me k")
    assert found and found.id == "box1"
    assert await store.find_box_by_request("me other") is None
    await store.insert_box(box(3))
    await store.insert_box(box(4))


async def test_a_name_that_cannot_be_is_found_nowhere(store: Store) -> None:
    await store.insert_box(box(1))
    assert await store.find_box("default", "a\0b") is None
    assert await store.find_volume("default", "a\0b") is None


async def test_pages_stay_stable_when_boxes_come_and_go(store: Store) -> None:
    for number in range(1, 7):
        await store.insert_box(box(number))
    page = await store.list_boxes("default", limit=2)
    assert [row.id for row in page.boxes] == ["box1", "box2"]
    await store.delete_box("box2")
    await store.delete_box("box3")
    await store.insert_box(box(7))
    page = await store.list_boxes("default", limit=3, after=page.next_token)
    assert [row.id for row in page.boxes] == ["box4", "box5", "box6"]
    page = await store.list_boxes("default", limit=3, after=page.next_token)
    assert [row.id for row in page.boxes] == ["box7"]
    assert page.next_token is None


async def test_boxes_of_one_moment_are_ordered_by_the_bytes_of_their_ids(store: Store) -> None:
    for name in ("b", "A", "a", "B", "_", "1"):
        await store.insert_box(box(1)._replace(id=name))
    assert await ids(store) == ["1", "A", "B", "_", "a", "b"]
    assert await ids(store, after=(1.0, "B")) == ["_", "a", "b"]


async def test_filters(store: Store) -> None:
    await store.insert_box(box(1, status="running", labels={"team": "a", "env": "x"}))
    await store.insert_box(box(2, labels={"team": "a"}, name="web"))
    await store.insert_box(box(3, labels={"team": "b"}))
    assert await ids(store) == ["box1", "box2", "box3"]
    assert await ids(store, statuses=("running",)) == ["box1"]
    assert await ids(store, statuses=("running", "configured")) == ["box1", "box2", "box3"]
    assert await ids(store, name="web") == ["box2"]
    assert await ids(store, labels={"team": "a"}) == ["box1", "box2"]
    assert await ids(store, labels={"team": "a", "env": "x"}) == ["box1"]
    assert await ids(store, labels={"team": "'; --"}) == []


async def test_boxes_of_unreachable_workers_are_found_as_unknown_alone(store: Store) -> None:
    await store.put_worker(WORKER._replace(id="w2", name="two"))
    await store.insert_box(box(1, status="running"))
    await store.insert_box(box(2, status="stopped"))
    await store.insert_box(box(3, status="running", worker_id="w2"))
    await store.insert_box(box(4, status="stopped", worker_id="w2"))
    lost = ("w2", "w3")
    assert await ids(store, unreachable=lost) == ["box1", "box2", "box3", "box4"]
    assert await ids(store, statuses=("running",), unreachable=lost) == ["box1"]
    assert await ids(store, statuses=("unknown",), unreachable=lost) == ["box3", "box4"]
    assert await ids(store, statuses=("unknown", "stopped"), unreachable=lost) == ["box2", "box3", "box4"]
    assert await ids(store, statuses=("unknown",)) == []


async def test_a_workers_name_is_its_own(store: Store) -> None:
    await store.put_worker(WORKER._replace(url="http://other:1"))
    found = await store.get_worker("w1")
    assert found and found.url == "http://other:1"
    with pytest.raises(errors.AlreadyExistsError, match="frosty-meadow-42"):
        await store.put_worker(WORKER._replace(id="w2"))
    assert await store.get_worker("w2") is None


async def test_only_the_life_of_a_worker_that_is_registered_changes_its_row(store: Store) -> None:
    assert await store.update_worker_of_epoch("w1", WORKER.epoch, last_heartbeat=6.0, left_at=6.0)
    assert not await store.update_worker_of_epoch("w1", "former", last_heartbeat=7.0)
    assert not await store.update_worker_of_epoch("w2", WORKER.epoch, last_heartbeat=7.0)
    assert await store.get_worker("w1") == WORKER._replace(last_heartbeat=6.0, left_at=6.0)


@pytest.mark.parametrize("text", OLD_SPECS)
async def test_the_row_of_an_earlier_version_is_read_and_written_back_as_it_was(store: Store, text: str) -> None:
    await store.insert_box(box(1))
    await store._write("UPDATE boxes SET spec = ? WHERE id = 'box1'", (text,))
    old = await store.get_box("box1")
    assert old == box(1, spec=Spec(env={"K": "ü"}, cmd=("sh",)))
    await store.update_box("box1", status=BoxStatus.RUNNING)
    await store.insert_box(old._replace(id="box2"))
    assert await store._read("SELECT spec FROM boxes") == [(text,), (text,)]


async def test_states_are_stored_as_their_values_and_read_as_enums(store: Store) -> None:
    for number, status in enumerate(STATUSES):
        await store.insert_box(box(number, status=BoxStatus(status), desired=DesiredState.RUNNING))
    await store.insert_snapshot(Snapshot("s1", "box1", "one", SnapshotState.CREATING, 1.0))
    await store.insert_volume(Volume("v1", "default", "data", "w1", VolumeState.CREATING, 1.0, 1.0))
    assert await store._read("SELECT status, desired FROM boxes ORDER BY created_at") == [
        (status, "running") for status in STATUSES
    ]
    found = (await store.list_boxes("default")).boxes
    assert {(type(row.status), type(row.desired)) for row in found} == {(BoxStatus, DesiredState)}
    assert {type(state.status) for state in await store.inventory_of_worker("w1")} == {BoxStatus}
    assert {type(row.state) for row in await store.unfinished_snapshots("box1")} == {SnapshotState}
    assert {type(row.state) for row in await store.unsettled_volumes()} == {VolumeState}
    assert {type(row.status) for row in await store.list_workers()} == {WorkerStatus}


async def test_workers_are_found_by_ids_and_by_their_trouble(store: Store) -> None:
    await store.put_worker(WORKER)
    for number, trouble in enumerate(({}, {"left_at": 5.0}, {"engine_error": "gone"}, {"last_heartbeat": 99.0})):
        row = WORKER._replace(id=f"t{number}", name=f"t{number}", last_heartbeat=100.0)
        await store.put_worker(row._replace(**trouble))
    assert {worker.id for worker in await store.workers_in_trouble(100.0)} == {"w1", "t1", "t2", "t3"}
    assert await store.get_workers(["w1", "nosuch"]) == {"w1": WORKER}
    assert await store.get_workers([]) == {}


async def test_an_inventory_is_the_states_of_a_workers_boxes(store: Store) -> None:
    await store.put_worker(WORKER._replace(id="w2", name="two"))
    await store.insert_box(box(1, spec=Spec(image="a", auto_remove=True), desired="running", engine_life="l"))
    await store.insert_box(box(2, spec=Spec(image="a"), status="failed", error="why"))
    await store.insert_box(box(3, worker_id="w2"))
    assert sorted(await store.inventory_of_worker("w1")) == [
        BoxState("box1", 1, "configured", "running", "l", None, True),
        BoxState("box2", 1, "failed", "stopped", None, "why", False),
    ]
    assert [row.id for row in await store.boxes_of_worker("w2")] == ["box3"]


async def test_snapshots_belong_to_their_box(store: Store) -> None:
    await store.insert_box(box(1))
    await store.insert_box(box(2))
    await store.insert_snapshot(Snapshot("s1", "box1", "same", "ready", 1.0, 2, 3))
    await store.insert_snapshot(Snapshot("s2", "box2", "same", "creating", 1.0))
    with pytest.raises(errors.AlreadyExistsError, match="'same'"):
        await store.insert_snapshot(Snapshot("s3", "box2", "same", "creating", 1.0))
    assert await store.list_snapshots("box1") == [Snapshot("s1", "box1", "same", "ready", 1.0, 2, 3)]
    assert await store.list_snapshots("box2") == []
    assert await store.find_snapshot("box2", "same") is None
    assert await store.boxes_with_unfinished_snapshots("w1") == {"box2"}
    await store.update_snapshot("s1", state="restoring")
    assert await store.is_restoring("box1")
    assert not await store.is_restoring("box2")
    assert await store.find_snapshot("box1", "same") is not None
    await store.delete_box("box1")
    assert await store.unfinished_snapshots("box1") == []
    await store.delete_snapshot("s2")
    assert await store.boxes_with_unfinished_snapshots("w1") == set()


async def test_volumes_and_who_mounts_them(store: Store) -> None:
    volume = Volume("v1", "default", "data", "w1", "ready", 1.0, 1.0)
    await store.insert_volume(volume)
    await store.insert_volume(Volume("v2", "default", "v2", "w1", "ready", 2.0, 2.0))
    with pytest.raises(errors.AlreadyExistsError, match="'data'"):
        await store.insert_volume(volume._replace(id="v3"))
    assert await store.find_volume("default", "data") == volume == await store.find_volume("default", "v1")
    assert await store.find_volume("other", "data") is None
    await store.insert_box(box(1))
    mounts = (Mount(None, "/srv/x", "/x", False), Mount("data", None, "/data", False, "v1"))
    await store.insert_box(box(2, spec=Spec(image="b", mounts=mounts)))
    assert await store.boxes_with_volume("v1") == ["box2"]
    assert await store.boxes_with_volume("v2") == []
    assert await store.images_of_boxes() == {"alpine", "b"}
    await store.delete_volume("v1")
    assert [row.id for row in await store.volumes_of_worker("w1")] == ["v2"]


async def test_deadlines(store: Store) -> None:
    await store.insert_box(box(1))
    await store.insert_box(box(2))
    await store.set_deadline("box1", 20)
    await store.set_deadline("box2", 10.5)
    await store.set_deadline("box1", 30)
    await store.set_deadline("nosuch", 1)
    assert await store.deadlines(30) == ["box2", "box1"]
    assert await store.next_deadline(10.5) == 30
    assert await store.next_deadline(30) is None
    await store.delete_box("box2")
    await store.set_deadline("box1", None)
    assert await store.deadlines(99) == []
    assert await store.deadline("box1") is None


async def test_answers(store: Store) -> None:
    answer = Answer("POST /x", 3, "sha", True, 201, [("a", "b")], b"\0\xff%s?", 100.0)
    await store.put_answer("me", "k", answer)
    assert await store.find_answer("me", "k", 99) == answer
    assert await store.find_answer("you", "k", 99) is None
    assert await store.find_answer("me", "k", 100) is None
    await store.put_answer("me", "k", answer._replace(status=202, body_ended=False))
    found = await store.find_answer("me", "k", 99)
    assert found and (found.status, found.body_ended) == (202, False)
    await store.purge_answers(100)
    assert await store.find_answer("me", "k", 0) is None


# ---- what the schema counts --------------------------------------------------------------------------------------


async def test_loads_count_what_may_run(store: Store) -> None:
    for number, status in enumerate(("running", "configured", "creating", "stopped", "failed", "paused"), start=1):
        await store.insert_box(box(number, status=status))
    assert await store.loads() == {"w1": Load(cpus=4, memory_mib=1024, boxes=4, running=1)}
    assert await store.load("w1") == Load(cpus=4, memory_mib=1024, boxes=4, running=1)
    assert await store.load("w2") == Load()


async def test_loads_and_totals_are_right_whatever_happened(store: Store) -> None:
    await store.put_worker(WORKER._replace(id="w2", name="two"))
    chance = random.Random(7)
    rows: dict[str, Box] = {}
    reserved: dict[str, bool] = {}
    for number in range(300):
        kind = chance.choice(("insert", "insert", "change", "change", "change", "delete", "touch"))
        fields: dict[str, Any] = {
            "status": chance.choice(STATUSES),
            "worker_id": chance.choice(("w1", "w2")),
            "cpus": chance.randint(1, 4),
            "memory_mib": chance.randint(1, 999),
            "desired": chance.choice(tuple(DesiredState)),
        }
        if kind == "insert":
            row = box(number, prefix=chance.choice(("default", "other")), **fields)
            await store.insert_box(row)
            rows[row.id] = row
            reserved[row.id] = row.status in RESERVING
        elif rows:
            box_id = chance.choice(sorted(rows))
            if kind == "delete":
                del rows[box_id]
                await store.delete_box(box_id)
            elif kind == "touch":
                await store.update_box(box_id, status=rows[box_id].status, pid=number)
            else:
                rows[box_id] = rows[box_id]._replace(**fields)
                if fields["status"] != "removing":
                    reserved[box_id] = fields["status"] in RESERVING
                await store.update_box(box_id, **fields)
    for worker_id in ("w1", "w2"):
        held = [row for row in rows.values() if row.worker_id == worker_id and reserved[row.id]]
        assert await store.load(worker_id) == Load(
            sum(row.cpus for row in held),
            sum(row.memory_mib for row in held),
            len(held),
            sum(row.status == "running" for row in held),
        )
    for prefix in ("default", "other"):
        seen = [row.status for row in rows.values() if row.prefix == prefix and row.status != "removing"]
        assert await store.count_boxes(prefix) == len(seen)
        assert await store.count_boxes(prefix, "running") == seen.count("running")
        held = [row for row in rows.values() if row.prefix == prefix and reserved[row.id]]
        active = [row for row in held if row.desired == "running" or row.status in ("running", "stopping", "paused")]
        cpus, memory_mib = sum(row.cpus for row in held), sum(row.memory_mib for row in held)
        assert await store.use_of(prefix) == Use(len(seen), len(active), cpus, memory_mib)
    assert await store.count_boxes("third") == 0


async def test_a_box_that_is_being_removed_keeps_the_room_that_it_had(store: Store) -> None:
    for number, status in ((1, "running"), (2, "stopped")):
        await store.insert_box(box(number, status=status))
        await store.update_box(f"box{number}", status="removing")
    assert await store.load("w1") == Load(1, 256, 1, 0)
    await store.update_box("box1", status="running")  # its removal failed
    await store.update_box("box2", status="stopped")
    assert await store.load("w1") == Load(1, 256, 1, 1)
    await store.update_box("box1", status="removing")
    await store.delete_box("box1")
    await store.delete_box("box2")
    assert await store.load("w1") == Load()


async def test_a_removed_worker_takes_its_load_with_it(store: Store) -> None:
    await store.insert_box(box(1))
    await store.delete_box("box1")
    await store.delete_worker("w1")
    assert await store.loads() == {}
    with pytest.raises(errors.DatabaseError):
        await store.insert_box(box(2))


async def test_a_worker_with_boxes_is_not_forgotten(store: Store) -> None:
    await store.insert_box(box(1))
    with pytest.raises(errors.DatabaseError) as refused:
        await store.delete_worker("w1")
    assert not isinstance(refused.value, errors.DatabaseUnavailableError)
    assert await store.get_worker("w1") == WORKER


async def test_counters(store: Store) -> None:
    assert await store.counters("default") == Counters()
    await store.insert_box(box(1, status="creating"))
    for status in ("configured", "running", "stopping", "stopped", "running", "failed", "failed", "removing"):
        await store.update_box("box1", status=status)
    await store.count("default", "commands_executed")
    await store.count("default", "commands_executed")
    assert await store.counters("default") == Counters(1, 1, 1, 2, 0)


# ---- transactions ------------------------------------------------------------------------------------------------


async def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError, match="halfway"):
        async with store.transaction() as tx:
            await tx.insert_box(box(1))
            assert await ids(tx) == ["box1"]
            raise RuntimeError("halfway")
    assert await ids(store) == []
    async with store.transaction() as tx:
        await tx.insert_box(box(1))
    assert await ids(store) == ["box1"]


async def test_a_cancelled_transaction_leaves_nothing(store: Store) -> None:
    inside = asyncio.Event()

    async def never_ends() -> None:
        async with store.transaction() as tx:
            await tx.insert_box(box(1))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(never_ends())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with store.transaction() as tx:
        assert await ids(tx) == []
        await tx.insert_box(box(2))
    assert await ids(store) == ["box2"]


async def test_a_refused_row_does_not_end_a_transaction(store: Store) -> None:
    await store.insert_box(box(1, name="web"))
    async with store.transaction() as tx:
        with pytest.raises(errors.AlreadyExistsError):
            await tx.insert_box(box(2, name="web"))
        await tx.insert_box(box(3))
    assert await ids(store) == ["box1", "box3"]


async def test_a_read_outside_sees_no_half_done_transaction(store: Store) -> None:
    half_done, seen = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        async with store.transaction() as tx:
            await tx.insert_box(box(1))
            half_done.set()
            await seen.wait()

    task = asyncio.create_task(write())
    await half_done.wait()
    assert await ids(store) == []
    seen.set()
    await task
    assert await ids(store) == ["box1"]


async def test_no_write_comes_between(store: Store) -> None:
    inside, others_began = asyncio.Event(), asyncio.Event()
    await store.insert_box(box(1))

    async def look_and_write() -> None:
        async with store.transaction() as tx:
            before = await tx.get_box("box1")
            inside.set()
            await others_began.wait()
            await asyncio.sleep(0)
            assert await tx.get_box("box1") == before
            await tx.update_box("box1", pid=1)

    async def write() -> None:
        await store.update_box("box1", pid=2, error="later")

    async def place() -> None:
        async with store.transaction() as tx:
            await tx.update_box("box1", exit_code=3)

    first = asyncio.create_task(look_and_write())
    await inside.wait()
    others = [asyncio.create_task(write()), asyncio.create_task(place())]
    await asyncio.sleep(0)
    others_began.set()
    await asyncio.gather(first, *others)
    after = await store.get_box("box1")
    assert after and (after.pid, after.error, after.exit_code) == (2, "later", 3)


async def test_to_go_around_ones_own_transaction_is_refused(store: Store) -> None:
    async with store.transaction() as tx:
        for attempt in (store.get_box("box1"), store.delete_box("box1")):
            with pytest.raises(RuntimeError, match="transaction"):
                await attempt
        with pytest.raises(RuntimeError, match="transaction"):
            async with store.transaction():
                pass
        await tx.insert_box(box(1))
    with pytest.raises(RuntimeError, match="ended"):
        await tx.get_box("box1")
    assert await ids(store) == ["box1"]


async def test_a_closed_store_says_so(database: Path | str) -> None:
    store = await Store.open(database)
    await store.close()
    for attempt in (store.cluster_id(), store.drop_leases()):
        with pytest.raises(errors.DatabaseError):
            await attempt
    with pytest.raises(errors.DatabaseError):
        async with store.transaction():
            pass


# ---- leases ------------------------------------------------------------------------------------------------------


async def test_a_lease_is_one_holders_until_it_expires_or_is_given_back(store: Store) -> None:
    assert await store.acquire_lease("box/1", "one", 100, 115)
    assert not await store.acquire_lease("box/1", "two", 114.9, 130)
    assert not await store.acquire_lease("box/1", "one", 100, 115)
    assert await store.holds_lease("box/1", "one", 114.9)
    assert not await store.holds_lease("box/1", "two", 101)
    assert not await store.holds_lease("box/1", "one", 115)
    assert await store.acquire_lease("box/1", "two", 115, 130)
    assert await store.renew_leases("one", {"box/1"}, 200) == set()
    await store.release_lease("box/1", "one")
    assert await store.holds_lease("box/1", "two", 116)
    await store.release_lease("box/1", "two")
    assert await store.acquire_lease("box/1", "three", 117, 130)


async def test_renewal_tells_what_is_still_the_holders(store: Store) -> None:
    for name in ("a", "b", "c"):
        assert await store.acquire_lease(name, "one", 0, 15)
    assert await store.acquire_lease("b", "two", 15, 30)
    assert await store.renew_leases("one", ["a", "b", "c", "d"], 40) == {"a", "c"}
    assert await store.holds_lease("a", "one", 39)
    assert await store.renew_leases("one", [], 40) == set()


async def test_leases_by_the_beginnings_of_their_names(store: Store) -> None:
    await store.acquire_lease("use/b1/one", "one", 0, 15)
    await store.acquire_lease("use/b10/one", "one", 0, 30)
    assert await store.is_leased("use/b1/", 14)
    assert not await store.is_leased("use/b1/", 15)
    assert await store.is_leased("use/b1", 15)
    assert not await store.is_leased("use/b2/", 0)
    assert not await store.is_leased("use", 30)
    await store.purge_leases(15)
    assert not await store.is_leased("use/b1/", 0)
    assert await store.is_leased("use/b10/", 0)
    await store.drop_leases()
    assert not await store.is_leased("use/", 0)


async def test_of_many_at_once_one_gets_the_lease(store: Store) -> None:
    won: Counter[int] = Counter()

    async def try_for(holder: int, number: int) -> None:
        if await store.acquire_lease(f"box/{number}", str(holder), 0, 15):
            won[number] += 1

    await asyncio.gather(*(try_for(holder, number) for holder in range(8) for number in range(20)))
    assert won == dict.fromkeys(range(20), 1)


async def test_boxes_placed_at_once_never_take_more_than_there_is(store: Store) -> None:
    room = 5

    async def place(number: int) -> None:
        async with store.transaction() as tx:
            if (await tx.load("w1")).boxes < room:
                await tx.insert_box(box(number))

    async def come_and_go(number: int) -> None:
        await place(number)
        with contextlib.suppress(errors.NotFoundError):
            await store.delete_box(f"box{number}")
        await place(100 + number)

    await asyncio.gather(*(come_and_go(number) for number in range(40)))
    held = await ids(store)
    assert len(held) == room == (await store.load("w1")).boxes


async def test_a_nul_anywhere_hides_no_box(store: Store) -> None:
    """PostgreSQL has no NUL in a text, and would read no JSON with one."""
    spec = Spec(image="alpine", env={"K": "a\0"}, labels={"l": "\0", "m": "\\u0000", "n": "ü"})
    await store.insert_box(box(1, spec=spec, labels=dict(spec.labels)))
    assert [state.id for state in await store.inventory_of_worker("w1")] == ["box1"]
    assert await store.images_of_boxes() == {"alpine"}
    assert await store.boxes_with_volume("v1") == []
    assert [found.id for found in (await store.list_boxes("default", labels={"n": "ü"})).boxes] == ["box1"]
    [placed] = await store.list_events("default", 0, 10)
    assert placed.details["image"] == "alpine"
