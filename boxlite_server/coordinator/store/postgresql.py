"""The database that several coordinators share: PostgreSQL through psycopg, an extra of this package.

One advisory lock makes transactions exclusive: a transaction takes it exclusively, a single write takes it shared
with other single writes. So the transactions of all coordinators run one after the other, as they do in SQLite, and
no two of them can deadlock. When a coordinator is stopped or cut off in the middle of a transaction, the server ends
its session after some seconds, which rolls the transaction back, and the others go on.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache, partial
from typing import Any

from ... import errors
from . import schema
from .connection import POSTGRESQL, Connection, Owner, Row, Transaction, failed, shown, unavailable

try:
    import psycopg
except ImportError as exc:
    raise errors.DatabaseError(
        "a PostgreSQL database needs the package psycopg: pip install 'boxlite-server[postgresql]'"
    ) from exc

from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

CONNECTIONS = 10  # of one coordinator, at most
ANSWER_SECONDS = 12.0  # for a statement: longer than the server's own limits below
MIGRATION_SECONDS = 600.0

LOCK = int.from_bytes(b"boxlite1")  # the advisory lock's number
_ALONE = f"SELECT pg_advisory_xact_lock({LOCK})"
_TOGETHER = f"SELECT pg_advisory_xact_lock_shared({LOCK})"

# The URL may override each of these. Over TCP a peer that vanishes silently is noticed within about 10 s.
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
# The same on the server's side. An idle transaction belongs to a stopped coordinator: the server ends it before the
# coordinators that wait for its lock give up.
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

# Failures that may be over at the next try, by the prefix of SQLSTATE: connection, transaction rollback, insufficient
# resources (a full disk too), limits exceeded, not in the required state, intervention of an operator or a time limit,
# system error, read-only transaction, idle transaction timeout.
_PASSING = ("08", "40", "53", "54", "55", "57", "58", "25006", "25P03")
_AGAIN = ("40001", "40P01")  # serialization failure, deadlock: the server rolled back in favour of another session

Session = psycopg.AsyncConnection[Row]


class Postgresql:
    """A `Backend` over one PostgreSQL database."""

    dialect = POSTGRESQL
    is_shared = True

    def __init__(self, url: str) -> None:
        self._pool = _Pool(url)
        self._turn = (
            asyncio.Lock()
        )  # for a transaction: so that one session of this process waits for the lock, not all
        self._owner = Owner()

    @classmethod
    async def open(cls, url: str) -> Postgresql:
        """Connect and upgrade the schema; raises DatabaseError."""
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
        """See `Connection.write`. The lock and the statement are one round trip, and so one transaction."""
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
    async def transaction(self, *, durable: bool = True) -> AsyncIterator[Connection]:
        self._owner.check()
        begin = f"BEGIN; {_ALONE}" if durable else f"BEGIN; {_ALONE}; SET LOCAL synchronous_commit = off"
        async with self._turn:
            with _translated():
                session, _ = await self._begin(begin, (), several=True)
            statements = Transaction(POSTGRESQL, partial(_run_translated, session))
            try:
                with self._owner:
                    yield statements
                if session.info.transaction_status == TransactionStatus.INERROR:
                    raise failed("a statement failed before in this transaction")
                with _translated():
                    await _run(session, "COMMIT")
            finally:
                statements.ended = True
                if session.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                    with suppress(psycopg.Error):
                        await _run(session, "ROLLBACK")
                await self._pool.give_back(session)

    async def _begin(self, sql: str, parameters: Sequence[Any], *, several: bool = False) -> tuple[Session, list[Row]]:
        """Take a session and run its first statement, which changes nothing; the session and the rows. The statement is
        run again, in another session, where the connection was lost while the session was idle, and where the server
        rolled back in favour of another session."""
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
        """Upgrade the schema in one transaction under the lock, so that only one of several coordinators does it."""
        patience = f"SET statement_timeout = 0; SET lock_timeout = '{MIGRATION_SECONDS:.0f}s'"
        with _translated():
            async with self._pool.session() as (session, _):
                await _run(session, f"{patience}; BEGIN; {_ALONE}", several=True, seconds=MIGRATION_SECONDS)
                [[known]] = await _run(session, "SELECT to_regclass('meta') IS NOT NULL")
                rows = await _run(session, "SELECT value FROM meta WHERE key = 'schema_version'") if known else []
                version = int(rows[0][0]) if rows else 0
                scripts = schema.upgrade("postgresql", version)
                for script in scripts:
                    await _run(session, script, several=True, seconds=MIGRATION_SECONDS)
                if scripts:
                    await _run(
                        session,
                        "INSERT INTO meta VALUES ('schema_version', %s) "
                        "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                        (str(version + len(scripts)),),
                    )
                await _run(session, f"COMMIT; {_SESSION}", several=True)


class _Pool:
    """Idle sessions, to be used again. Nothing runs in the background: while the server is away each `take` tries to
    connect and fails at once, and it succeeds as soon as the server is back."""

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
        """A session, and whether it is new. Raises psycopg.OperationalError."""
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
        """Keep a session for the next use, unless its connection was lost or it is in the middle of a transaction."""
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
    """The rows of a statement. With `several`, the text may be several statements, which are one transaction; the rows
    are those of the last statement."""
    # psycopg has no timeout for a server process that was stopped (SIGSTOP) and stays connected.
    cut = asyncio.get_running_loop().call_later(seconds, _cut, session)
    try:
        cursor = psycopg.AsyncClientCursor(session) if several else session.cursor()
        await cursor.execute(sql, [_storable(value) for value in parameters] or None)
        while cursor.nextset():
            pass
        return await cursor.fetchall() if cursor.description else []
    except psycopg.errors.ReadOnlySqlTransaction:
        await session.close()  # a session stays read-only; a new one may reach a server that writes
        raise
    finally:
        cut.cancel()


async def _run_translated(session: Session, sql: str, parameters: Sequence[Any]) -> list[Row]:
    """Run a statement of the tables, with their marks and errors."""
    with _translated():
        return await _run(session, _translate(sql), parameters)


def _cut(session: Session) -> None:
    """Make a session's connection fail at once."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(session.fileno())) as connection:
        connection.shutdown(socket.SHUT_RDWR)


def _lives(session: Session) -> bool:
    """Whether an idle session is still usable: where the server has ended it, its socket is readable."""
    if session.closed:
        return False
    poll = select.poll()
    poll.register(session.fileno(), select.POLLIN)
    return not poll.poll(0)


@lru_cache(maxsize=512)
def _translate(sql: str) -> str:
    """A statement with its ``?`` marks as the ``%s`` of psycopg."""
    assert "%" not in sql
    return sql.replace("?", "%s")


def _storable(value: Any) -> Any:
    """A value without NUL, which text in PostgreSQL cannot contain. A client may ask for a name with a NUL."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


@contextmanager
def _translated() -> Iterator[None]:
    """Raise psycopg's errors as DatabaseUnavailableError or DatabaseError."""
    try:
        yield
    except psycopg.Error as exc:
        reason = " ".join(str(exc).split())
        passing = exc.sqlstate.startswith(_PASSING) if exc.sqlstate else isinstance(exc, psycopg.OperationalError)
        if passing:
            raise unavailable(reason) from exc
        raise failed(reason) from exc
