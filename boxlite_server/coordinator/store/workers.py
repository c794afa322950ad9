"""The tables of workers and of what is reserved on each."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from typing import Any, NamedTuple, cast

from ... import errors
from ..states import WorkerStatus
from .table import Table, first, from_json, marks, read_on, reader, to_row


class Worker(NamedTuple):
    """One registered worker; times in Unix seconds."""

    id: str
    name: str
    url: str
    secret: str
    status: WorkerStatus  # what the operator wants: ACTIVE or DRAINING
    epoch: str  # the worker process that registered last
    labels: dict[str, str]
    cpus: int  # of the machine
    memory_mib: int
    max_boxes: int | None  # None: the worker sets no limit
    version: str
    engine_version: str
    registered_at: float
    last_heartbeat: float
    cpu_limit: int | None = None  # cpus that may be reserved in all; None: the worker sets no limit
    left_at: float | None = None  # when the worker said goodbye; None: it did not
    inventory: str | None = None  # digest of the inventory that was dealt with last
    engine_life: str | None = None  # which life of its engine is now; None: the worker does not say
    engine_error: str | None = None  # why its engine does not answer; None: it answers
    started_at: float | None = None  # of the process `epoch`, by the worker's clock
    disk_limit: str | None = None  # enforced, watched or unsupported; None: the worker does not say
    heartbeats: int | None = None  # the number of the last one; None: the worker does not sign its heartbeats
    warm_images: dict[str, int] = {}  # noqa: RUF012 - never changed; how many warm boxes to keep there, by image
    lost_at: float | None = None  # when a coordinator noted that no heartbeats come; None: they come


class Load(NamedTuple):
    """What is reserved on one worker."""

    cpus: int = 0
    memory_mib: int = 0
    boxes: int = 0
    running: int = 0


_COLUMNS = ", ".join(Worker._fields)
_LOAD = ", ".join(Load._fields)


@functools.lru_cache(4096)  # each placement reads all workers, and their labels hardly ever change
def _labels(text: str) -> dict[str, str]:
    return cast(dict[str, str], json.loads(text))


_worker = reader(Worker, Worker._fields, status=WorkerStatus, labels=_labels, warm_images=from_json)


class Workers(Table):
    """Methods over the tables `workers` and `loads`. Triggers of the schema keep `loads` up to date."""

    async def put_worker(self, worker: Worker) -> None:
        """Insert or replace the row of `worker.id`. Raises AlreadyExistsError when another worker has the name."""
        updates = ", ".join(f"{column} = excluded.{column}" for column in Worker._fields if column != "id")
        done = await self._write(
            f"INSERT INTO workers ({_COLUMNS}) SELECT {marks(Worker._fields)} "
            "WHERE NOT EXISTS (SELECT 1 FROM workers WHERE name = ? AND id != ?) "
            f"ON CONFLICT (id) DO UPDATE SET {updates} RETURNING 1",
            (*to_row(worker._asdict()), worker.name, worker.id),
        )
        if not done:
            raise errors.AlreadyExistsError(f"worker name '{worker.name}' belongs to another worker")

    async def get_worker(self, worker_id: str) -> Worker | None:
        return first(await self._workers("WHERE id = ?", (worker_id,)))

    async def list_workers(self, *, after: tuple[float, str] | None = None, limit: int | None = None) -> list[Worker]:
        """The workers, oldest first: those registered after the time and the id in `after`, `limit` at most."""
        tail, place = read_on("registered_at, id", after, limit)
        return await self._workers(f"WHERE TRUE{tail}", place)

    async def get_workers(self, ids: Collection[str]) -> dict[str, Worker]:
        """The workers with these ids, by id; unknown ids are left out."""
        rows = await self._workers(f"WHERE id IN ({marks(tuple(ids))})", tuple(ids)) if ids else []
        return {worker.id: worker for worker in rows}

    async def workers_in_trouble(self, unheard_since: float) -> list[Worker]:
        """The workers that sent no heartbeat since then, that said goodbye, or whose engine does not answer."""
        return await self._workers(
            "WHERE last_heartbeat < ? OR left_at IS NOT NULL OR engine_error IS NOT NULL", (unheard_since,)
        )

    async def update_worker(self, worker_id: str, **changes: Any) -> None:
        await self._update("workers", worker_id, changes)

    async def update_worker_of_epoch(self, worker_id: str, epoch: str, **changes: Any) -> bool:
        """Change a worker's row. False, with nothing changed, where another process of the worker has registered, or
        where the changes come with a number of heartbeats that the row has reached already."""
        assignments = ", ".join(f"{column} = ?" for column in changes)
        later, number = "", changes.get("heartbeats")
        if number is not None:
            later = "AND heartbeats < ? "
        done = await self._write(
            f"UPDATE workers SET {assignments} WHERE id = ? AND epoch = ? {later}RETURNING 1",
            (*to_row(changes), worker_id, epoch, *([] if number is None else [number])),
        )
        return bool(done)

    async def lose_worker(self, worker_id: str, unheard_since: float, now: float) -> None:
        """Note that a worker is lost, unless it has sent a heartbeat since then, or that is noted already."""
        await self._write(
            "UPDATE workers SET lost_at = ? WHERE id = ? AND last_heartbeat < ? AND lost_at IS NULL",
            (now, worker_id, unheard_since),
        )

    async def delete_worker(self, worker_id: str) -> None:
        """Forget a worker, but for its id and secret. The rows of its boxes and volumes must be deleted before."""
        await self._write(
            "INSERT INTO removed_workers (id, secret) SELECT id, secret FROM workers WHERE id = ? "
            "ON CONFLICT (id) DO UPDATE SET secret = excluded.secret",
            (worker_id,),
        )
        await self._write("DELETE FROM workers WHERE id = ?", (worker_id,))

    async def secret_of_worker(self, worker_id: str) -> str | None:
        """The secret of a worker, also of one that was removed; None: there never was such a worker."""
        row = await self._read_one(
            "SELECT secret FROM workers WHERE id = ? UNION ALL SELECT secret FROM removed_workers WHERE id = ?",
            (worker_id, worker_id),
        )
        return str(row[0]) if row else None

    async def loads(self) -> dict[str, Load]:
        """Reservations by worker id; a worker that never had a reservation is missing."""
        rows = await self._read(f"SELECT worker_id, {_LOAD} FROM loads")
        return {row[0]: Load(*row[1:]) for row in rows}

    async def load(self, worker_id: str) -> Load:
        row = await self._read_one(f"SELECT {_LOAD} FROM loads WHERE worker_id = ?", (worker_id,))
        return Load(*row) if row else Load()

    async def _workers(self, tail: str, parameters: tuple[Any, ...]) -> list[Worker]:
        rows = await self._read(f"SELECT {_COLUMNS} FROM workers {tail}", parameters)
        return [_worker(row) for row in rows]
