"""The embedded database: one process, faults of its file, older schemas, copies."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from support.child import child, line_of
from support.rows import WORKER, box, check_read_only, open_store

from boxlite_server import errors
from boxlite_server.coordinator.spec import Spec
from boxlite_server.coordinator.store import Counters, Load, Snapshot, Store, Volume, schema, sqlite
from boxlite_server.coordinator.store.backup import back_up
from boxlite_server.local import machine

pytestmark = pytest.mark.anyio
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")

# Opens the database that is its argument, says so, and lives until it is killed.
HOLDER = """
    import asyncio, sys
    from boxlite_server.coordinator.store import Store

    async def main():
        store = await Store.open(sys.argv[1])
        async with store.transaction() as tx:
            await tx.update_worker("w1", epoch="half")
            print("inside")
            await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "coordinator.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    async with open_store(path) as store:
        yield store


@contextmanager
def mounted(*arguments: str) -> Iterator[None]:
    """Something mounted on the directory that is the last argument."""
    done = machine.run("mount", *arguments)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        assert machine.run("umount", arguments[-1]).returncode == 0


# ---- one process -------------------------------------------------------------------------------------------------


async def test_a_second_coordinator_is_refused(store: Store, path: Path) -> None:
    with pytest.raises(errors.DatabaseError, match=f"process id {os.getpid()} uses it"):
        await Store.open(path)
    assert await store.get_worker("w1") == WORKER
    await store.close()
    again = await Store.open(path)
    assert await again.get_worker("w1") == WORKER
    await again.close()


async def test_a_killed_coordinator_leaves_neither_lock_nor_half_a_transaction(path: Path) -> None:
    first = await Store.open(path)
    await first.put_worker(WORKER)
    await first.acquire_lease("box/1", "dead", 0, 1e12)
    await first.close()
    with child(HOLDER, str(path)) as process:
        assert line_of(process) == "inside"
        with pytest.raises(errors.DatabaseError, match=f"process id {process.pid} uses it"):
            await Store.open(path)
        process.kill()
        process.wait()
        store = await Store.open(path)
        assert await store.get_worker("w1") == WORKER
        assert not await store.is_leased("box/", 0)  # the leases of the dead process are dropped
        await store.close()


async def test_the_file_is_its_owners_alone(store: Store, path: Path) -> None:
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
    assert modes and set(modes.values()) == {0o600}, modes


# ---- on the disk -------------------------------------------------------------------------------------------------


async def test_a_transaction_ends_when_it_is_on_the_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    began, may_end = threading.Semaphore(0), threading.Semaphore(0)

    def slow(descriptor: int) -> None:
        began.release()
        assert may_end.acquire(timeout=60)

    monkeypatch.setattr(os, "fdatasync", slow)

    async def insert(number: int) -> None:
        async with store.transaction() as tx:
            await tx.insert_box(box(number))

    first = asyncio.create_task(insert(1))
    await asyncio.to_thread(began.acquire)
    others = [asyncio.create_task(insert(number)) for number in range(2, 12)]
    for _ in range(100):  # no write waits for the disk
        await asyncio.sleep(0)
    assert len((await store.list_boxes("default")).boxes) == 11
    assert not first.done()
    may_end.release()
    await first
    await asyncio.to_thread(began.acquire)
    assert not any(other.done() for other in others)  # the sync that had begun does not cover their writes
    may_end.release()
    await asyncio.gather(*others)
    assert not began.acquire(blocking=False)  # and one more sync covered them all
    await store.update_worker("w1", last_heartbeat=5.0)


async def test_a_disk_that_fails_is_an_outage_until_it_does_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(errors.DatabaseUnavailableError, match="disk fails"):
            async with store.transaction() as tx:
                await tx.insert_box(box(1))
    async with store.transaction() as tx:
        await tx.insert_box(box(2))


# ---- faults of the file ------------------------------------------------------------------------------------------


