"""The embedded database: one file, one coordinator.

Statements run directly on the event loop, which is faster than any thread: a point read costs 15 µs. One connection
writes and another reads, so that a read outside of a transaction never sees a transaction half done. Waiting, for
the end of a transaction or for another process's lock, never blocks the event loop.

A durable transaction is on disk when it ends: a thread syncs the write-ahead log, once for all transactions that ended
meanwhile. Any other transaction, and a single write outside of a transaction, survives the end of the process, but the
last of these may be lost when the machine loses power: what workers say of boxes, which can be asked again, and
heartbeats, leases and deadlines, which are written all the time.
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
from .connection import SQLITE, Connection, Owner, Row, Transaction, failed, unavailable

BUSY_SECONDS = 5.0  # how long another process may hold its lock
_RETRY_SECONDS = 0.01

_SETTINGS = """
PRAGMA busy_timeout = {busy_ms};
PRAGMA foreign_keys = ON;
PRAGMA synchronous = NORMAL;
PRAGMA cache_size = -32768;
PRAGMA journal_size_limit = 67108864;
"""

# Failures that may be over at the next try, by the prefix of SQLite's name for the error.
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
    is_shared = False

    def __init__(self, path: Path, lock_file: int | None) -> None:
        """Open the database; raises sqlite3.Error or DatabaseError. Without `lock_file` a coordinator is using it."""
        self._lock_file = lock_file
        self._turn = asyncio.Lock()  # held by the one task that writes
        self._owner = Owner()
        self._writer = _connect(path)
        self._writer.execute("PRAGMA journal_mode = WAL")
        _migrate(self._writer, path, alone=lock_file is not None)
        self._reader = _connect(path)
        self._reader.execute("PRAGMA query_only = ON")
        for connection in (self._writer, self._reader):
            connection.execute("PRAGMA busy_timeout = 0")  # from here on `_patiently` waits
        self._log = _Log(path.with_name(f"{path.name}-wal"))

    @classmethod
    async def open(cls, path: Path, *, beside: bool = False) -> Sqlite:
        """Open or create the database and upgrade its schema; raises DatabaseError. With `beside` a coordinator may be
        using the database, or start at any time."""
        lock_file = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock_file = _lock_beside(path) if beside else _lock(path)
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT, 0o600))  # the database holds the workers' secrets
            database = cls(path, lock_file)
            if beside:
                database._unlock()
            return database
        except (OSError, sqlite3.Error, errors.DatabaseError) as exc:
            if lock_file is not None:
                os.close(lock_file)
            reason = _failure(exc).message if isinstance(exc, sqlite3.Error) else exc
            raise errors.DatabaseError(f"cannot open the database {path}: {reason}") from exc

    async def close(self) -> None:
        self._log.close()
        self._reader.close()
        self._writer.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock_file is not None:
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
    async def transaction(self, *, durable: bool = True) -> AsyncIterator[Connection]:
        self._owner.check()
        async with self._turn:
            await _patiently(self._writer, "BEGIN IMMEDIATE")
            statements = Transaction(SQLITE, self._write_now)
            try:
                with self._owner:
                    yield statements
                _run(self._writer, "COMMIT")
            finally:
                statements.ended = True
                if self._writer.in_transaction:  # a full disk may have ended it already
                    _run(self._writer, "ROLLBACK")
        if durable:
            await self._log.sync()

    async def _write_now(self, sql: str, parameters: Sequence[Any]) -> list[Row]:
        return _run(self._writer, sql, parameters)


class _Log:
    """SQLite's write-ahead log. SQLite writes the log, and this class syncs it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
        self._turn = asyncio.Lock()  # one sync at a time
        self._next: asyncio.Task[None] | None = None  # the sync that has not begun

    async def sync(self) -> None:
        """Wait until everything that was written before this call is on disk. Raises DatabaseUnavailableError where
        nobody knows whether it is."""
        if self._next is None:
            self._next = asyncio.create_task(self._sync())
        await asyncio.shield(self._next)

    async def _sync(self) -> None:
        async with self._turn:
            self._next = None  # what is written from here on needs another sync
            try:
                await asyncio.to_thread(os.fdatasync, self._descriptor)
            except OSError as exc:
                raise unavailable(f"its disk fails ({exc})") from exc

    def close(self) -> None:
        with suppress(OSError):  # closed before
            os.close(self._descriptor)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(_SETTINGS.format(busy_ms=int(BUSY_SECONDS * 1000)))
    return connection


def _lock(path: Path) -> int:
    """Make this process the one coordinator of the database; the lock ends with the process, however the process ends.
    The lock is on a file of its own: closing a second descriptor of the database file would release SQLite's locks."""
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


def _lock_beside(path: Path) -> int | None:
    """Lock the database for as long as it takes to open it; None where a coordinator has it."""
    try:
        return _lock(path)
    except errors.DatabaseError:
        return None


def _migrate(connection: sqlite3.Connection, path: Path, *, alone: bool) -> None:
    """Upgrade the schema in one transaction. A copy of a database that is not new is kept beside it. Raises
    DatabaseError where a coordinator is using the older schema."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    scripts = schema.upgrade("sqlite", version)
    if not scripts:
        return
    if not alone:
        raise errors.DatabaseError(
            "the coordinator that uses it is of an older version; restart the coordinator with this one first"
        )
    if version:
        copy(connection, path.with_name(f"{path.name}.schema-{version}"))
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE; {' '.join(scripts)} PRAGMA user_version = {version + len(scripts)}; COMMIT;"
        )
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


async def _patiently(connection: sqlite3.Connection, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
    """Run a statement outside of a transaction; while another process has the lock, try again for BUSY_SECONDS."""
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
            return unavailable(f"{reason} ({exc})")
    return failed(exc)


def _name(exc: sqlite3.Error) -> str:
    """SQLite's name of an error; "" for an error that Python's module raised by itself."""
    return getattr(exc, "sqlite_errorname", None) or ""
