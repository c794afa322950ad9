"""The tables of counters and of the numbers of boxes, by prefix."""

from __future__ import annotations

from typing import NamedTuple

from ..states import BoxStatus
from .table import Table
from .warm import WARM_PREFIX


class Counters(NamedTuple):
    """Counters of one prefix. They never fall, and outlive the boxes that they count."""

    boxes_created: int = 0
    boxes_failed: int = 0
    boxes_stopped: int = 0
    commands_executed: int = 0
    exec_errors: int = 0
    warm_claims: int = 0
    warm_misses: int = 0
    warm_made: int = 0
    warm_given_up: int = 0


class CounterRows(Table):
    """Methods over the tables `counters` and `totals`. Triggers of the schema count the boxes."""

    async def count(self, prefix: str, counter: str, number: int = 1) -> None:
        """Add `number` to a counter, which is a field of `Counters`."""
        if counter not in Counters._fields:  # it becomes a part of the statement
            raise ValueError(counter)
        await self._write(
            f"INSERT INTO counters (prefix, {counter}) VALUES (?, ?) "
            f"ON CONFLICT (prefix) DO UPDATE SET {counter} = counters.{counter} + excluded.{counter}",
            (prefix, number),
        )

    async def counters(self, prefix: str) -> Counters:
        columns = ", ".join(Counters._fields)
        row = await self._read_one(f"SELECT {columns} FROM counters WHERE prefix = ?", (prefix,))
        return Counters(*row) if row else Counters()

    async def total_counters(self) -> Counters:
        """The counters of all prefixes together."""
        columns = ", ".join(f"CAST(coalesce(sum({field}), 0) AS BIGINT)" for field in Counters._fields)
        row = await self._read_one(f"SELECT {columns} FROM counters")
        return Counters(*row) if row else Counters()

    async def boxes_by_status(self) -> dict[BoxStatus, int]:
        """The number of all boxes that belong to somebody, by status."""
        rows = await self._read("SELECT status, COUNT(*) FROM boxes WHERE prefix != ? GROUP BY status", (WARM_PREFIX,))
        return {BoxStatus(status): int(number) for status, number in rows}

    async def count_boxes(self, prefix: str, status: BoxStatus | None = None) -> int:
        """The number of a prefix's boxes but those in REMOVING; or of those in RUNNING, the one `status` counted."""
        assert status in (None, BoxStatus.RUNNING)
        column = "running" if status else "boxes"
        row = await self._read_one(f"SELECT {column} FROM totals WHERE prefix = ?", (prefix,))
        return int(row[0]) if row else 0
