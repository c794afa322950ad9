"""The database that coordinators share: several at once, and what becomes of one that stops in the middle."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from support.child import child, line_of
from support.postgresql import Server
from support.rows import WORKER, box, check_read_only, open_store

from boxlite_server import errors
from boxlite_server.coordinator.store import Load, Store
from boxlite_server.coordinator.store import postgresql as backend

pytestmark = pytest.mark.anyio

# Begins a transaction in the database that is its argument, says so, and goes on with it when it is told.
HOLDER = """
    import asyncio, sys
    from boxlite_server import errors
    from boxlite_server.coordinator.store import Store

    async def main():
        store = await Store.open(sys.argv[1])
        try:
            async with store.transaction() as tx:
                await tx.update_worker("w1", epoch="half")
                print("inside")
                await asyncio.to_thread(sys.stdin.readline)
                await tx.update_worker("w1", version="half")
        except errors.DatabaseUnavailableError:
            print("lost")
        await store.update_worker("w1", version="whole")
        print("back")

    asyncio.run(main())
"""

# Takes room on the worker w1 as long as there is some, as another coordinator would; prints what it got.
PLACER = """
    import asyncio, sys
    sys.path.insert(0, "tests")
    from boxlite_server.coordinator.store import Store
    from support.rows import box

    async def main():
        store = await Store.open(sys.argv[1])
        first, got = int(sys.argv[2]), 0
        print("ready")
        sys.stdin.readline()

        async def place(number):
            nonlocal got
            async with store.transaction() as tx:
                if (await tx.load("w1")).memory_mib + 256 <= int(sys.argv[3]):
                    await tx.insert_box(box(number))
                    got += 1

        await asyncio.gather(*(place(first + number) for number in range(30)))
        print(got)

    asyncio.run(main())
"""


@pytest.fixture
def url(postgresql: Server) -> str:
    return postgresql.new_database()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with open_store(url) as store:
        yield store


def ask(url: str, query: str) -> list[tuple[object, ...]]:
    """Run a query that the store has no method for, on a connection of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def sessions(url: str, condition: str = "true") -> list[int]:
    """Process ids of the stores' sessions in that database."""
    rows = ask(
        url,
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        f"AND application_name = 'boxlite-server' AND {condition}",
    )
    return [int(str(row[0])) for row in rows]


# ---- several -----------------------------------------------------------------------------------------------------


async def test_coordinators_that_start_at_once_make_one_database(url: str) -> None:
    stores = await asyncio.gather(*(Store.open(url) for _ in range(6)))
    assert len({await store.cluster_id() for store in stores}) == 1
    await asyncio.gather(*(store.close() for store in stores))


async def test_processes_that_place_at_once_never_take_more_than_there_is(store: Store, url: str) -> None:
    room = 40 * 256
    with (
        child(PLACER, url, "1000", str(room)) as one,
        child(PLACER, url, "2000", str(room)) as two,
        child(PLACER, url, "3000", str(room)) as three,
    ):
        placers = (one, two, three)
        assert [line_of(placer) for placer in placers] == ["ready"] * 3
        for placer in placers:
            assert placer.stdin
            placer.stdin.write("\n")
            placer.stdin.flush()
        got = [int(line_of(placer)) for placer in placers]
    assert sum(got) == 40
    assert await store.load("w1") == Load(cpus=40, memory_mib=room, boxes=40)
    assert len(await store.inventory_of_worker("w1")) == 40


async def test_one_of_several_coordinators_gets_a_lease(store: Store, url: str) -> None:
    others = [store, *[await Store.open(url) for _ in range(3)]]
    won: Counter[int] = Counter()

    async def try_for(holder: int, number: int) -> None:
        if await others[holder].acquire_lease(f"box/{number}", str(holder), 0, 15):
            won[number] += 1

    await asyncio.gather(*(try_for(holder, number) for number in range(30) for holder in range(4)))
    assert won == dict.fromkeys(range(30), 1)
    for other in others[1:]:
        await other.close()


