"""The table of boxes."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ... import errors
from ..spec import Spec
from ..states import BoxStatus, DesiredState
from .table import Table, first, from_json, marks, read_on, reader, to_row

# A box in one of these states has its cpus and memory reserved; a stopped or failed box does not. A box that is being
# removed keeps the reservation it had: its container may still run, and the removal may fail.
RESERVING = (
    BoxStatus.CREATING,
    BoxStatus.CONFIGURED,
    BoxStatus.RUNNING,
    BoxStatus.STOPPING,
    BoxStatus.PAUSED,
)


class Box(NamedTuple):
    """One box; times in Unix seconds."""

    id: str
    prefix: str
    name: str | None
    worker_id: str
    generation: int
    status: BoxStatus
    spec: Spec
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
    published: list[dict[str, Any]] = []  # noqa: RUF012 - never changed; with the real host ports, while the box runs
    desired: DesiredState = DesiredState.STOPPED
    engine_life: str | None = None  # the life of the engine under which the box was last seen running
    request_key: str | None = None  # owner and Idempotency-Key of the request that created the box; unique
    restarts: int = 0  # by the coordinator, since a client started the box
    restarted_at: float | None = None  # when the last restart was tried
    wish: int = 0  # how often `desired` has changed
    supervisor: str | None = None  # what runs the commands of a running box, as its worker says
    warm: str | None = None  # what a request has to ask for to claim this warm box; None: it is no warm box
    image_id: str | None = None  # of a warm box: the image that it is made of
    resizing: bool = False  # a change of its size is under way or was broken off; `spec` tells the former size


class BoxState(NamedTuple):
    """The parts of a box's row that an inventory is compared with; cheap to read for many boxes."""

    id: str
    generation: int
    status: BoxStatus
    desired: DesiredState
    engine_life: str | None
    error: str | None
    auto_remove: bool


class Unsettled(NamedTuple):
    """A box in the middle of an operation that is under way or was broken off."""

    id: str
    worker_id: str


class Page(NamedTuple):
    """Boxes, and the `after` of the next page (None: this page is the last)."""

    boxes: list[Box]
    next_token: tuple[float, str] | None


_COLUMNS = ", ".join(Box._fields)


@functools.lru_cache(1024)
def _spec(text: str) -> Spec:
    return Spec.of_json(json.loads(text))


_box = reader(
    Box,
    Box._fields,
    status=BoxStatus,
    desired=DesiredState,
    spec=_spec,
    labels=from_json,
    published=from_json,
    resizing=bool,
)
_state = reader(BoxState, BoxState._fields, status=BoxStatus, desired=DesiredState, auto_remove=bool)


