"""The rows of snapshots."""

from __future__ import annotations

from typing import Any, NamedTuple

from ... import errors
from .table import Table


class Snapshot(NamedTuple):
    """One snapshot; `created_at` in Unix seconds, sizes in bytes and 0 while it is being made."""

    id: str
    box_id: str
    name: str
    state: str  # creating, ready, restoring: the box is being put back to it, removing
    created_at: float
    container_disk_bytes: int = 0
    size_bytes: int = 0


_COLUMNS = ", ".join(Snapshot._fields)
_SHOWN = "state IN ('ready', 'restoring')"


class Snapshots(Table):
    """Methods over the table `snapshots`. A box's rows go with the box."""

    async def insert_snapshot(self, snapshot: Snapshot) -> None:
        """Raises AlreadyExistsError when the box has one of that name."""
        if not await self._insert("snapshots", snapshot._asdict()):
            raise errors.AlreadyExistsError(f"snapshot '{snapshot.name}' already exists")

    async def find_snapshot(self, box_id: str, name: str) -> Snapshot | None:
        rows = await self._snapshots(f"WHERE box_id = ? AND name = ? AND {_SHOWN}", (box_id, name))
        return rows[0] if rows else None

    async def list_snapshots(self, box_id: str) -> list[Snapshot]:
        """Those that are there, oldest first."""
        return await self._snapshots(f"WHERE box_id = ? AND {_SHOWN} ORDER BY created_at, id", (box_id,))

    async def unfinished_snapshots(self, box_id: str) -> list[Snapshot]:
        """Those with an operation under way, or broken off."""
        return await self._snapshots("WHERE box_id = ? AND state != 'ready' ORDER BY created_at, id", (box_id,))

    async def boxes_with_unfinished_snapshots(self, worker_id: str) -> set[str]:
        rows = await self._read(
            "SELECT DISTINCT box_id FROM snapshots JOIN boxes ON boxes.id = box_id "
            "WHERE state != 'ready' AND worker_id = ?",
            (worker_id,),
        )
        return {row[0] for row in rows}

    async def snapshots_of_worker(self, worker_id: str) -> set[str]:
        """Ids of the snapshots of a worker's boxes."""
        rows = await self._read(
            "SELECT snapshots.id FROM snapshots JOIN boxes ON boxes.id = box_id WHERE worker_id = ?", (worker_id,)
        )
        return {row[0] for row in rows}

    async def has_snapshot(self, snapshot_id: str) -> bool:
        return bool(await self._read("SELECT 1 FROM snapshots WHERE id = ?", (snapshot_id,)))

    async def is_restoring(self, box_id: str) -> bool:
        return bool(await self._read("SELECT 1 FROM snapshots WHERE box_id = ? AND state = 'restoring'", (box_id,)))

    async def update_snapshot(self, snapshot_id: str, **changes: Any) -> None:
        await self._update("snapshots", snapshot_id, changes)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        await self._write("DELETE FROM snapshots WHERE id = ?", (snapshot_id,))

    async def _snapshots(self, tail: str, parameters: tuple[Any, ...]) -> list[Snapshot]:
        return [Snapshot(*row) for row in await self._read(f"SELECT {_COLUMNS} FROM snapshots {tail}", parameters)]
