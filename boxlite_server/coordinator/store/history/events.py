"""The table of events: what has happened to boxes, snapshots, volumes, images and workers.

Triggers of the schema write the events of all that has a row. Events become visible in the order of their ids: a reader
that goes on behind the last one that it has seen misses none.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ..table import Table, reader

EVERYBODY = "*"  # in place of a prefix, among the events that were deleted
_PURGED = 1000  # events in one statement
_LOST = 1_000_000_000  # more than all events between a backup and its restoration


class Event(NamedTuple):
    """One event. `details` hold neither environments nor secrets."""

    id: int
    at: float  # Unix seconds
    prefix: str  # empty for an event of a worker
    kind: str
    box_id: str | None  # None: it is about no box
    name: str | None  # of the box, snapshot, volume, image or worker
    status: str | None  # of the box from then on, as clients see it; None: the box is gone
    worker: str | None  # name of the worker; for operators only
    details: dict[str, Any]


_COLUMNS = ", ".join(Event._fields)
_event = reader(Event, Event._fields, details=json.loads)


class Events(Table):
    """Methods over the tables `events` and `forgotten_events`."""

    async def last_event(self) -> int:
        """The id of the newest event; 0: there is none."""
        row = await self._read_one("SELECT coalesce(max(id), 0) FROM events")
        return int(row[0]) if row else 0

    async def list_events(self, prefix: str | None, after: int, limit: int) -> list[Event]:
        """The oldest events of a prefix behind the one with the id `after`; None: of all prefixes and workers."""
        condition, parameters = ("", ()) if prefix is None else ("prefix = ? AND ", (prefix,))
        rows = await self._read(
            f"SELECT {_COLUMNS} FROM events WHERE {condition}id > ? ORDER BY id LIMIT ?", (*parameters, after, limit)
        )
        return [_event(row) for row in rows]

    async def subjects_of_events(self, after: int) -> list[tuple[str, str | None, int]]:
        """What there are events about behind the one with the id `after`: prefixes and, where it is about one, boxes,
        each with the id of the newest event."""
        rows = await self._read(
            "SELECT prefix, box_id, max(id) FROM events WHERE id > ? GROUP BY prefix, box_id", (after,)
        )
        return [(prefix, box_id, event_id) for prefix, box_id, event_id in rows]

    async def forgotten_events(self, prefix: str | None) -> int:
        """The greatest id of the events of a prefix, or of any, that were deleted; 0: none were."""
        condition, parameters = ("", ()) if prefix is None else ("WHERE prefix IN (?, ?)", (prefix, EVERYBODY))
        row = await self._read_one(f"SELECT coalesce(max(id), 0) FROM forgotten_events {condition}", parameters)
        return int(row[0]) if row else 0

    async def tell(
        self, prefix: str, kind: str, *, name: str | None = None, worker_id: str | None = None, **details: Any
    ) -> None:
        """Add an event of something that has no row."""
        await self._write(
            self._connection.dialect.tell, (prefix, kind, None, name, None, worker_id, json.dumps(details))
        )

    async def forget_lost_events(self) -> None:
        """Note that the database was put back to an earlier state: there may be readers who have seen events that came
        after that state. New events get ids beyond those. To be called in a transaction."""
        last = await self.last_event() + _LOST
        await self._write(
            f"INSERT INTO events (id, at, prefix, kind, details) VALUES (?, {self._connection.dialect.now}, ?, ?, ?)",
            (last, "", "database.restored", "{}"),
        )
        await self._note_forgotten(EVERYBODY, last - 1)

    async def purge_events(self, seconds: float, most: int, most_of_prefix: int) -> bool:
        """Delete the oldest events: those that are older than that, those that are not among the last `most`, and those
        that are not among the last `most_of_prefix` of their prefix; a thousand of each at most. Whether there may be
        more. The newest event stays, as the last id that was given. To be called in a transaction."""
        is_old = f"at < {self._connection.dialect.now} - ? OR id <= ?"
        oldest = f"SELECT id FROM (SELECT id, at FROM events ORDER BY id LIMIT ?) AS oldest WHERE {is_old}"
        more = await self._forget(oldest, (_PURGED, seconds, await self.last_event() - most))
        crowded = await self._read(
            "SELECT prefix, count(*) FROM events GROUP BY prefix HAVING count(*) > ?", (most_of_prefix,)
        )
        for prefix, count in crowded:
            excess = "SELECT id FROM events WHERE prefix = ? ORDER BY id LIMIT ?"
            more |= await self._forget(excess, (prefix, min(count - most_of_prefix, _PURGED)))
        return more

    async def _forget(self, ids: str, parameters: tuple[Any, ...]) -> bool:
        """Delete the events with these ids, a SELECT, and note up to where. Whether there were a thousand."""
        deleted = await self._write(
            f"DELETE FROM events WHERE id IN ({ids}) AND id < (SELECT max(id) FROM events) RETURNING prefix, id",
            parameters,
        )
        last_ids: dict[str, int] = dict(sorted(deleted))
        for prefix, last in last_ids.items():
            await self._note_forgotten(prefix, last)
        return len(deleted) == _PURGED

    async def _note_forgotten(self, prefix: str, event_id: int) -> None:
        await self._write(
            "INSERT INTO forgotten_events (prefix, id) VALUES (?, ?) "
            "ON CONFLICT (prefix) DO UPDATE SET id = excluded.id WHERE excluded.id > forgotten_events.id",
            (prefix, event_id),
        )