class Boxes(Table):
    """Methods over the table `boxes`."""

    async def insert_box(self, box: Box) -> None:
        """Raises AlreadyExistsError when the name is taken in its prefix, or the `request_key` has created a box."""
        fields = {**box._asdict(), "spec": box.spec.to_json(), **_reservation(box.status)}
        if not await self._insert("boxes", fields):
            raise errors.AlreadyExistsError(f"box '{box.name or box.id}' already exists")

    async def find_box(self, prefix: str, id_or_name: str) -> Box | None:
        """The box of a prefix with that id, else with that name."""
        rows = await self._boxes(
            "WHERE id = coalesce((SELECT id FROM boxes WHERE prefix = ? AND id = ?), "
            "(SELECT id FROM boxes WHERE prefix = ? AND name = ?))",
            (prefix, id_or_name, prefix, id_or_name),
        )
        return first(rows)

    async def find_box_by_request(self, request_key: str) -> Box | None:
        """The box that this request created."""
        return first(await self._boxes("WHERE request_key = ?", (request_key,)))

    async def get_box(self, box_id: str) -> Box | None:
        """The box with that id, in whatever prefix."""
        return first(await self._boxes("WHERE id = ?", (box_id,)))

    async def is_named(self, prefix: str, name: str) -> bool:
        """Whether a box of the prefix has that name."""
        return bool(await self._read("SELECT 1 FROM boxes WHERE prefix = ? AND name = ?", (prefix, name)))

    async def claim_box(self, warm: str, worker_ids: Sequence[str], changes: Mapping[str, Any]) -> Box | None:
        """Make the oldest of the warm boxes that were prepared in the present life of their engine, at one of these
        workers, an ordinary box with these changes; returns its new row. None: there is none."""
        fields = {**changes, "warm": None}
        rows = await self._write(
            f"UPDATE boxes SET {', '.join(f'{column} = ?' for column in fields)} WHERE id = ("
            "SELECT boxes.id FROM boxes JOIN workers ON workers.id = worker_id "
            "WHERE warm = ? AND boxes.status = 'configured' AND boxes.engine_life = workers.engine_life "
            f"AND worker_id IN ({marks(worker_ids)}) ORDER BY created_at, boxes.id LIMIT 1) RETURNING {_COLUMNS}",
            (*to_row(fields), warm, *worker_ids),
        )
        return first([_box(row) for row in rows])

    async def list_boxes(
        self,
        prefix: str,
        *,
        statuses: tuple[BoxStatus, ...] = (),
        unreachable: tuple[str, ...] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        after: tuple[float, str] | None = None,
        limit: int | None = None,
    ) -> Page:
        """Boxes of a prefix, oldest first. `after`: the `next_token` of the page before, which stays valid when boxes
        come and go. Without `limit` the page holds all boxes.

        `unreachable`: ids of workers. All boxes of these workers have the status UNKNOWN, whatever their rows say;
        no other status finds them.
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
        tail, place = read_on("created_at, id", after, None if limit is None else limit + 1)
        found = await self._boxes(f"WHERE {' AND '.join(clauses)}{tail}", (*parameters, *place))
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
        return [_state(row) for row in rows]

    async def unsettled_boxes(self) -> list[Unsettled]:
        """The boxes in the middle of an operation, and the boxes with an unfinished snapshot."""
        rows = await self._read(
            "SELECT id, worker_id FROM boxes WHERE status IN ('creating', 'stopping', 'removing') "
            "OR (status = 'configured' AND desired = 'running') "
            "UNION SELECT id, worker_id FROM boxes WHERE resizing "
            "UNION SELECT boxes.id, worker_id FROM snapshots JOIN boxes ON boxes.id = box_id WHERE state != 'ready'"
        )
        return [Unsettled(*row) for row in rows]

    async def update_box(self, box_id: str, **changes: Any) -> None:
        """Change a box's row. A new status also reserves its cpus and memory, or gives them back; see RESERVING."""
        await self._update("boxes", box_id, {**changes, **_reservation(changes.get("status"))})

    async def delete_box(self, box_id: str) -> None:
        await self._write("DELETE FROM boxes WHERE id = ?", (box_id,))

    async def _boxes(self, tail: str, parameters: tuple[Any, ...]) -> list[Box]:
        rows = await self._read(f"SELECT {_COLUMNS} FROM boxes {tail}", parameters)
        return [_box(row) for row in rows]


def _reservation(status: BoxStatus | None) -> dict[str, int]:
    """The change of `reserved` that a change of the status brings with it."""
    return {} if status in (None, BoxStatus.REMOVING) else {"reserved": int(status in RESERVING)}


def _of_status(statuses: tuple[BoxStatus, ...], unreachable: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The SQL condition for boxes that clients see in one of these statuses, and its parameters."""
    stored = tuple(status for status in statuses if status != BoxStatus.UNKNOWN)
    known = f"status IN ({marks(stored)})" if stored else "1 = 0"
    if not unreachable:
        return known, stored
    lost = f"worker_id IN ({marks(unreachable)})"
    if BoxStatus.UNKNOWN in statuses:
        return f"({known} OR {lost})", (*stored, *unreachable)
    return f"({known} AND NOT {lost})", (*stored, *unreachable)
