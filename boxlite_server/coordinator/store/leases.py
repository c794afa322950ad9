"""Who may work on what, for how long."""

from __future__ import annotations

from collections.abc import Collection

from .table import Table, marks


class Leases(Table):
    """Methods over the table `leases`; times in Unix seconds. A holder is one life of a coordinator's process.

    Each is one atomic step, whoever else tries at the same time. That the clocks of the coordinators agree, much
    better than a lease lasts, is what they rest on.
    """

    async def acquire_lease(self, name: str, holder: str, now: float, expires_at: float) -> bool:
        """Take a lease that nobody has, or that has expired. False while one runs, also one of the same holder."""
        return bool(
            await self._write(
                "INSERT INTO leases (name, holder, expires_at) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE "
                "SET holder = excluded.holder, expires_at = excluded.expires_at WHERE leases.expires_at <= ? "
                "RETURNING 1",
                (name, holder, expires_at, now),
            )
        )

    async def renew_leases(self, holder: str, names: Collection[str], expires_at: float) -> set[str]:
        """Prolong those that the holder still has: their names. One that expired is still its as long as nobody
        took it."""
        if not names:
            return set()
        rows = await self._write(
            f"UPDATE leases SET expires_at = ? WHERE holder = ? AND name IN ({marks(list(names))}) RETURNING name",
            (expires_at, holder, *names),
        )
        return {row[0] for row in rows}

    async def release_lease(self, name: str, holder: str) -> None:
        """Give it back, if it is still the holder's."""
        await self._write("DELETE FROM leases WHERE name = ? AND holder = ?", (name, holder))

    async def holds_lease(self, name: str, holder: str, now: float) -> bool:
        """Whether it is the holder's and runs."""
        return bool(
            await self._read(
                "SELECT 1 FROM leases WHERE name = ? AND holder = ? AND expires_at > ?", (name, holder, now)
            )
        )

    async def is_leased(self, prefix: str, now: float) -> bool:
        """Whether any lease runs whose name begins so."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        return bool(
            await self._read(
                "SELECT 1 FROM leases WHERE name >= ? AND name < ? AND expires_at > ? LIMIT 1", (prefix, end, now)
            )
        )

    async def purge_leases(self, now: float) -> None:
        """Forget those that have expired."""
        await self._write("DELETE FROM leases WHERE expires_at <= ?", (now,))

    async def drop_leases(self) -> None:
        """Forget all: for a coordinator that is alone, and knows that no holder lives."""
        await self._write("DELETE FROM leases")
