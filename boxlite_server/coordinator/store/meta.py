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
