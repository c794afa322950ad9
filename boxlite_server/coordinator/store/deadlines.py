"""The table of deadlines: when the coordinator stops or removes a box by itself."""

from __future__ import annotations

from .table import Table


class Deadlines(Table):
    """Methods over the table `deadlines`; times in Unix seconds. Deleting a box deletes its deadline."""

    async def set_deadline(self, box_id: str, due_at: float | None) -> None:
        """Set the one deadline of a box; None deletes it. For a deleted box nothing happens."""
        if due_at is None:
            await self._write("DELETE FROM deadlines WHERE box_id = ?", (box_id,))
        else:
            await self._write(
                "INSERT INTO deadlines (box_id, due_at) SELECT id, ? FROM boxes WHERE id = ? "
                "ON CONFLICT (box_id) DO UPDATE SET due_at = excluded.due_at",
                (due_at, box_id),
            )

    async def deadline(self, box_id: str) -> float | None:
        row = await self._read_one("SELECT due_at FROM deadlines WHERE box_id = ?", (box_id,))
        return float(row[0]) if row else None

    async def deadlines(self, until: float) -> list[str]:
        """Ids of the boxes whose deadline is not later than `until`, the earliest deadline first."""
        rows = await self._read("SELECT box_id FROM deadlines WHERE due_at <= ? ORDER BY due_at", (until,))
        return [str(row[0]) for row in rows]

    async def next_deadline(self, after: float) -> float | None:
        """The first deadline later than `after`."""
        row = await self._read_one("SELECT min(due_at) FROM deadlines WHERE due_at > ?", (after,))
        return float(row[0]) if row and row[0] is not None else None
