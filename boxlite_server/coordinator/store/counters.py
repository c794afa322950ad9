"""What has happened in each prefix since the beginning."""

from __future__ import annotations

from typing import NamedTuple

from .database import Database


class Counters(NamedTuple):
    boxes_created: int = 0
    boxes_failed: int = 0
    boxes_stopped: int = 0
    commands_executed: int = 0
    exec_errors: int = 0


class CounterRows(Database):
    """Methods over the table `counters`. Created, failed and stopped boxes are counted by the schema itself."""

    async def count(self, prefix: str, counter: str) -> None:
        """Add one to a counter, named by its field."""
        assert counter in Counters._fields
        await self._execute(
            f"INSERT INTO counters (prefix, {counter}) VALUES (?, 1) "
            f"ON CONFLICT (prefix) DO UPDATE SET {counter} = {counter} + 1",
            (prefix,),
        )

    async def counters(self, prefix: str) -> Counters:
        columns = ", ".join(Counters._fields)
        row = await self._row(f"SELECT {columns} FROM counters WHERE prefix = ?", (prefix,))
        return Counters(*row) if row else Counters()

    async def count_boxes(self, prefix: str, status: str | None = None) -> int:
        """How many boxes the prefix has, in that status or in any."""
        clause, parameters = ("AND status = ?", (prefix, status)) if status else ("", (prefix,))
        row = await self._row(
            f"SELECT count(*) FROM boxes WHERE prefix = ? AND status != 'removing' {clause}", parameters
        )
        return int(row[0]) if row else 0
