"""The rows of workers, and what is reserved on each."""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

from ... import errors
from .database import Database, from_row, to_row

# A box in one of these states holds its reservation of cpus and memory; a stopped or failed one does not.
RESERVING = ("creating", "configured", "running", "stopping", "paused")


class Worker(NamedTuple):
    """One row of the registry; times in Unix seconds."""

    id: str
    name: str
    url: str
    secret: str
    status: str  # what the operator wants: active or draining
    epoch: str
    labels: dict[str, str]
    cpus: int
    memory_mib: int
    max_boxes: int | None
    version: str
    engine_version: str
    registered_at: float
    last_heartbeat: float


class Load(NamedTuple):
    """What is reserved on one worker."""

    cpus: int = 0
    memory_mib: int = 0
    boxes: int = 0
    running: int = 0


_COLUMNS = ", ".join(Worker._fields)


class Workers(Database):
    """Methods over the table `workers`."""

    async def put_worker(self, worker: Worker) -> None:
        """Insert or replace the row of `worker.id`. Raises AlreadyExistsError when the name is another's."""
        columns = Worker._fields
        updates = ", ".join(f"{column} = excluded.{column}" for column in columns if column != "id")
        try:
            await self._execute(
                f"INSERT INTO workers ({_COLUMNS}) VALUES ({', '.join('?' * len(columns))}) "
                f"ON CONFLICT (id) DO UPDATE SET {updates}",
                to_row(worker._asdict()),
            )
        except sqlite3.IntegrityError as exc:
            raise errors.AlreadyExistsError(f"worker name '{worker.name}' belongs to another worker") from exc

    async def get_worker(self, worker_id: str) -> Worker | None:
        rows = await self._workers("WHERE id = ?", (worker_id,))
        return rows[0] if rows else None

    async def list_workers(self) -> list[Worker]:
        """All workers, oldest first."""
        return await self._workers("ORDER BY registered_at, id", ())

    async def update_worker(self, worker_id: str, **changes: Any) -> None:
        await self._update("workers", worker_id, changes)

    async def delete_worker(self, worker_id: str) -> None:
        """Forget a worker; its boxes' rows must be gone before."""
        await self._execute("DELETE FROM workers WHERE id = ?", (worker_id,))

    async def loads(self) -> dict[str, Load]:
        """Reservations by worker id; a worker without any is missing."""
        marks = ", ".join("?" * len(RESERVING))
        rows = await self._execute(
            "SELECT worker_id, sum(cpus), sum(memory_mib), count(*), sum(status = 'running') "
            f"FROM boxes WHERE status IN ({marks}) GROUP BY worker_id",
            RESERVING,
        )
        return {row[0]: Load(*row[1:]) for row in rows}

    async def _workers(self, tail: str, parameters: tuple[Any, ...]) -> list[Worker]:
        rows = await self._execute(f"SELECT {_COLUMNS} FROM workers {tail}", parameters)
        return [Worker(**from_row(Worker._fields, row)) for row in rows]
