"""The connection: schema, transactions, rows. The tables' own modules build on it; nobody else speaks SQL.

One SQLite connection, used from the event loop's thread. Point reads run directly. Every write is one
``BEGIN IMMEDIATE`` transaction: a caller that has to look before it writes puts both into `transaction()`,
and nobody, not even another process on the same file, comes in between.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Self

from ... import errors, ids

_JSON_COLUMNS = {"labels", "published", "spec"}


class Database:
    """Opens the database at `path` (``:memory:`` for a private one) and brings its schema up to date.

    Any failure of SQLite surfaces as `errors.DatabaseError`.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @classmethod
    async def open(cls, path: Path | str) -> Self:
        """Open the database at `path` and bring its schema up to date; raises DatabaseError."""
        try:
            if path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(path, isolation_level=None)
            db.executescript(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000;"
                "PRAGMA foreign_keys = ON;"
            )
            _migrate(db)
        except (OSError, sqlite3.Error) as exc:
            raise errors.DatabaseError(f"cannot open the database {path}: {exc}") from exc
        return cls(db)

    async def close(self) -> None:
        self._db.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Self]:
        """All or nothing, and alone: reads through what it yields stay true until the writes are done. Nothing
        but such reads and writes is awaited inside. Not nested."""
        await self._execute("BEGIN IMMEDIATE")
        try:
            yield self
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        await self._execute("COMMIT")

    async def _row(self, sql: str, parameters: Any = ()) -> tuple[Any, ...] | None:
        rows = await self._execute(sql, parameters)
        return rows[0] if rows else None

    async def _execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, parameters).fetchall()
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as exc:
            raise errors.DatabaseError(f"the database failed: {exc}") from exc

    # ---- meta -----------------------------------------------------------------------------------------

    async def cluster_id(self) -> str:
        """The id of this cluster, minted with the database; it marks the containers that are ours."""
        await self._execute("INSERT OR IGNORE INTO meta VALUES ('cluster_id', ?)", (ids.new_id(),))
        row = await self._row("SELECT value FROM meta WHERE key = 'cluster_id'")
        assert row is not None
        return str(row[0])

    async def _update(self, table: str, row_id: str, changes: Mapping[str, Any]) -> None:
        assignments = ", ".join(f"{column} = ?" for column in changes)
        await self._execute(f"UPDATE {table} SET {assignments} WHERE id = ?", (*to_row(changes), row_id))


def to_row(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(json.dumps(value) if key in _JSON_COLUMNS else value for key, value in fields.items())


def from_row(columns: tuple[str, ...], row: tuple[Any, ...]) -> dict[str, Any]:
    return {
        column: json.loads(value) if column in _JSON_COLUMNS else value
        for column, value in zip(columns, row, strict=True)
    }


def _migrate(db: sqlite3.Connection) -> None:
    scripts = sorted(
        (
            entry
            for entry in (resources.files("boxlite_server.coordinator") / "schema").iterdir()
            if entry.name.endswith(".sql")
        ),
        key=lambda entry: entry.name,
    )
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(scripts):
        raise sqlite3.DatabaseError(f"its schema {version} is newer than this program's {len(scripts)}")
    for number, script in enumerate(scripts[version:], start=version + 1):
        db.executescript(f"BEGIN IMMEDIATE; {script.read_text()} PRAGMA user_version = {number}; COMMIT;")
