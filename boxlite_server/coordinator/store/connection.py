"""The seam between the tables and the two databases: where statements run, and in what their SQL differs.

`sqlite.py` and `postgresql.py` implement `Backend`. Statements have ``?`` marks for their parameters; the text of a
statement never contains a parameter's value.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ... import errors

Row = tuple[Any, ...]


class Dialect(NamedTuple):
    """The SQL that the two databases write differently: expressions, most of them over JSON columns; a statement."""

    has_label: str  # a condition with two marks: the label's key and its value
    mounts_volume: str  # a condition with one mark: the volume's id
    image: str  # a text
    auto_remove: str  # true, false or null
    now: str  # by the clock of the database, in Unix seconds
    tell: str  # a statement that adds an event; with marks for prefix, kind, box, name, status, worker and details


SQLITE = Dialect(
    has_label="EXISTS (SELECT 1 FROM json_each(labels) WHERE key = ? AND value = ?)",
    mounts_volume=(
        "EXISTS (SELECT 1 FROM json_each(spec, '$.mounts') AS mount WHERE json_extract(mount.value, '$.volume_id') = ?)"
    ),
    image="json_extract(spec, '$.image')",
    auto_remove="json_extract(spec, '$.auto_remove')",
    now="(julianday('now') - 2440587.5) * 86400.0",
    tell="INSERT INTO new_events VALUES (?, ?, ?, ?, ?, ?, ?)",
)
# PostgreSQL has no NUL in a text, and reads no JSON that spells one, wherever it is.
_SPEC, _LABELS = (rf"CAST(replace({column}, '\u0000', '\ufffd') AS json)" for column in ("spec", "labels"))
POSTGRESQL = Dialect(
    has_label=f"{_LABELS} ->> CAST(? AS text) = ?",
    mounts_volume=(
        f"EXISTS (SELECT 1 FROM json_array_elements({_SPEC} -> 'mounts') AS mount WHERE mount ->> 'volume_id' = ?)"
    ),
    image=f"{_SPEC} ->> 'image'",
    auto_remove=f"CAST({_SPEC} ->> 'auto_remove' AS boolean)",
    now="extract(epoch FROM clock_timestamp())",
    tell="SELECT tell(?, ?, ?, ?, ?, ?, ?)",
)


class Connection(Protocol):
    """Where statements run: on a backend each statement is atomic by itself, on a transaction's connection it is part
    of the transaction.

    Raises DatabaseUnavailableError where the next try may succeed, DatabaseError for any other failure.
    """

    dialect: Dialect

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows of a SELECT. A transaction sees what was committed and what it wrote itself."""
        ...

    async def write(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run an INSERT, UPDATE or DELETE. The rows of its RETURNING clause, if it has one."""
        ...


class Backend(Connection, Protocol):
    """One open database. A write outside of a transaction waits until no transaction is open."""

    is_shared: bool  # whether several coordinators may use the database

    def transaction(self, *, durable: bool = True) -> AbstractAsyncContextManager[Connection]:
        """A transaction, atomic and exclusive: no other write of any process runs between its beginning and its end.
        An exception rolls it back. With `durable` it is on disk when it ends. Otherwise it survives the end of the
        process, but it may be lost when the machine loses power before a later durable transaction has ended."""
        ...

    async def close(self) -> None:
        """Close all connections; an open transaction is rolled back."""
        ...


class Transaction:
    """The `Connection` of one transaction, over `run`, which runs a statement in it."""

    def __init__(self, dialect: Dialect, run: Callable[[str, Sequence[Any]], Awaitable[list[Row]]]) -> None:
        self.dialect = dialect
        self.ended = False
        self._run = run

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        if self.ended:
            raise RuntimeError("the transaction has ended")
        return await self._run(sql, parameters)

    write = read


class Owner:
    """The task that is in a transaction. That task must not use the backend beside its transaction: it would wait
    for itself, or read what was before its own writes."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()

    def __exit__(self, *_: object) -> None:
        self._task = None

    def check(self) -> None:
        """Raises RuntimeError when called by the task that is in a transaction."""
        if self._task is not None and self._task is asyncio.current_task():
            raise RuntimeError("inside a transaction, use only the connection that it yields")


def is_url(where: Path | str) -> bool:
    """Whether `where` is the URL of a PostgreSQL database, and not the path of a SQLite database."""
    return isinstance(where, str) and where.startswith(("postgresql://", "postgres://"))


def shown(where: Path | str) -> str:
    """`where` for people and logs: without the password that a URL may contain."""
    hidden = re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", str(where))
    return re.sub(r"(?<=[?&]password=)[^&]*", "***", hidden)


def unavailable(reason: str) -> errors.DatabaseUnavailableError:
    """The error for a failure that may be over at the next try."""
    return errors.DatabaseUnavailableError(f"the database cannot be used now: {reason}")


def failed(reason: object) -> errors.DatabaseError:
    """The error for any other failure."""
    return errors.DatabaseError(f"the database failed: {reason}")
