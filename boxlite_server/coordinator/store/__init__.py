"""The coordinator's database: the only place for SQL. A module for each table, one facade for all; below the
tables one seam, and behind it SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from .answers import Answer, Answers
from .boxes import RESERVING, Box, Boxes, BoxState, Page, Unsettled
from .connection import Backend, is_url
from .counters import CounterRows, Counters
from .deadlines import Deadlines
from .leases import Leases
from .meta import Meta
from .snapshots import Snapshot, Snapshots
from .sqlite import Sqlite
from .volumes import Volume, Volumes
from .workers import Load, Worker, Workers

__all__ = [
    "RESERVING",
    "Answer",
    "Box",
    "BoxState",
    "Counters",
    "Load",
    "Page",
    "Snapshot",
    "Store",
    "Tables",
    "Unsettled",
    "Volume",
    "Worker",
]


class Tables(Meta, Workers, Boxes, Volumes, Deadlines, Answers, CounterRows, Snapshots, Leases):
    """All reads and writes, of a store or of one transaction. Outside of a transaction each is atomic by itself.

    All raise DatabaseUnavailableError while the database cannot be reached or written, and work again afterwards.
    """


class Store(Tables):
    """Everything the coordinator keeps."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._backend = backend

    @classmethod
    async def open(cls, where: Path | str) -> Self:
        """Open the database, a path of SQLite's or a ``postgresql://`` URL, and bring its schema up to date.

        SQLite's is one process's alone, so what leases there are in it belong to nobody. Raises DatabaseError.
        """
        if is_url(where):
            from .postgresql import Postgresql  # psycopg is an extra

            store = cls(await Postgresql.open(str(where)))
        else:
            store = cls(await Sqlite.open(Path(where)))
            await store.drop_leases()
        await store.cluster_id()  # minted before anything can ask, or copy the database
        return store

    async def close(self) -> None:
        await self._backend.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tables]:
        """All or nothing, and alone: reads through what it yields stay true until the writes are done, whoever
        else shares the database. Nothing but such reads and writes is awaited inside. Not nested.

        Where its end raises DatabaseUnavailableError over PostgreSQL, it may have happened all the same.
        """
        async with self._backend.transaction() as connection:
            yield Tables(connection)
