"""The embedded database: one file, one coordinator.

Calls are direct on the event loop, which is faster than any thread: a point read costs 15 µs. One connection
writes and another reads, so that a read outside of a transaction never sees one half done. What waits, for
a transaction's end or for another process's lock, waits on the loop and holds up nobody else.

A transaction is on the disk when it ends, which a thread waits for, once for all that ended meanwhile. A single
write outside of one outlives the process, but the machine's loss of power may take the last of them: heartbeats,
leases and deadlines, which are noted all the time.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from ... import errors
from . import schema
from .backup import copy
from .connection import SQLITE, Connection, Owner, Row

BUSY_SECONDS = 5.0  # how long another process may hold its lock
_RETRY_SECONDS = 0.01

_SETTINGS = """
PRAGMA busy_timeout = {busy_ms};
PRAGMA foreign_keys = ON;
PRAGMA synchronous = NORMAL;
PRAGMA cache_size = -32768;
PRAGMA journal_size_limit = 67108864;
"""

# By the beginnings of SQLite's names for its errors: what may be over at the next try.
_PASSING = {
    "SQLITE_BUSY": "another process has locked it",
    "SQLITE_LOCKED": "another process has locked it",
    "SQLITE_FULL": "its disk is full",
    "SQLITE_READONLY": "it is read-only",
    "SQLITE_IOERR": "its disk fails",
    "SQLITE_CANTOPEN": "its file cannot be opened",
    "SQLITE_NOMEM": "memory is short",
    "SQLITE_PROTOCOL": "another process has locked it",
}


class Sqlite:
    """A `Backend` over one file."""

    dialect = SQLITE

    def __init__(self, path: Path, lock_file: int) -> None:
        """Opens it; raises sqlite3.Error or DatabaseError."""
        self._lock_file = lock_file
        self._turn = asyncio.Lock()  # who writes
        self._owner = Owner()
        self._writer = _connect(path)
        self._writer.execute("PRAGMA journal_mode = WAL")
        _migrate(self._writer, path)
        self._reader = _connect(path)
        self._reader.execute("PRAGMA query_only = ON")
        for connection in (self._writer, self._reader):
            connection.execute("PRAGMA busy_timeout = 0")  # from here on the waiting is ours, see `_patiently`
        self._log = _Log(path.with_name(f"{path.name}-wal"))

    @classmethod
    async def open(cls, path: Path) -> Sqlite:
        """Open or make the database and bring its schema up to date; raises DatabaseError."""
        lock_file = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock_file = _lock(path)
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT, 0o600))  # it holds the workers' secrets
            return cls(path, lock_file)
        except (OSError, sqlite3.Error, errors.DatabaseError) as exc:
            if lock_file is not None:
                os.close(lock_file)
            reason = _failure(exc).message if isinstance(exc, sqlite3.Error) else exc
            raise errors.DatabaseError(f"cannot open the database {path}: {reason}") from exc

    async def close(self) -> None:
        self._log.close()
        self._reader.close()
        self._writer.close()
        with suppress(OSError):  # closed before
            os.close(self._lock_file)

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        self._owner.check()
        return await _patiently(self._reader, sql, parameters)

    async def write(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        self._owner.check()
        async with self._turn:
            return await _patiently(self._writer, sql, parameters)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        self._owner.check()
        async with self._turn:
            await _patiently(self._writer, "BEGIN IMMEDIATE")
            statements = _Transaction(self._writer)
            try:
                with self._owner:
                    yield statements
                _run(self._writer, "COMMIT")
            finally:
                statements.ended = True
                if self._writer.in_transaction:  # a full disk may have ended it already
                    _run(self._writer, "ROLLBACK")
        await self._log.sync()


class _Transaction:
    """The `Connection` of one transaction."""

    dialect = SQLITE

    def __init__(self, writer: sqlite3.Connection) -> None:
        self._writer = writer
        self.ended = False

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        if self.ended:
            raise RuntimeError("the transaction has ended")
        return _run(self._writer, sql, parameters)

    write = read


class _Log:
    """SQLite's write-ahead log, which it writes but does not sync."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
        self._turn = asyncio.Lock()  # one sync at a time
        self._next: asyncio.Task[None] | None = None  # the one that has not begun

    async def sync(self) -> None:
        """Wait until all that was written before this call is on the disk. Raises DatabaseUnavailableError, and
        then that is not known."""
        if self._next is None:
            self._next = asyncio.create_task(self._sync())
        await asyncio.shield(self._next)

    async def _sync(self) -> None:
        async with self._turn:
            self._next = None  # what is written from here on needs another
            try:
                await asyncio.to_thread(os.fdatasync, self._descriptor)
            except OSError as exc:
                raise errors.DatabaseUnavailableError(
                    f"the database cannot be used now: its disk fails ({exc})"
                ) from exc

    def close(self) -> None:
        with suppress(OSError):  # closed before
            os.close(self._descriptor)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(_SETTINGS.format(busy_ms=int(BUSY_SECONDS * 1000)))
    return connection


def _lock(path: Path) -> int:
    """Be the one coordinator of a database; the lock goes with the process, however it ends. A file of its own:
    to close a second descriptor of the database would give up SQLite's locks."""
    lock_file = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(lock_file, 32).decode(errors="replace").strip()
        os.close(lock_file)
        raise errors.DatabaseError(
            f"the coordinator with process id {owner or 'unknown'} uses it; "
            "several coordinators take a PostgreSQL, see --database"
        ) from None
    os.truncate(lock_file, 0)
    os.pwrite(lock_file, f"{os.getpid()}\n".encode(), 0)
    return lock_file


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """All or nothing. Of a database that has something in it a copy is kept."""
    scripts = schema.scripts("sqlite")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    schema.refuse_newer(version, len(scripts))
    if version == len(scripts):
        return
    if version:
        copy(connection, path.with_name(f"{path.name}.schema-{version}"))
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE; {' '.join(scripts[version:])} PRAGMA user_version = {len(scripts)}; COMMIT;"
        )
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


async def _patiently(connection: sqlite3.Connection, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
    """Run a statement that begins by itself; while another process has the lock, try again for a while."""
    until = None
    while True:
        try:
            return connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as exc:
            now = asyncio.get_running_loop().time()
            until = now + BUSY_SECONDS if until is None else until
            if not _name(exc).startswith("SQLITE_BUSY") or now >= until:
                raise _failure(exc) from exc
        await asyncio.sleep(_RETRY_SECONDS)


def _run(connection: sqlite3.Connection, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
    try:
        return connection.execute(sql, parameters).fetchall()
    except sqlite3.Error as exc:
        raise _failure(exc) from exc


def _failure(exc: sqlite3.Error) -> errors.DatabaseError:
    for name, reason in _PASSING.items():
        if _name(exc).startswith(name):
            return errors.DatabaseUnavailableError(f"the database cannot be used now: {reason} ({exc})")
    return errors.DatabaseError(f"the database failed: {exc}")


def _name(exc: sqlite3.Error) -> str:
    """SQLite's name of an error; faults of Python's module have none."""
    return getattr(exc, "sqlite_errorname", None) or ""
