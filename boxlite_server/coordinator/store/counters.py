"""What has happened in each prefix since the beginning, and how many boxes it has."""

from __future__ import annotations

from typing import NamedTuple

from .table import Table


class Counters(NamedTuple):
    boxes_created: int = 0
    boxes_failed: int = 0
    boxes_stopped: int = 0
    commands_executed: int = 0
    exec_errors: int = 0


class CounterRows(Table):
    """Methods over the tables `counters` and `totals`. Boxes are counted by the schema itself."""

    async def count(self, prefix: str, counter: str) -> None:
        """Add one to a counter, named by its field."""
        assert counter in Counters._fields
        await self._write(
            f"INSERT INTO counters (prefix, {counter}) VALUES (?, 1) "
            f"ON CONFLICT (prefix) DO UPDATE SET {counter} = counters.{counter} + 1",
            (prefix,),
        )

    async def counters(self, prefix: str) -> Counters:
        columns = ", ".join(Counters._fields)
        row = await self._read_one(f"SELECT {columns} FROM counters WHERE prefix = ?", (prefix,))
        return Counters(*row) if row else Counters()

    async def count_boxes(self, prefix: str, status: str | None = None) -> int:
        """How many boxes the prefix has, in any status but ``removing``, or in ``running`` alone."""
        assert status in (None, "running")
        column = "running" if status else "boxes"
        row = await self._read_one(f"SELECT {column} FROM totals WHERE prefix = ?", (prefix,))
        return int(row[0]) if row else 0
