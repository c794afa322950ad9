"""The table of volumes, and which boxes use volumes and images."""

from __future__ import annotations

from typing import Any, NamedTuple

from ... import errors
from ..states import VolumeState
from .table import Table, end_of_range, first, read_on, reader


class Volume(NamedTuple):
    """One volume; times in Unix seconds. `name` is the id where the client gave no name."""

    id: str
    prefix: str
    name: str
    worker_id: str
    state: VolumeState
    created_at: float
    updated_at: float


_COLUMNS = ", ".join(Volume._fields)
_volume = reader(Volume, Volume._fields, state=VolumeState)


class Volumes(Table):
    """Methods over the table `volumes`, and over the volumes and images that the specs of boxes name."""

    async def insert_volume(self, volume: Volume) -> None:
        """Raises AlreadyExistsError when the volume's name is taken in its prefix."""
        if not await self._insert("volumes", volume._asdict()):
            raise errors.AlreadyExistsError(f"volume '{volume.name}' already exists")

    async def find_volume(self, prefix: str, id_or_name: str) -> Volume | None:
        """The volume of a prefix with that id, else with that name."""
        rows = await self._volumes(
            "WHERE prefix = ? AND (id = ? OR name = ?) ORDER BY id = ? DESC LIMIT 1",
            (prefix, id_or_name, id_or_name, id_or_name),
        )
        return first(rows)

    async def find_volume_of_stem(self, prefix: str, stem: str) -> Volume | None:
        """The latest volume of a prefix whose id begins with `stem`."""
        rows = await self._volumes(
            "WHERE id >= ? AND id < ? AND prefix = ? ORDER BY created_at DESC, id LIMIT 1",
            (stem, end_of_range(stem), prefix),
        )
        return first(rows)

    async def get_volume(self, volume_id: str) -> Volume | None:
        """The volume with that id, in whatever prefix."""
        return first(await self._volumes("WHERE id = ?", (volume_id,)))

    async def list_volumes(
        self, prefix: str, *, after: tuple[float, str] | None = None, limit: int | None = None
    ) -> list[Volume]:
        """The volumes of a prefix, oldest first: those behind the time and the id in `after`, at most `limit`."""
        tail, place = read_on("created_at, id", after, limit)
        return await self._volumes(f"WHERE prefix = ?{tail}", (prefix, *place))

    async def volumes_of_worker(self, worker_id: str) -> list[Volume]:
        return await self._volumes("WHERE worker_id = ?", (worker_id,))

    async def unsettled_volumes(self) -> list[Volume]:
        """The volumes that are being created or removed, or whose creation or removal was broken off."""
        return await self._volumes("WHERE state != 'ready'", ())

    async def update_volume(self, volume_id: str, **changes: Any) -> None:
        await self._update("volumes", volume_id, changes)

    async def delete_volume(self, volume_id: str) -> None:
        await self._write("DELETE FROM volumes WHERE id = ?", (volume_id,))

    async def boxes_with_volume(self, volume_id: str) -> list[str]:
        """Ids of the boxes that mount a volume. The boxes' specs are the only record of mounts."""
        # A volume is on one worker, and the boxes that mount it are there too: only their specs are searched.
        rows = await self._read(
            "SELECT id FROM boxes WHERE worker_id = (SELECT worker_id FROM volumes WHERE id = ?) "
            f"AND {self._connection.dialect.mounts_volume} ORDER BY id",
            (volume_id, volume_id),
        )
        return [row[0] for row in rows]

    async def images_of_boxes(self) -> set[str]:
        """The images that the boxes' clients asked for, as the clients wrote them."""
        return {row[0] for row in await self._read(f"SELECT DISTINCT {self._connection.dialect.image} FROM boxes")}

    async def _volumes(self, tail: str, parameters: tuple[Any, ...]) -> list[Volume]:
        rows = await self._read(f"SELECT {_COLUMNS} FROM volumes {tail}", parameters)
        return [_volume(row) for row in rows]
