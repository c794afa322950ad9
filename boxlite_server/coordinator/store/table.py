"""What the tables' modules are built on: statements, and rows with JSON in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .connection import Connection, Row

_JSON_COLUMNS = {"labels", "published", "spec"}


class Table:
    """Reads and writes over a connection; see `Connection` for what they raise."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return await self._connection.read(sql, parameters)

    async def _read_one(self, sql: str, parameters: Sequence[Any] = ()) -> Row | None:
        rows = await self._connection.read(sql, parameters)
        return rows[0] if rows else None

    async def _write(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return await self._connection.write(sql, parameters)

    async def _insert(self, table: str, fields: Mapping[str, Any]) -> bool:
        """Insert a row; False, and nothing done, where it is not unique."""
        sql = f"INSERT INTO {table} ({', '.join(fields)}) VALUES ({marks(fields)}) ON CONFLICT DO NOTHING RETURNING 1"
        return bool(await self._write(sql, to_row(fields)))

    async def _update(self, table: str, row_id: str, changes: Mapping[str, Any]) -> None:
        assignments = ", ".join(f"{column} = ?" for column in changes)
        await self._write(f"UPDATE {table} SET {assignments} WHERE id = ?", (*to_row(changes), row_id))


def marks(values: Sequence[Any] | Mapping[str, Any]) -> str:
    """As many marks as there are values."""
    return ", ".join("?" * len(values))


def to_row(fields: Mapping[str, Any]) -> Row:
    return tuple(json.dumps(value) if key in _JSON_COLUMNS else value for key, value in fields.items())


def json_columns(columns: Sequence[str]) -> list[int]:
    """Where in a row JSON stands."""
    return [index for index, column in enumerate(columns) if column in _JSON_COLUMNS]


def decoded(row: Row, json_at: list[int]) -> list[Any]:
    """The values of a row; JSON is text in both databases, so that it comes back as it was written."""
    values = list(row)
    for index in json_at:
        values[index] = _loads(values[index])
    return values


def _loads(text: str) -> Any:
    """Most boxes have neither labels nor ports."""
    return {} if text == "{}" else [] if text == "[]" else json.loads(text)
