"""What there is once in a database."""

from __future__ import annotations

from ... import ids
from .table import Table


class Meta(Table):
    """Methods over the table `meta`."""

    async def cluster_id(self) -> str:
        """The id of this cluster, minted with the database; it marks the containers that are ours."""
        known = "SELECT value FROM meta WHERE key = 'cluster_id'"
        row = await self._read_one(known)
        if row is None:
            # Of several that come here at once, one mints it.
            await self._write("INSERT INTO meta VALUES ('cluster_id', ?) ON CONFLICT DO NOTHING", (ids.new_id(),))
            row = await self._read_one(known)
        assert row is not None
        return str(row[0])

    async def is_backup(self) -> bool:
        """Whether the database was put back from a backup, and what its workers hold by now was not accepted yet."""
        return await self._read_one("SELECT 1 FROM meta WHERE key = 'is_backup'") is not None

    async def accept_backup(self) -> None:
        """From here on the rows are the truth about what there should be."""
        await self._write("DELETE FROM meta WHERE key = 'is_backup'")