async def test_writes_of_all_kinds_at_once_never_stand_in_each_others_way(store: Store, url: str) -> None:
    others = [store, *[await Store.open(url) for _ in range(2)]]
    for number in range(6):
        await store.insert_box(box(number))
    chance = random.Random(3)

    async def one(other: Store, number: int) -> None:
        first, second = chance.sample(range(6), 2)
        status = chance.choice(("running", "stopped", "failed"))
        match number % 4:
            case 0:
                async with other.transaction() as tx:
                    await tx.update_box(f"box{first}", status=status)
                    await tx.update_box(f"box{second}", status=status)
            case 1:
                await other.update_box(f"box{first}", status=status)
            case 2:
                await other.update_worker("w1", last_heartbeat=number)
            case _:
                await other.count("default", "exec_errors")

    await asyncio.gather(*(one(other, number) for number in range(200) for other in others))
    assert (await store.counters("default")).exec_errors == 150
    running = [state for state in await store.inventory_of_worker("w1") if state.status == "running"]
    assert await store.load("w1") == Load(len(running), 256 * len(running), len(running), len(running))


# ---- one that stops in the middle --------------------------------------------------------------------------------


async def test_a_killed_coordinator_blocks_nobody(store: Store, url: str) -> None:
    with child(HOLDER, url) as process:
        assert line_of(process) == "inside"
        process.kill()
        async with store.transaction() as tx:
            assert await tx.get_worker("w1") == WORKER
            await tx.update_worker("w1", epoch="later")
    assert await store.get_worker("w1") == WORKER._replace(epoch="later")


async def test_a_stopped_coordinator_loses_its_transaction_to_the_others(store: Store, url: str) -> None:
    with child(HOLDER, url) as process:
        assert line_of(process) == "inside"
        os.kill(process.pid, signal.SIGSTOP)
        await store.update_worker("w1", last_heartbeat=5.0)  # once the server has ended the other's session
        async with store.transaction() as tx:
            assert await tx.get_worker("w1") == WORKER._replace(last_heartbeat=5.0)
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        assert line_of(process) == "lost"
        assert line_of(process) == "back"
    assert await store.get_worker("w1") == WORKER._replace(last_heartbeat=5.0, version="whole")


async def test_cancelled_calls_leave_the_store_as_good_as_new(store: Store) -> None:
    async def look() -> None:
        async with store.transaction() as tx:
            await tx.loads()

    for _ in range(3):
        tasks = [asyncio.create_task(look()) for _ in range(5)]
        tasks += [asyncio.create_task(store.count("default", "exec_errors")) for _ in range(2 * backend.CONNECTIONS)]
        for _ in range(3):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(store.update_worker("w1", last_heartbeat=n) for n in range(2 * backend.CONNECTIONS)))
    async with store.transaction() as tx:
        assert (await tx.get_worker("w1")) is not None


# ---- faults of the server ----------------------------------------------------------------------------------------


async def test_sessions_that_the_server_ended_are_replaced_unseen(store: Store, url: str) -> None:
    await asyncio.gather(*(store.get_worker("w1") for _ in range(5)))
    ended = sessions(url)
    assert len(ended) > 1
    for pid in ended:
        ask(url, f"SELECT pg_terminate_backend({pid}, 5000)")
    await store.update_worker("w1", last_heartbeat=2.0)
    async with store.transaction() as tx:
        assert await tx.get_worker("w1") == WORKER._replace(last_heartbeat=2.0)
    assert await store.list_workers() == [WORKER._replace(last_heartbeat=2.0)]
    assert not set(sessions(url)) & set(ended)


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_restarted_server_is_an_outage_while_it_is_away(
    store: Store, postgresql: Server, at_once: bool
) -> None:
    await asyncio.gather(*(store.get_worker("w1") for _ in range(5)))
    postgresql.stop(at_once=at_once)
    try:
        for attempt in (store.get_worker("w1"), store.count("default", "exec_errors")):
            with pytest.raises(errors.DatabaseUnavailableError) as outage:
                await attempt
            assert outage.value.status == 503
        with pytest.raises(errors.DatabaseUnavailableError):
            async with store.transaction():
                raise AssertionError("it began")
    finally:
        postgresql.start()
    assert await store.get_worker("w1") == WORKER
    await store.count("default", "exec_errors")
    async with store.transaction() as tx:
        assert (await tx.counters("default")).exec_errors == 1


