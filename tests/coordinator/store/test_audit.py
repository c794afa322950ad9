"""The table of the audit, in both databases: lines are added, found, and deleted when they are old."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from support.rows import open_store

from boxlite_server.coordinator.store import AuditFilter, AuditLine, Store

pytestmark = pytest.mark.anyio

LINE = AuditLine(100.0, "k1", "acme", "createBox", "/v1/acme/boxes", 201, "req_1", "10.0.0.1")
ALL = AuditFilter()


@pytest.fixture
async def store(database: Path | str) -> AsyncIterator[Store]:
    async with open_store(database) as store:
        yield store


async def test_lines_are_found_in_their_order_the_last_ones_first_to_stay(store: Store) -> None:
    lines = [LINE._replace(at=float(number)) for number in range(237)]
    await store.insert_audit(lines)
    assert await store.find_audit(ALL, 1000) == lines
    assert await store.find_audit(ALL, 3) == lines[-3:]


async def test_lines_are_found_by_all_that_they_say(store: Store) -> None:
    other = AuditLine(200.0, "k2", "other", "removeBox", "/v1/other/boxes/b", 404, "req_2x", "10.0.0.2")
    await store.insert_audit([LINE, other])
    for wanted in (
        AuditFilter(since=150.0),
        AuditFilter(key_ids=["nosuch", "k2"]),
        AuditFilter(prefix="other"),
        AuditFilter(action="removeBox"),
        AuditFilter(statuses=range(404, 405)),
        AuditFilter(statuses=range(400, 500)),
        AuditFilter(request_id="req_2x"),
        AuditFilter(request_id="req_2*"),
        AuditFilter(150.0, ["k2"], "other", "removeBox", range(400, 500), "req_2*"),
    ):
        assert await store.find_audit(wanted, 10) == [other], wanted
    assert await store.find_audit(AuditFilter(request_id="req_*"), 10) == [LINE, other]
    for nothing in (AuditFilter(request_id="*"), AuditFilter(request_id="req_2"), AuditFilter(key_ids=[""])):
        assert await store.find_audit(nothing, 10) == [], nothing


async def test_old_lines_are_deleted_a_thousand_at_a_time(store: Store) -> None:
    await store.insert_audit([*[LINE] * 1500, LINE._replace(at=300.0)])
    assert await store.purge_audit(300.0)
    assert not await store.purge_audit(300.0)
    assert await store.find_audit(ALL, 10) == [LINE._replace(at=300.0)]


@pytest.mark.parametrize(
    "attack",
    [
        "UPDATE audit SET status = 200",
        "UPDATE audit SET at = 1",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE at > 1",
        "INSERT INTO audit SELECT * FROM audit WHERE true ON CONFLICT (id) DO UPDATE SET status = 200",
        "TRUNCATE audit",
    ],
)
async def test_the_database_refuses_to_change_lines_and_to_delete_new_ones(
    store: Store, database: Path | str, attack: str
) -> None:
    line = LINE._replace(at=time.time() - 3600)
    await store.insert_audit([line])
    if isinstance(database, Path):
        with closing(sqlite3.connect(database)) as connection, pytest.raises(sqlite3.Error):
            connection.execute(attack)
    else:
        import psycopg

        with psycopg.connect(database) as connection, pytest.raises(psycopg.Error):
            connection.execute(attack)
    assert await store.find_audit(ALL, 10) == [line]
