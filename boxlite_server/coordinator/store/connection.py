"""The seam below the tables: where their statements run, and what one database says differently from the other.

`sqlite.py` and `postgresql.py` stand behind it. Statements have `?` marks; a text is made of the parameters'
places alone, never of their values.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

Row = tuple[Any, ...]


class Dialect(NamedTuple):
    """The conditions and values that the two databases write differently, all of them over JSON in a row of boxes."""

    has_label: str  # a condition with two marks: the label's key and its value
    mounts_volume: str  # a condition with one mark: the volume's id
    image: str  # a text
    auto_remove: str  # true, false or null


SQLITE = Dialect(
    has_label="EXISTS (SELECT 1 FROM json_each(labels) WHERE key = ? AND value = ?)",
    mounts_volume=(
        "EXISTS (SELECT 1 FROM json_each(spec, '$.mounts') AS mount WHERE json_extract(mount.value, '$.volume_id') = ?)"
    ),
    image="json_extract(spec, '$.image')",
    auto_remove="json_extract(spec, '$.auto_remove')",
)
POSTGRESQL = Dialect(
    has_label="CAST(labels AS json) ->> CAST(? AS text) = ?",
    mounts_volume=(
        "EXISTS (SELECT 1 FROM json_array_elements(CAST(spec AS json) -> 'mounts') AS mount "
        "WHERE mount ->> 'volume_id' = ?)"
    ),
    image="CAST(spec AS json) ->> 'image'",
    auto_remove="CAST(CAST(spec AS json) ->> 'auto_remove' AS boolean)",
)


class Connection(Protocol):
    """Where statements run: each by itself all or nothing, or within the one transaction that this stands for.

    Raises DatabaseUnavailableError for what may be over at the next try, DatabaseError for anything else.
    """

    dialect: Dialect

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows of a SELECT: what was committed, and in a transaction also what it wrote itself."""
        ...

    async def write(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run an INSERT, UPDATE or DELETE; the rows that it returns where it has RETURNING."""
        ...


class Backend(Connection, Protocol):
    """One open database. Statements outside of a transaction are atomic; a write waits for a transaction's end."""

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """All or nothing, and alone: no other write comes between its beginning and its end, whoever makes it.
        What is left by an exception is undone."""
        ...

    async def close(self) -> None:
        """Give up everything; an open transaction is undone."""
        ...


class Owner:
    """Which task is in a transaction. For it to go around that transaction is a fault of ours: it would wait for
    itself, or read what was before."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()

    def __exit__(self, *_: object) -> None:
        self._task = None

    def check(self) -> None:
        """Raises RuntimeError in the task that is in a transaction."""
        if self._task is not None and self._task is asyncio.current_task():
            raise RuntimeError("inside a transaction everything goes through what it yields")


def is_url(where: Path | str) -> bool:
    """Whether it names a PostgreSQL."""
    return isinstance(where, str) and where.startswith(("postgresql://", "postgres://"))


def shown(where: Path | str) -> str:
    """For people and logs: without the password that a URL may carry."""
    hidden = re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", str(where))
    return re.sub(r"(?<=[?&]password=)[^&]*", "***", hidden)
