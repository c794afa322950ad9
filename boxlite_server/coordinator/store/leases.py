"""The table of leases: who may work on what, and until when."""

from __future__ import annotations

from collections.abc import Collection

from .table import Table, end_of_range, marks


class Leases(Table):
    """Methods over the table `leases`; times in Unix seconds. A holder is one coordinator process.

    Each method is one atomic step, whoever else tries at the same time. All of them assume that the clocks of the
    coordinators differ by much less than a lease lasts.
    """

    async def acquire_lease(self, name: str, holder: str, now: float, expires_at: float) -> bool:
        """Take a lease that nobody has or that has expired. False while the lease runs, even if `holder` has it."""
        return bool(
            await self._write(
                "INSERT INTO leases (name, holder, expires_at) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE "
                "SET holder = excluded.holder, expires_at = excluded.expires_at WHERE leases.expires_at <= ? "
                "RETURNING 1",
                (name, holder, expires_at, now),
            )
        )

    async def renew_leases(self, holder: str, names: Collection[str], expires_at: float) -> set[str]:
        """Prolong the leases that the holder still has, and return their names. The holder still has an expired lease
        that nobody else took."""
        if not names:
            return set()
        rows = await self._write(
            f"UPDATE leases SET expires_at = ? WHERE holder = ? AND name IN ({marks(list(names))}) RETURNING name",
            (expires_at, holder, *names),
        )
        return {row[0] for row in rows}

    async def release_lease(self, name: str, holder: str) -> None:
        """Give a lease back, if the holder still has it."""
        await self._write("DELETE FROM leases WHERE name = ? AND holder = ?", (name, holder))

    async def holds_lease(self, name: str, holder: str, now: float) -> bool:
        """Whether the holder has the lease and it has not expired."""
        return bool(
            await self._read(
                "SELECT 1 FROM leases WHERE name = ? AND holder = ? AND expires_at > ?", (name, holder, now)
            )
        )

    async def is_leased(self, prefix: str, now: float) -> bool:
        """Whether any lease runs whose name begins with `prefix`."""
        return bool(
            await self._read(
                "SELECT 1 FROM leases WHERE name >= ? AND name < ? AND expires_at > ? LIMIT 1",
                (prefix, end_of_range(prefix), now),
            )
        )

    async def purge_leases(self, now: float) -> None:
        """Delete the leases that have expired."""
        await self._write("DELETE FROM leases WHERE expires_at <= ?", (now,))

    async def drop_leases(self) -> None:
        """Delete all leases. For a coordinator that has the database to itself, so that no other holder lives."""
        await self._write("DELETE FROM leases")
