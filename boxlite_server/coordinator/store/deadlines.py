"""When the coordinator acts on boxes by itself."""

from __future__ import annotations

from .database import Database


class Deadlines(Database):
    """Methods over the table `deadlines`; times in Unix seconds. A box that goes takes its deadline with it."""

    async def set_deadline(self, box_id: str, due_at: float | None) -> None:
        """The one deadline of a box; None takes it away."""
        if due_at is None:
            await self._execute("DELETE FROM deadlines WHERE box_id = ?", (box_id,))
        else:
            await self._execute(
                "INSERT INTO deadlines VALUES (?, ?) ON CONFLICT (box_id) DO UPDATE SET due_at = excluded.due_at",
                (box_id, due_at),
            )

    async def deadline(self, box_id: str) -> float | None:
        row = await self._row("SELECT due_at FROM deadlines WHERE box_id = ?", (box_id,))
        return float(row[0]) if row else None

    async def deadlines(self, until: float) -> list[str]:
        """Ids of the boxes whose deadline is not later than `until`, the oldest first."""
        rows = await self._execute("SELECT box_id FROM deadlines WHERE due_at <= ? ORDER BY due_at", (until,))
        return [str(row[0]) for row in rows]

    async def next_deadline(self, after: float) -> float | None:
        """The first deadline later than `after`."""
        row = await self._row("SELECT min(due_at) FROM deadlines WHERE due_at > ?", (after,))
        return None if row is None or row[0] is None else float(row[0])
