"""The rows of boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ... import errors
from .table import Table, decoded, json_columns, marks

# A box in one of these states has its cpus and memory reserved; a stopped or failed one does not. One that is being
# removed keeps what it had: its container may still run, and the removal may fail.
RESERVING = ("creating", "configured", "running", "stopping", "paused")


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
    desired: str = "stopped"  # what should be, running or stopped, where status is what is
    engine_life: str | None = None  # of the engine under which it was last seen running
    request_key: str | None = None  # of the request that made it, where that may come again; unique
    restarts: int = 0  # by ourselves, since somebody started it
    restarted_at: float | None = None  # when the last of them was tried
    wish: int = 0  # how often `desired` has changed


class BoxState(NamedTuple):
    """What an inventory is compared with: the parts of a box's row that are cheap to have of many."""

    id: str
    generation: int
    status: str
    desired: str
    engine_life: str | None
    error: str | None
    auto_remove: bool


class Unsettled(NamedTuple):
    """A box in the middle of an operation, under way or broken off."""

    id: str
    worker_id: str


class Page(NamedTuple):
    boxes: list[Box]
    next_token: tuple[float, str] | None


_COLUMNS = ", ".join(Box._fields)
_JSON = json_columns(Box._fields)


class Boxes(Table):
    """Methods over the table `boxes`."""

    async def insert_box(self, box: Box) -> None:
        """Raises AlreadyExistsError when the name is taken in its prefix, or the request has made a box."""
        if not await self._insert("boxes", {**box._asdict(), **_reservation(box.status)}):
            raise errors.AlreadyExistsError(f"box '{box.name or box.id}' already exists")

    async def find_box(self, prefix: str, id_or_name: str) -> Box | None:
        """The box of that id, else of that name, in that prefix."""
        rows = await self._boxes(
            "WHERE id = coalesce((SELECT id FROM boxes WHERE prefix = ? AND id = ?), "
            "(SELECT id FROM boxes WHERE prefix = ? AND name = ?))",
            (prefix, id_or_name, prefix, id_or_name),
        )
        return rows[0] if rows else None

    async def find_box_by_request(self, request_key: str) -> Box | None:
        """The box that this request made."""
        rows = await self._boxes("WHERE request_key = ?", (request_key,))
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
        unreachable: tuple[str, ...] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        after: tuple[float, str] | None = None,
        limit: int | None = None,
    ) -> Page:
        """Boxes of a prefix, oldest first. `after` is the token of the page before;
        it stays good when boxes come and go. Without `limit` the page holds all.

        `statuses` may name ``unknown`` too: the status of all boxes of the workers `unreachable`, whatever their
        rows say. No other status finds those.
        """
        clauses: list[str] = ["prefix = ?"]
        parameters: list[Any] = [prefix]
        if statuses:
            clause, values = _of_status(statuses, unreachable)
            clauses.append(clause)
            parameters += values
        if name is not None:
            clauses.append("name = ?")
            parameters.append(name)
        for key, value in (labels or {}).items():
            clauses.append(self._connection.dialect.has_label)
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

    async def inventory_of_worker(self, worker_id: str) -> list[BoxState]:
        """The states of a worker's boxes."""
        rows = await self._read(
            "SELECT id, generation, status, desired, engine_life, error, "
            f"{self._connection.dialect.auto_remove} FROM boxes WHERE worker_id = ?",
            (worker_id,),
        )
        return [BoxState(*row)._replace(auto_remove=bool(row[-1])) for row in rows]

    async def unsettled_boxes(self) -> list[Unsettled]:
        """The boxes in the middle of an operation; those with an unfinished snapshot are among them."""
        rows = await self._read(
            "SELECT id, worker_id FROM boxes WHERE status IN ('creating', 'stopping', 'removing') "
            "OR (status = 'configured' AND desired = 'running') "
            "UNION SELECT boxes.id, worker_id FROM snapshots JOIN boxes ON boxes.id = box_id WHERE state != 'ready'"
        )
        return [Unsettled(*row) for row in rows]

    async def update_box(self, box_id: str, **changes: Any) -> None:
        """Room is reserved, and given back, with the status; see RESERVING."""
        await self._update("boxes", box_id, {**changes, **_reservation(changes.get("status"))})

    async def delete_box(self, box_id: str) -> None:
        await self._write("DELETE FROM boxes WHERE id = ?", (box_id,))

    async def _boxes(self, tail: str, parameters: tuple[Any, ...]) -> list[Box]:
        rows = await self._read(f"SELECT {_COLUMNS} FROM boxes {tail}", parameters)
        return [Box(*decoded(row, _JSON)) for row in rows]


def _reservation(status: str | None) -> dict[str, int]:
    """What a status makes of a box's reservation."""
    return {} if status in (None, "removing") else {"reserved": int(status in RESERVING)}


def _of_status(statuses: tuple[str, ...], unreachable: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The condition for boxes that show one of these statuses, and its parameters."""
    written = tuple(status for status in statuses if status != "unknown")
    known = f"status IN ({marks(written)})" if written else "1 = 0"
    if not unreachable:
        return known, written
    lost = f"worker_id IN ({marks(unreachable)})"
    if "unknown" in statuses:
        return f"({known} OR {lost})", (*written, *unreachable)
    return f"({known} AND NOT {lost})", (*written, *unreachable)
