"""When the coordinator acts on boxes by itself."""

from __future__ import annotations

from .database import Database


class Deadlines(Database):
    """Methods over the table `deadlines`; times in Unix seconds. A box that goes takes its deadline with it."""

    def set_deadline(self, box_id: str, due_at: float | None) -> None:
        """The one deadline of a box; None takes it away."""
        if due_at is None:
            self._execute("DELETE FROM deadlines WHERE box_id = ?", (box_id,))
        else:
            self._execute(
                "INSERT INTO deadlines VALUES (?, ?) ON CONFLICT (box_id) DO UPDATE SET due_at = excluded.due_at",
                (box_id, due_at),
            )

    def deadline(self, box_id: str) -> float | None:
        row = self._execute("SELECT due_at FROM deadlines WHERE box_id = ?", (box_id,)).fetchone()
        return float(row[0]) if row else None

    def deadlines(self, until: float) -> list[str]:
        """Ids of the boxes whose deadline is not later than `until`, the oldest first."""
        rows = self._execute("SELECT box_id FROM deadlines WHERE due_at <= ? ORDER BY due_at", (until,))
        return [str(row[0]) for row in rows]

    def next_deadline(self, after: float) -> float | None:
        """The first deadline later than `after`."""
        (due_at,) = self._execute("SELECT min(due_at) FROM deadlines WHERE due_at > ?", (after,)).fetchone()
        return None if due_at is None else float(due_at)
