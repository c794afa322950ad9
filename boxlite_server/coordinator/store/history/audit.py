"""The table of the audit: who has changed what, and who was refused. Its lines are never changed, and deleted only when
they are old; triggers of the schema refuse anything else."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from ..table import Table, end_of_range, marks, reader

OPERATOR = "operator"  # in place of a key's id: a command of the operator, on the database itself
NO_REQUEST = "noRequest"  # the action of bytes that were refused: no HTTP, or a head that is too large or has no end
GAP = "gap"  # the action of a line that stands for lines which were not written; its target says how many


class AuditLine(NamedTuple):
    """One request; texts are empty where nothing is known."""

    at: float  # Unix seconds
    key_id: str  # of a key; "api-key" for --api-key, "anonymous" for a coordinator without keys, OPERATOR
    prefix: str
    action: str  # an operationId, a command of the operator, NO_REQUEST, or GAP
    target: str  # the path of what was made or asked for, without its query; the id of a key
    status: int  # of HTTP; 101 for a WebSocket that was opened, 0 for a request that ended without an answer
    request_id: str
    address: str


class AuditFilter(NamedTuple):
    """Which lines are wanted; None: any."""

    since: float | None = None  # Unix seconds
    key_ids: Collection[str] | None = None
    prefix: str | None = None
    action: str | None = None
    statuses: range | None = None
    request_id: str | None = None  # or its beginning, followed by *


_COLUMNS = ", ".join(AuditLine._fields)
_SIZES = (100, 10, 1)  # of lines in one statement: few statements, and few different ones
_PURGED = 1000  # lines in one statement

_line = reader(AuditLine, AuditLine._fields)


class Audit(Table):
    """Methods over the table `audit`."""

    async def insert_audit(self, lines: Sequence[AuditLine]) -> None:
        left = list(lines)
        for size in _SIZES:
            rows = ", ".join([f"({marks(AuditLine._fields)})"] * size)
            while len(left) >= size:
                part, left = left[:size], left[size:]
                await self._write(
                    f"INSERT INTO audit ({_COLUMNS}) VALUES {rows}", [value for line in part for value in line]
                )

    async def find_audit(self, wanted: AuditFilter, limit: int) -> list[AuditLine]:
        """The last `limit` lines of those that are wanted, the oldest first."""
        conditions, values = _conditions(wanted)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = await self._read(f"SELECT {_COLUMNS} FROM audit {where} ORDER BY id DESC LIMIT ?", (*values, limit))
        return [_line(row) for row in reversed(rows)]

    async def purge_audit(self, before: float) -> bool:
        """Delete the oldest lines from before that time, at most a thousand. Whether there may be more."""
        deleted = await self._write(
            "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < ? ORDER BY at LIMIT ?) RETURNING 1",
            (before, _PURGED),
        )
        return len(deleted) == _PURGED


def _conditions(wanted: AuditFilter) -> tuple[list[str], list[Any]]:
    found: list[tuple[str, list[Any]]] = []
    if wanted.since is not None:
        found.append(("at >= ?", [wanted.since]))
    if wanted.key_ids is not None:
        found.append((f"key_id IN ({marks(list(wanted.key_ids))})", [*wanted.key_ids]))
    for column in ("prefix", "action"):
        if (value := getattr(wanted, column)) is not None:
            found.append((f"{column} = ?", [value]))
    if wanted.statuses is not None:
        found.append(("status >= ? AND status < ?", [wanted.statuses.start, wanted.statuses.stop]))
    if (request_id := wanted.request_id) is not None:
        is_start = len(request_id) > 1 and request_id.endswith("*")
        start = request_id.removesuffix("*")
        condition = "request_id >= ? AND request_id < ?" if is_start else "request_id = ?"
        found.append((condition, [start, end_of_range(start)] if is_start else [request_id]))
    return [condition for condition, _ in found], [value for _, values in found for value in values]
