"""The table of snapshots."""

from __future__ import annotations

from typing import Any, NamedTuple

from ... import errors
from ..states import SnapshotState
from .table import Table, first, read_on, reader


class Snapshot(NamedTuple):
    """One snapshot; `created_at` in Unix seconds, sizes in bytes, 0 while the snapshot is being created."""

    id: str
    box_id: str
    name: str
    state: SnapshotState
    created_at: float
    container_disk_bytes: int = 0
    size_bytes: int = 0


_COLUMNS = ", ".join(Snapshot._fields)
_snapshot = reader(Snapshot, Snapshot._fields, state=SnapshotState)
_SHOWN = "state IN ('ready', 'restoring')"


class Snapshots(Table):
    """Methods over the table `snapshots`. Deleting a box deletes the rows of its snapshots."""

    async def insert_snapshot(self, snapshot: Snapshot) -> None:
        """Raises AlreadyExistsError when the box has a snapshot of that name."""
        if not await self._insert("snapshots", snapshot._asdict()):
            raise errors.AlreadyExistsError(f"snapshot '{snapshot.name}' already exists")

    async def find_snapshot(self, box_id: str, name: str) -> Snapshot | None:
        """The snapshot of that name, unless it is being created or removed."""
        return first(await self._snapshots(f"WHERE box_id = ? AND name = ? AND {_SHOWN}", (box_id, name)))

    async def list_snapshots(
        self, box_id: str, *, after: tuple[float, str] | None = None, limit: int | None = None
    ) -> list[Snapshot]:
        """A box's snapshots, oldest first, without those that are being created or removed: those created after the
        time and the id in `after`, `limit` at most."""
        tail, place = read_on("created_at, id", after, limit)
        return await self._snapshots(f"WHERE box_id = ? AND {_SHOWN}{tail}", (box_id, *place))

    async def unfinished_snapshots(self, box_id: str) -> list[Snapshot]:
        """A box's snapshots with an operation that is under way or was broken off."""
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
        return [_snapshot(row) for row in await self._read(f"SELECT {_COLUMNS} FROM snapshots {tail}", parameters)]
