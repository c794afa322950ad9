"""What the modules of the tables share: statements, and the conversion of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .connection import Connection, Row

_JSON_COLUMNS = {"labels", "published", "scopes", "spec", "warm_images"}

T = TypeVar("T")


class Table:
    """Reads and writes over a connection; `Connection` says what they raise."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return await self._connection.read(sql, parameters)

    async def _read_one(self, sql: str, parameters: Sequence[Any] = ()) -> Row | None:
        return first(await self._connection.read(sql, parameters))

    async def _write(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return await self._connection.write(sql, parameters)

    async def _insert(self, table: str, fields: Mapping[str, Any]) -> bool:
        """Insert a row. False, with nothing inserted, where the row would violate a unique index."""
        sql = f"INSERT INTO {table} ({', '.join(fields)}) VALUES ({marks(fields)}) ON CONFLICT DO NOTHING RETURNING 1"
        return bool(await self._write(sql, to_row(fields)))

    async def _update(self, table: str, row_id: str, changes: Mapping[str, Any]) -> None:
        assignments = ", ".join(f"{column} = ?" for column in changes)
        await self._write(f"UPDATE {table} SET {assignments} WHERE id = ?", (*to_row(changes), row_id))


def marks(values: Sequence[Any] | Mapping[str, Any]) -> str:
    """As many ``?`` marks as there are values."""
    return ", ".join("?" * len(values))


def first(found: Sequence[T]) -> T | None:
    return found[0] if found else None


def read_on(columns: str, after: tuple[Any, Any] | None, limit: int | None) -> tuple[str, tuple[Any, ...]]:
    """What ends a statement that has a WHERE clause already, so that it reads the rows behind `after`, a pair of values
    of the two `columns`, in their order, and no more than `limit`; and the parameters of that."""
    behind = f" AND ({columns}) > (?, ?)" if after else ""
    most = "" if limit is None else f" LIMIT {limit}"
    return f"{behind} ORDER BY {columns}{most}", after or ()


def end_of_range(prefix: str) -> str:
    """The end (exclusive) of the range of strings that begin with `prefix`, which is not empty."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def to_row(fields: Mapping[str, Any]) -> Row:
    """The values as they are stored. JSON is stored as text in both databases, so that it is read as it was written."""
    return tuple(json.dumps(value) if key in _JSON_COLUMNS else value for key, value in fields.items())


def reader(make: Callable[..., T], columns: Sequence[str], **converters: Callable[[Any], Any]) -> Callable[[Row], T]:
    """A function that makes a row of these columns what `make` returns. `converters`: by column, for the values
    that are not used as they are stored."""
    converted = [(columns.index(column), convert) for column, convert in converters.items()]

    def read(row: Row) -> T:
        values = list(row)
        for index, convert in converted:
            values[index] = convert(values[index])
        return make(*values)

    return read


def from_json(text: str) -> Any:
    """Parse a JSON column. Most boxes have neither labels nor ports, which takes no parser."""
    return {} if text == "{}" else [] if text == "[]" else json.loads(text)
