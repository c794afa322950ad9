"""The table of API keys, in both databases, and beside a coordinator that is using it."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from support.keys import new_key
from support.rows import open_store

from boxlite_server import errors
from boxlite_server.coordinator.store import Store, schema
from boxlite_server.coordinator.store import keys as table

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(database: Path | str) -> AsyncIterator[Store]:
    async with open_store(database) as store:
        yield store


async def test_a_key_is_kept_as_it_was_made(store: Store) -> None:
    assert not await store.has_keys()
    key, _ = await new_key(store, expires_at=5.0)
    assert not await store.insert_key(key._replace(name="another"))
    assert await store.get_key(key.id) == key
    assert await store.get_key("nosuch") is None
    assert await store.list_keys() == [key]
    assert (await store.has_keys(), await store.has_keys(of_workers=True)) == (True, False)
    await new_key(store, prefix="")
    assert await store.has_keys(of_workers=True)


async def test_only_so_many_keys_work_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_KEYS_OF_PREFIX", 2)
    monkeypatch.setattr(table, "MAX_KEYS", 3)
    first, _ = await new_key(store)
    await new_key(store, expires_at=50.0)
    more = first._replace(id="more")
    assert not await store.insert_key(more)  # of the prefix
    await new_key(store, prefix="blue")
    assert not await store.insert_key(more._replace(prefix="green"))  # in all
    assert await store.get_key("more") is None
    assert await store.insert_key(more._replace(created_at=50.0))  # one has expired
    await store.revoke_key(first.id, 50.0)
    assert await store.insert_key(more._replace(id="another", created_at=51.0))


async def test_keys_that_have_ended_are_kept_up_to_a_number(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_ENDED_KEYS", 2)
    of_workers, _ = await new_key(store, prefix="", expires_at=1.0)
    ended = [(await new_key(store, created_at=float(number), expires_at=5.0))[0] for number in range(4)]
    working, _ = await new_key(store, created_at=9.0)
    assert set(await store.list_keys()) == {of_workers, *ended[2:], working}


async def test_keys_come_in_pages(store: Store) -> None:
    made = [(await new_key(store, created_at=float(number)))[0] for number in range(3)]
    assert await store.list_keys(limit=2) == made[:2]
    assert await store.list_keys(after=(1.0, made[1].id), limit=2) == made[2:]


async def test_a_key_is_revoked_once(store: Store) -> None:
    key, _ = await new_key(store)
    await store.revoke_key(key.id, 10.0)
    await store.revoke_key(key.id, 20.0)
    assert await store.list_keys() == [key._replace(revoked_at=10.0)]


async def test_a_rotation_keeps_the_former_secret_for_a_time(store: Store) -> None:
    key, _ = await new_key(store)
    await store.rotate_key(key.id, "new", 9.0)
    rotated = key._replace(secret_sha256="new", former_sha256=key.secret_sha256, former_until=9.0)
    assert await store.get_key(key.id) == rotated


async def test_the_secret_of_tokens_is_minted_once_for_all_coordinators(store: Store, database: Path | str) -> None:
    secret = await store.token_secret()
    assert len(secret) >= 43
    other = await Store.open_beside(database)
    assert await other.token_secret() == secret
    await other.close()


async def test_a_command_writes_beside_a_coordinator(store: Store, database: Path | str) -> None:
    beside = await Store.open_beside(database)
    key, _ = await new_key(beside)
    assert await store.get_key(key.id) == key
    await beside.close()
    assert await store.get_key(key.id) == key


async def test_a_command_makes_the_database_and_leaves_it_to_a_coordinator(tmp_path: Path) -> None:
    path = tmp_path / "new" / "c.db"
    beside = await Store.open_beside(path)
    async with open_store(path) as store:
        key, _ = await new_key(beside)
        assert await store.get_key(key.id) == key
        await beside.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_command_does_not_upgrade_the_database_of_a_running_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(tmp_path / "c.db"):
        with closing(sqlite3.connect(tmp_path / "c.db")) as other:
            (version,) = other.execute("PRAGMA user_version").fetchone()
        newer = [*schema.scripts("sqlite"), "CREATE TABLE more (id TEXT) STRICT;"]
        monkeypatch.setattr(schema, "scripts", lambda _: newer)
        with pytest.raises(errors.DatabaseError, match="older version"):
            await Store.open_beside(tmp_path / "c.db")
        with closing(sqlite3.connect(tmp_path / "c.db")) as other:
            assert other.execute("PRAGMA user_version").fetchone() == (version,)
