"""A database that several coordinators share: PostgreSQL through psycopg, an extra of this package.

One advisory lock stands for "nobody comes in between": a transaction takes it alone, a single write takes it
together with other single writes. So transactions run one after the other over all coordinators, as they do in
SQLite, and no two of them can deadlock. A coordinator that is stopped in the middle of one, or cut off, loses it
after seconds: the server ends the session, and the others go on.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from typing import Any

from ... import errors
from . import schema
from .connection import POSTGRESQL, Connection, Owner, Row, shown

try:
    import psycopg
except ImportError as exc:
    raise errors.DatabaseError(
        "a PostgreSQL database takes the package psycopg: pip install 'boxlite-server[postgresql]'"
    ) from exc

from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

CONNECTIONS = 10  # of one coordinator, at most
ANSWER_SECONDS = 12.0  # for a statement: longer than any of the server's own limits below
MIGRATION_SECONDS = 600.0

LOCK = int.from_bytes(b"boxlite1")  # the advisory lock's number
_ALONE = f"SELECT pg_advisory_xact_lock({LOCK})"
_TOGETHER = f"SELECT pg_advisory_xact_lock_shared({LOCK})"

# Each may be given otherwise in the URL. Over TCP a peer that is gone without a word is noticed in some 10 s.
_CONNECTION = {
    "application_name": "boxlite-server",
    "connect_timeout": "5",
    "client_encoding": "utf8",
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
# The same from the server's side. An idle transaction is that of a stopped coordinator: it ends before others,
# who wait for its lock, give up.
_SESSION = """
SET idle_in_transaction_session_timeout = '3s';
SET lock_timeout = '8s';
SET statement_timeout = '10s';
SET default_transaction_isolation = 'read committed';
SET tcp_keepalives_idle = 5;
SET tcp_keepalives_interval = 2;
SET tcp_keepalives_count = 3;
SET tcp_user_timeout = '10s';
"""

# What a server refuses for reasons that may be over at the next try, by the classes of SQLSTATE: connections,
# rolled back, resources (a full disk too), limits, an operator's or a time limit's intervention, the system.
_PASSING = ("08", "40", "53", "54", "55", "57", "58", "25006", "25P03")
_AGAIN = ("40001", "40P01")  # rolled back in favour of another

Session = psycopg.AsyncConnection[Row]


class Postgresql:
    """A `Backend` over one PostgreSQL database."""

    dialect = POSTGRESQL

    def __init__(self, url: str) -> None:
        self._pool = _Pool(url)
        self._turn = asyncio.Lock()  # who of this process is in a transaction: one of its sessions waits, not all
        self._owner = Owner()

    @classmethod
    async def open(cls, url: str) -> Postgresql:
        """Connect and bring the schema up to date; raises DatabaseError."""
        database = cls(url)
        try:
            await database._migrate()
        except errors.DatabaseError as exc:
            await database.close()
            raise type(exc)(f"cannot open the database {shown(url)}: {exc.message}") from exc
        return database

    async def close(self) -> None:
        await self._pool.close()

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        self._owner.check()
        with _translated():
            session, rows = await self._begin(_translate(sql), parameters)
            await self._pool.give_back(session)
            return rows

    async def write(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """In one round trip with the lock, and so one transaction."""
        self._owner.check()
        with _translated():
            while True:
                async with self._pool.session() as (session, _):
                    try:
                        return await _run(session, f"{_TOGETHER}; {_translate(sql)}", parameters, several=True)
                    except psycopg.OperationalError as exc:
                        if exc.sqlstate not in _AGAIN:
                            raise

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        self._owner.check()
        async with self._turn:
            with _translated():
                session, _ = await self._begin(f"BEGIN; {_ALONE}", (), several=True)
            statements = _Transaction(session)
            try:
                with self._owner:
                    yield statements
                if session.info.transaction_status == TransactionStatus.INERROR:
                    raise errors.DatabaseError("the database failed before, in this transaction")
                with _translated():
                    await _run(session, "COMMIT")
            finally:
                statements.ended = True
                if session.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                    with suppress(psycopg.Error):
                        await _run(session, "ROLLBACK")
                await self._pool.give_back(session)

    async def _begin(self, sql: str, parameters: Sequence[Any], *, several: bool = False) -> tuple[Session, list[Row]]:
        """A session, and the answer to the first statement in it, which changes nothing: it is asked again where
        the session turns out to be lost since it was used last, and where the server gave way to another."""
        while True:
            session, is_new = await self._pool.take()
            try:
                return session, await _run(session, sql, parameters, several=several)
            except BaseException as exc:
                with suppress(psycopg.Error):
                    if session.info.transaction_status == TransactionStatus.INERROR:
                        await _run(session, "ROLLBACK")
                await self._pool.give_back(session)
                stale = session.closed and not is_new
                if not isinstance(exc, psycopg.OperationalError) or not (stale or exc.sqlstate in _AGAIN):
                    raise

    async def _migrate(self) -> None:
        """All in one transaction under the lock, so that of several coordinators that start at once one does it."""
        scripts = schema.scripts("postgresql")
        patience = f"SET statement_timeout = 0; SET lock_timeout = '{MIGRATION_SECONDS:.0f}s'"
        with _translated():
            async with self._pool.session() as (session, _):
                await _run(session, f"{patience}; BEGIN; {_ALONE}", several=True, seconds=MIGRATION_SECONDS)
                [[known]] = await _run(session, "SELECT to_regclass('meta') IS NOT NULL")
                rows = await _run(session, "SELECT value FROM meta WHERE key = 'schema_version'") if known else []
                version = int(rows[0][0]) if rows else 0
                schema.refuse_newer(version, len(scripts))
                if version < len(scripts):
                    for script in scripts[version:]:
                        await _run(session, script, several=True, seconds=MIGRATION_SECONDS)
                    await _run(
                        session,
                        "INSERT INTO meta VALUES ('schema_version', %s) "
                        "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                        (str(len(scripts)),),
                    )
                await _run(session, f"COMMIT; {_SESSION}", several=True)


class _Transaction:
    """The `Connection` of one transaction."""

    dialect = POSTGRESQL

    def __init__(self, session: Session) -> None:
        self._session = session
        self.ended = False

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        if self.ended:
            raise RuntimeError("the transaction has ended")
        with _translated():
            return await _run(self._session, _translate(sql), parameters)

    write = read


class _Pool:
    """Sessions that wait to be used. There is nothing that runs by itself: while the server is away each use
    tries to connect, fails at once, and works again as soon as the server does."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[Session] = []
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._closed = False

    @asynccontextmanager
    async def session(self) -> AsyncIterator[tuple[Session, bool]]:
        session, is_new = await self.take()
        try:
            yield session, is_new
        finally:
            await self.give_back(session)

    async def take(self) -> tuple[Session, bool]:
        """A session, and whether it is a new one."""
        if self._closed:
            raise psycopg.OperationalError("the store is closed")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            raise psycopg.OperationalError(f"all of its {CONNECTIONS} connections are busy") from None
        try:
            while self._idle:
                session = self._idle.pop()
                if _lives(session):
                    return session, False
                await session.close()
            return await self._connect(), True
        except BaseException:
            self._slots.release()
            raise

    async def give_back(self, session: Session) -> None:
        """Keep it for the next, unless it was lost, or left in the middle of something."""
        self._slots.release()
        if self._closed or session.closed or session.info.transaction_status != TransactionStatus.IDLE:
            await session.close()
        else:
            self._idle.append(session)

    async def close(self) -> None:
        self._closed = True
        while self._idle:
            await self._idle.pop().close()

    async def _connect(self) -> Session:
        settings: dict[str, Any] = {**_CONNECTION, **conninfo_to_dict(self._url)}
        session: Session = await psycopg.AsyncConnection.connect(autocommit=True, **settings)
        try:
            await _run(session, _SESSION, several=True)
        except BaseException:
            await session.close()
            raise
        return session