async def test_another_process_with_the_lock_is_waited_for(store: Store, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writes = [
            asyncio.create_task(store.update_worker("w1", epoch="later")),
            asyncio.create_task(store.insert_box(box(1))),
        ]
        assert await store.get_worker("w1") == WORKER  # reading goes on, and so does the loop
        await asyncio.sleep(0)
        assert not any(write.done() for write in writes)
        other.execute("ROLLBACK")
        await asyncio.gather(*writes)
    assert await store.get_worker("w1") == WORKER._replace(epoch="later")


async def test_a_lock_that_stays_is_an_outage_until_it_goes(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.DatabaseUnavailableError, match="another process"):
            await store.update_worker("w1", epoch="later")
        with pytest.raises(errors.DatabaseUnavailableError, match="another process") as outage:
            async with store.transaction():
                raise AssertionError("it began")
        assert (outage.value.status, outage.value.code) == (503, "database_error")
        assert await store.get_worker("w1") == WORKER
        other.execute("ROLLBACK")
    async with store.transaction() as tx:
        await tx.insert_box(box(1))
    assert await store.get_box("box1") == box(1)


@as_root
async def test_a_full_disk_is_an_outage_until_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=1m", "none", str(disk)):
        store = await Store.open(disk / "c.db")
        await store.put_worker(WORKER)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as output, pytest.raises(OSError, match="No space"):
            while True:
                output.write(bytes(4096))
        with pytest.raises(errors.DatabaseUnavailableError, match="full"):
            for number in range(1000):
                await store.insert_box(box(number))
        before = (await store.list_boxes("default")).boxes
        with pytest.raises(errors.DatabaseUnavailableError, match="full"):
            async with store.transaction() as tx:
                for number in range(1000, 2000):
                    await tx.insert_box(box(number))
        assert (await store.list_boxes("default")).boxes == before
        filler.unlink()
        async with store.transaction() as tx:
            await tx.insert_box(box(5000))
            await tx.delete_box("box5000")
        await store.insert_box(box(5001))
        assert (await store.list_boxes("default")).boxes == [*before, box(5001)]
        await store.close()


@as_root
async def test_a_read_only_disk_is_refused_at_the_start(path: Path) -> None:
    store = await Store.open(path)
    await store.put_worker(WORKER)
    await store.close()
    directory = str(path.parent)
    with mounted("--bind", directory, directory):
        assert machine.run("mount", "-o", "remount,ro,bind", directory).returncode == 0
        with pytest.raises(errors.DatabaseError, match=r"[Rr]ead-only"):
            await Store.open(path)
    store = await Store.open(path)
    assert await store.get_worker("w1") == WORKER
    await store.close()


async def test_a_database_that_cannot_be_written_is_an_outage_until_it_can(store: Store) -> None:
    writer = store._backend._writer  # type: ignore[attr-defined]
    writer.execute("PRAGMA query_only = ON")  # SQLite then answers as for a file that it may not write
    await check_read_only(store)
    writer.execute("PRAGMA query_only = OFF")
    await store.insert_box(box(1))


async def test_a_path_that_cannot_be_made_is_a_clear_error() -> None:
    with pytest.raises(errors.DatabaseError, match="/proc/nowhere"):
        await Store.open(Path("/proc/nowhere/c.db"))


def test_a_file_that_is_no_database_is_a_clear_error(path: Path) -> None:
    path.write_bytes(b"something else" * 1000)
    with pytest.raises(errors.DatabaseError, match="not a database"):
        asyncio.run(Store.open(path))
    assert path.read_bytes() == b"something else" * 1000


# ---- schemas -----------------------------------------------------------------------------------------------------


def make_old(path: Path) -> None:
    """A database as the program with schema 6 left it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript("".join(schema.scripts("sqlite")[:6]))
        db.executescript("""
            PRAGMA user_version = 6;
            INSERT INTO meta VALUES ('cluster_id', 'AbCdEf123456');
            INSERT INTO workers VALUES ('w1', 'frosty-meadow-42', 'http://h:1', 's', 'active', 'e', '{"zone": "a"}',
                                        2, 4096, NULL, '', '', 1, 1);
            INSERT INTO snapshots VALUES ('s1', 'box1', 'first', 'ready', 1, 2, 3);
            INSERT INTO volumes VALUES ('v1', 'default', 'data', 'w1', 'ready', 1, 1);
            INSERT INTO counters VALUES ('default', 9, 1, 2, 3, 4);
        """)
        columns = "id, prefix, worker_id, generation, status, spec, cpus, memory_mib, labels, created_at, updated_at"
        for number, status in enumerate(("running", "paused", "stopped", "failed", "removing"), start=1):
            row = (f"box{number}", "default", "w1", 1, status, '{"image": "alpine"}', 1, 256, "{}", number, number)
            db.execute(f"INSERT INTO boxes ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


def names(directory: Path, pattern: str = "*") -> list[str]:
    return sorted(entry.name for entry in directory.glob(pattern))


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        return version


async def test_an_older_database_is_brought_up_to_date_and_a_copy_kept(path: Path) -> None:
    make_old(path)
    store = await Store.open(path)
    assert await store.cluster_id() == "AbCdEf123456"
    assert await store.list_workers() == [WORKER]
    assert (await store.list_boxes("default")).boxes == [
        box(1, status="running", desired="running"),
        box(2, status="paused", desired="running"),
        box(3, status="stopped"),
        box(4, status="failed"),
        box(5, status="removing"),
    ]
    assert await store.list_snapshots("box1") == [Snapshot("s1", "box1", "first", "ready", 1.0, 2, 3)]
    assert await store.list_volumes("default") == [Volume("v1", "default", "data", "w1", "ready", 1.0, 1.0)]
    assert await store.counters("default") == Counters(9, 1, 2, 3, 4)
    assert await store.loads() == {"w1": Load(2, 512, 2, 1)}
    assert (await store.count_boxes("default"), await store.count_boxes("default", "running")) == (4, 1)
    await store.update_box("box1", status="stopped")
    assert await store.loads() == {"w1": Load(1, 256, 1, 0)}
    await store.close()
    kept = path.with_name("coordinator.db.schema-6")
    assert (version_of(kept), version_of(path)) == (6, len(schema.scripts("sqlite")))
    with closing(sqlite3.connect(kept)) as db:
        assert db.execute("SELECT id, status FROM boxes WHERE id = 'box1'").fetchall() == [("box1", "running")]
    before = names(path.parent)
    await (await Store.open(path)).close()
    assert names(path.parent) == before


async def test_a_new_database_needs_no_copy(store: Store, path: Path) -> None:
    assert names(path.parent, "*schema*") == []


async def test_a_migration_that_fails_leaves_the_database_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(path)
    real = schema.scripts("sqlite")
    broken = [*real, "CREATE TABLE more (id TEXT); INSERT INTO nosuch VALUES (1);"]
    monkeypatch.setattr(schema, "scripts", lambda database: broken)
    with pytest.raises(errors.DatabaseError, match="nosuch"):
        await Store.open(path)
    assert version_of(path) == 6
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM sqlite_schema WHERE name IN ('more', 'leases')").fetchall() == []
    monkeypatch.setattr(schema, "scripts", lambda database: real)
    store = await Store.open(path)
    assert len((await store.list_boxes("default")).boxes) == 5
    await store.close()


async def test_a_database_of_the_future_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 999")
    with pytest.raises(errors.DatabaseError, match="schema 999 is newer"):
        await Store.open(path)
    assert version_of(path) == 999


async def test_what_is_asked_all_the_time_never_looks_through_all_boxes(store: Store) -> None:
    asked: list[str] = []
    reader: sqlite3.Connection = store._backend._reader  # type: ignore[attr-defined]
    reader.set_trace_callback(asked.append)
    await store.find_box("default", "web")
    await store.find_box_by_request("me k")
    await store.get_box("box1")
    await store.list_boxes("default", limit=100)
    await store.list_boxes("default", limit=100, after=(1.0, "box1"))
    await store.list_boxes("default", limit=100, statuses=("failed",))
    await store.list_boxes("default", limit=100, statuses=("running", "unknown"), unreachable=("w1",))
    await store.list_boxes("default", name="web")
    await store.boxes_of_worker("w1")
    await store.inventory_of_worker("w1")
    await store.load("w1")
    await store.loads()
    await store.count_boxes("default")
    await store.deadlines(1.0)
    await store.next_deadline(1.0)
    await store.find_answer("me", "k", 1.0)
    await store.is_leased("use/box1/", 1.0)
    reader.set_trace_callback(None)
    assert len(asked) == 17
    for statement in asked:
        plan = [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {statement}")]
        assert not [step for step in plan if step.startswith(("SCAN boxes", "USE TEMP B-TREE"))], (statement, plan)


# ---- copies ------------------------------------------------------------------------------------------------------


def backup(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boxlite_server", "backup", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


async def test_a_copy_is_of_one_moment_while_the_coordinator_writes(store: Store, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    for number in range(0, 400, 2):
        await store.insert_box(box(number, spec=Spec(image="x" * 2000)))
    task = asyncio.create_task(asyncio.to_thread(backup, "--database", str(path), str(target)))
    number = 1000
    while not task.done():
        async with store.transaction() as tx:  # in pairs: half a pair is a copy of no moment
            await tx.insert_box(box(number))
            await tx.insert_box(box(number + 1))
        number += 2
        await asyncio.sleep(0)
    done = await task
    assert (done.returncode, done.stderr) == (0, "")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert names(tmp_path, "*copy*") == ["copy.db"]
    restored = await Store.open(target)
    copied = [row.id for row in (await restored.list_boxes("default")).boxes]
    here = [row.id for row in (await store.list_boxes("default")).boxes]
    assert copied == here[: len(copied)]
    assert len(copied) >= 200
    assert len(copied) % 2 == 0
    assert await restored.cluster_id() == await store.cluster_id()
    await restored.close()


async def test_a_copy_never_replaces_anything(store: Store, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "there"
    target.write_text("mine")
    with pytest.raises(errors.InvalidArgumentError, match="exists"):
        back_up(path, target)
    done = backup("--database", str(path), str(target))
    assert done.returncode == 1
    assert f"{target} exists" in done.stderr
    assert target.read_text() == "mine"


def test_only_a_coordinators_database_is_copied(tmp_path: Path) -> None:
    with pytest.raises(errors.DatabaseError, match="no database"):
        back_up(tmp_path / "nosuch", tmp_path / "copy")
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE something (id TEXT)")
    with pytest.raises(errors.DatabaseError, match="no coordinator's"):
        back_up(tmp_path / "other.db", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_copy_of_a_postgresql_is_its_own_job(tmp_path: Path) -> None:
    done = backup("--database", "postgresql://me:secret@h/d", str(tmp_path / "copy"))
    assert done.returncode == 1
    assert "pg_dump" in done.stderr
    assert "secret" not in done.stderr