async def test_a_transaction_over_the_servers_end_is_an_outage_and_leaves_nothing(
    store: Store, postgresql: Server
) -> None:
    with pytest.raises(errors.DatabaseUnavailableError):
        async with store.transaction() as tx:
            await tx.insert_box(box(1))
            postgresql.stop(at_once=True)
            postgresql.start()
    assert await store.get_box("box1") is None
    await store.insert_box(box(1))


async def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.get_worker("w1")
    (stopped,) = sessions(url)
    monkeypatch.setattr(backend, "ANSWER_SECONDS", 0.2)
    run = backend._run

    async def impatient(
        session: backend.Session, sql: str, parameters: tuple[object, ...] = (), **more: bool
    ) -> object:
        return await run(session, sql, parameters, seconds=0.2, **more)

    monkeypatch.setattr(backend, "_run", impatient)
    os.kill(stopped, signal.SIGSTOP)
    try:
        with pytest.raises(errors.DatabaseUnavailableError):
            await store.update_worker("w1", last_heartbeat=1.0)
    finally:
        os.kill(stopped, signal.SIGCONT)
    monkeypatch.undo()
    assert await store.get_worker("w1") is not None
    assert stopped not in sessions(url)


async def test_a_read_only_database_is_an_outage_until_it_can_be_written(store: Store, url: str) -> None:
    def set_read_only(state: str) -> None:
        alter = f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only = {state}"
        ask(url.replace(url.rpartition("/")[2], "postgres"), alter)

    set_read_only("on")
    for pid in sessions(url):
        ask(url, f"SELECT pg_terminate_backend({pid}, 5000)")
    await check_read_only(store)
    set_read_only("off")
    with pytest.raises(errors.DatabaseUnavailableError, match="read-only"):
        await store.insert_box(box(1))  # this session stays read-only, and is not used again
    await store.insert_box(box(1))
    async with store.transaction() as tx:
        assert await tx.get_box("box1") == box(1)


async def test_a_server_that_is_not_there_is_a_clear_error_without_the_password() -> None:
    with pytest.raises(errors.DatabaseUnavailableError, match=r"127\.0\.0\.1") as refused:
        await Store.open("postgresql://me:hidden@127.0.0.1:1/boxes")
    assert "hidden" not in refused.value.message


def test_without_its_package_the_error_says_what_to_install() -> None:
    program = """
import asyncio, sys
sys.modules["psycopg"] = None
from boxlite_server.cli.main import main
sys.exit(main(["coordinator", "--port", "0", "--database", "postgresql://h/d"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "pip install 'boxlite-server[postgresql]'" in done.stderr


# ---- schemas -----------------------------------------------------------------------------------------------------


async def test_a_database_of_the_future_is_refused(store: Store, url: str) -> None:
    ask(url, "UPDATE meta SET value = '999' WHERE key = 'schema_version'")
    with pytest.raises(errors.DatabaseError, match="schema 999 is newer"):
        await Store.open(url)


async def test_a_migration_that_fails_leaves_the_database_as_it_was(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = backend.schema.scripts("postgresql")
    broken = [*real, "CREATE TABLE more (id TEXT); INSERT INTO nosuch VALUES (1);"]
    monkeypatch.setattr(backend.schema, "scripts", lambda database: broken)
    with pytest.raises(errors.DatabaseError, match="nosuch"):
        await Store.open(url)
    assert ask(url, "SELECT value FROM meta WHERE key = 'schema_version'") == [(str(len(real)),)]
    assert ask(url, "SELECT to_regclass('more')") == [(None,)]
    assert await store.get_worker("w1") == WORKER


async def test_both_databases_have_the_same_tables(store: Store, url: str, tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await (await Store.open(path)).close()
    with closing(sqlite3.connect(path)) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        here = {
            (table, column[1], bool(column[3]) or bool(column[5]))
            for table in tables
            for column in db.execute(f"PRAGMA table_info({table})")
        }
    there = ask(
        url,
        "SELECT table_name, column_name, is_nullable = 'NO' FROM information_schema.columns "
        "WHERE table_schema = current_schema()",
    )
    assert here == set(there)
