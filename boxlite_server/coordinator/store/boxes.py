"""The rows of boxes."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple

from ... import errors
from .database import Database, from_row, to_row


class Box(NamedTuple):
    """One box; times in Unix seconds, `spec` as the client asked for it with the defaults filled in."""

    id: str
    prefix: str
    name: str | None
    worker_id: str
    generation: int
    status: str
    spec: dict[str, Any]
    cpus: int
    memory_mib: int
    labels: dict[str, str]
    pid: int | None
    exit_code: int | None
    error: str | None
    created_at: float
    updated_at: float
    started_at: float | None
    stopped_at: float | None
    published: list[dict[str, Any]] = []  # noqa: RUF012 - never changed; ports with real host ports, while it runs


class Page(NamedTuple):
    boxes: list[Box]
    next_token: tuple[float, str] | None


_COLUMNS = ", ".join(Box._fields)


class Boxes(Database):
    """Methods over the table `boxes`."""

    async def insert_box(self, box: Box) -> None:
        """Raises AlreadyExistsError when the name is taken in its prefix."""
        try:
            await self._execute(
                f"INSERT INTO boxes ({_COLUMNS}) VALUES ({', '.join('?' * len(Box._fields))})",
                to_row(box._asdict()),
            )
        except sqlite3.IntegrityError as exc:
            raise errors.AlreadyExistsError(f"box '{box.name}' already exists") from exc

    async def find_box(self, prefix: str, id_or_name: str) -> Box | None:
        """The box of that id, else of that name, in that prefix."""
        rows = await self._boxes(
            "WHERE prefix = ? AND (id = ? OR name = ?) ORDER BY id = ? DESC LIMIT 1",
            (prefix, id_or_name, id_or_name, id_or_name),
        )
        return rows[0] if rows else None

    async def get_box(self, box_id: str) -> Box | None:
        """The box of that id, in whatever prefix."""
        rows = await self._boxes("WHERE id = ?", (box_id,))
        return rows[0] if rows else None

    async def list_boxes(
        self,
        prefix: str,
        *,
        statuses: tuple[str, ...] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        after: tuple[float, str] | None = None,
        limit: int | None = None,
    ) -> Page:
        """Boxes of a prefix, oldest first. `after` is the token of the page before;
        it stays good when boxes come and go. Without `limit` the page holds all."""
        clauses: list[str] = ["prefix = ?"]
        parameters: list[Any] = [prefix]
        if statuses:
            clauses.append(f"status IN ({', '.join('?' * len(statuses))})")
            parameters += statuses
        if name is not None:
            clauses.append("name = ?")
            parameters.append(name)
        for key, value in (labels or {}).items():
            clauses.append("EXISTS (SELECT 1 FROM json_each(labels) WHERE key = ? AND value = ?)")
            parameters += [key, value]
        if after is not None:
            clauses.append("(created_at, id) > (?, ?)")
            parameters += after
        tail = f"WHERE {' AND '.join(clauses)} ORDER BY created_at, id"
        if limit is not None:
            tail += f" LIMIT {limit + 1}"
        found = await self._boxes(tail, tuple(parameters))
        if limit is None or len(found) <= limit:
            return Page(found, None)
        last = found[limit - 1]
        return Page(found[:limit], (last.created_at, last.id))

    async def boxes_of_worker(self, worker_id: str) -> list[Box]:
        return await self._boxes("WHERE worker_id = ?", (worker_id,))

    async def update_box(self, box_id: str, **changes: Any) -> None:
        await self._update("boxes", box_id, changes)

    async def delete_box(self, box_id: str) -> None:
        await self._execute("DELETE FROM boxes WHERE id = ?", (box_id,))

    async def _boxes(self, tail: str, parameters: tuple[Any, ...]) -> list[Box]:
        rows = await self._execute(f"SELECT {_COLUMNS} FROM boxes {tail}", parameters)
        return [Box(**from_row(Box._fields, row)) for row in rows]