async def _run(
    session: Session,
    sql: str,
    parameters: Sequence[Any] = (),
    *,
    several: bool = False,
    seconds: float = ANSWER_SECONDS,
) -> list[Row]:
    """The rows of a statement; of several in one text, which are one transaction, those of the last."""
    # Nothing of psycopg's ends the wait for a server that was stopped, but stays connected.
    cut = asyncio.get_running_loop().call_later(seconds, _cut, session)
    try:
        cursor = psycopg.AsyncClientCursor(session) if several else session.cursor()
        await cursor.execute(sql, [_storable(value) for value in parameters] or None)
        while cursor.nextset():
            pass
        return await cursor.fetchall() if cursor.description else []
    except psycopg.errors.ReadOnlySqlTransaction:
        await session.close()  # it stays so; a new one may be of a server that writes
        raise
    finally:
        cut.cancel()


def _cut(session: Session) -> None:
    """Make a session's connection fail now."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(session.fileno())) as connection:
        connection.shutdown(socket.SHUT_RDWR)


def _lives(session: Session) -> bool:
    """Whether an idle session is still good: from one that the server has ended there is something to read."""
    if session.closed:
        return False
    poll = select.poll()
    poll.register(session.fileno(), select.POLLIN)
    return not poll.poll(0)


@lru_cache(maxsize=512)
def _translate(sql: str) -> str:
    """Marks as psycopg has them."""
    assert "%" not in sql
    return sql.replace("?", "%s")


def _storable(value: Any) -> Any:
    """Text has no NUL in PostgreSQL; nothing of ours has it, but what a client asks for by name may."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


@contextmanager
def _translated() -> Iterator[None]:
    """psycopg's errors as ours."""
    try:
        yield
    except psycopg.Error as exc:
        reason = " ".join(str(exc).split())
        passing = exc.sqlstate.startswith(_PASSING) if exc.sqlstate else isinstance(exc, psycopg.OperationalError)
        if passing:
            raise errors.DatabaseUnavailableError(f"the database cannot be used now: {reason}") from exc
        raise errors.DatabaseError(f"the database failed: {reason}") from exc
