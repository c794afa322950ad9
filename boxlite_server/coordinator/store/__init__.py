"""The coordinator's database; no SQL stands anywhere else.

Each table has a module, and `Store` has the methods of all of them. The tables run their statements over the seam
`connection.py`, which SQLite and PostgreSQL implement.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from .answers import Answer, Answers
from .boxes import RESERVING, Box, Boxes, BoxState, Page, Unsettled
from .connection import Backend, is_url
from .counters import CounterRows, Counters
from .deadlines import Deadlines
from .history.audit import GAP, NO_REQUEST, OPERATOR, Audit, AuditFilter, AuditLine
from .history.events import Event, Events
from .keys import MAX_KEYS, MAX_KEYS_OF_PREFIX, WORKER_PREFIX, Key, Keys
from .leases import Leases
from .meta import Meta
from .snapshots import Snapshot, Snapshots
from .sqlite import Sqlite
from .tenants import ANY_PREFIX, Pulled, Quotas, Tenants, Use
from .volumes import Volume, Volumes
from .warm import WARM_PREFIX, WarmBox, WarmPool, WarmPools
from .workers import Load, Worker, Workers

__all__ = [
    "ANY_PREFIX",
    "GAP",
    "MAX_KEYS",
    "MAX_KEYS_OF_PREFIX",
    "NO_REQUEST",
    "OPERATOR",
    "RESERVING",
    "WARM_PREFIX",
    "WORKER_PREFIX",
    "Answer",
    "AuditFilter",
    "AuditLine",
    "Box",
    "BoxState",
    "Counters",
    "Event",
    "Key",
    "Load",
    "Page",
    "Pulled",
    "Quotas",
    "Snapshot",
    "Store",
    "Tables",
    "Unsettled",
    "Use",
    "Volume",
    "WarmBox",
    "WarmPool",
    "Worker",
]


class Tables(
    Meta,
    Workers,
    Boxes,
    WarmPools,
    Volumes,
    Deadlines,
    Answers,
    CounterRows,
    Snapshots,
    Leases,
    Keys,
    Tenants,
    Audit,
    Events,
):
    """All reads and writes, of a store or of one transaction. Outside of a transaction each method is atomic by itself.

    All methods raise DatabaseUnavailableError while the database cannot be reached or written, and work again
    afterwards.
    """


class Store(Tables):
    """The open database of a coordinator."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._backend = backend
        self._on_commit: list[Callable[[], object]] = []

    @classmethod
    async def open(cls, where: Path | str) -> Self:
        """Open the database, a path for SQLite or a ``postgresql://`` URL, and upgrade its schema.

        Only one process uses a SQLite database, so leases that are found in it have no living holder and are deleted.
        Raises DatabaseError.
        """
        if is_url(where):
            from .postgresql import Postgresql  # psycopg is an extra

            store = cls(await Postgresql.open(str(where)))
        else:
            store = cls(await Sqlite.open(Path(where)))
            await store.drop_leases()
        await store.cluster_id()  # minted before anything can read the id or copy the database
        if await store.is_backup():
            async with store.transaction() as tx:
                if await tx.is_opened_anew():
                    await tx.forget_lost_events()
        return store

    @classmethod
    async def open_beside(cls, where: Path | str) -> Self:
        """Open the database for a command of the operator. A coordinator may be using it, or start meanwhile.

        Raises DatabaseError.
        """
        if is_url(where):
            return await cls.open(where)
        store = cls(await Sqlite.open(Path(where), beside=True))
        await store.cluster_id()
        return store

    @property
    def is_shared(self) -> bool:
        """Whether several coordinators may use the database."""
        return self._backend.is_shared

    async def close(self) -> None:
        await self._backend.close()

    def on_commit(self, callback: Callable[[], object]) -> None:
        """Have `callback()` run after each transaction of this process that has changed something."""
        self._on_commit.append(callback)

    @asynccontextmanager
    async def transaction(self, *, durable: bool = True) -> AsyncIterator[Tables]:
        """A transaction, atomic and exclusive: what is read through the yielded `Tables` stays true until the
        transaction ends, whoever else shares the database. Inside, await nothing but such reads and writes, and open
        no second transaction. Without `durable` the end does not wait for the disk; see `Backend.transaction`.

        When the end of a PostgreSQL transaction raises DatabaseUnavailableError, it may have been committed all the
        same.
        """
        async with self._backend.transaction(durable=durable) as connection:
            yield Tables(connection)
        for callback in self._on_commit:
            callback()
