"""The table of facts about the whole database."""

from __future__ import annotations

from collections.abc import Callable

from ... import ids
from .table import Table


class Meta(Table):
    """Methods over the table `meta`."""

    async def cluster_id(self) -> str:
        """The id of this cluster, minted with the database. It labels all containers of the cluster."""
        return await self._minted("cluster_id", ids.new_id)

    async def token_secret(self) -> str:
        """The secret that signs this cluster's tokens, minted at its first use."""
        return await self._minted("token_secret", ids.secret)

    async def is_backup(self) -> bool:
        """Whether the database is a restored backup that no operator has accepted yet, see `accept_backup`."""
        return await self._read_one("SELECT 1 FROM meta WHERE key = 'is_backup'") is not None

    async def is_opened_anew(self) -> bool:
        """Whether this is the first time that a coordinator opens a restored backup."""
        return bool(
            await self._write("UPDATE meta SET value = 'opened' WHERE key = 'is_backup' AND value = '1' RETURNING 1")
        )

    async def accept_backup(self) -> None:
        """Take the rows of a restored backup as the truth from here on: what workers hold beyond them is an orphan."""
        await self._write("DELETE FROM meta WHERE key = 'is_backup'")

    async def _minted(self, key: str, mint: Callable[[], str]) -> str:
        known = "SELECT value FROM meta WHERE key = ?"
        row = await self._read_one(known, (key,))
        if row is None:
            # Several coordinators may come here at once; one of them mints the value.
            await self._write("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO NOTHING", (key, mint()))
            row = await self._read_one(known, (key,))
        assert row is not None
        return str(row[0])
