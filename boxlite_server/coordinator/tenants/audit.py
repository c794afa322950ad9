"""The audit: a line for each request that has changed something or was refused, in the log at once, and in the database
a moment later, together with others: no request waits for it.

A coordinator that is killed loses the lines of the last second from the database; the log has them. Lines of refused
requests are bounded for each key, and for all strangers together: nobody fills the operator's disk by being refused.
Lines of what has been changed are bounded only in memory, where the database takes none. A line with the action `GAP`
says how many are missing, and of which key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from ... import errors
from ...formats import timestamp, without_secrets
from ...metrics import coordinator as metrics
from ..loops import Loop, Tasks
from ..store import GAP, NO_REQUEST, AuditLine, Store

WRITE_SECONDS = 1.0  # from a line to its write, and between two writes
PURGE_SECONDS = 600.0  # between two times that old lines are deleted
MAX_WRITTEN = 1000  # lines in one transaction
MAX_UNWRITTEN = 20_000  # lines in memory, while the database takes none
MAX_TARGET = 512  # characters

REFUSED_AT_ONCE = 500  # lines of refused requests, of one key or of all strangers, that are written at once
REFILL_SECONDS = 1.0  # after which one more is written
MAX_SOURCES = 10_000  # keys whose refused requests are counted

log = logging.getLogger(__name__)
_lines = logging.getLogger("boxlite_server.audit")  # whose messages are JSON


class _Allowance(NamedTuple):
    """How many lines of refused requests a source may still have, as of a time."""

    left: float
    at: float


class Audit:
    """The audit of one coordinator. `keep`: seconds after which lines are deleted, a day at least. `clock` gives Unix
    seconds, `monotonic` any seconds that nobody sets."""

    def __init__(
        self,
        store: Store,
        keep: float,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._keep = keep
        self._clock = clock
        self._monotonic = monotonic
        self._unwritten: list[AuditLine] = []
        self._missing: Counter[str] = Counter()  # by key: lines that were not taken since the last gap was noted
        self._sources: OrderedDict[str, _Allowance] = OrderedDict()  # by key; the longest silent first
        self._tasks = Tasks()
        self._purging = Loop("deleting old lines of the audit", self._purge, retry=PURGE_SECONDS)

    def start(self) -> None:
        """Delete old lines from now on; needs the running event loop."""
        self._purging.start()

    async def close(self) -> None:
        await self._purging.close()
        await self._tasks.close()
        try:
            await self.write()
        except errors.DatabaseError as exc:
            log.error("%d lines of the audit are only in this log: %s", len(self._unwritten), exc)

    def note(
        self, *, key_id: str, prefix: str, action: str, target: str, status: int, request_id: str, address: str
    ) -> None:
        """Add a line about a request that ends now; `AuditLine` says what the fields are. Keys in `prefix` and `target`
        are left out."""
        self._tasks.begin("write", self._write_later, again=True)
        if (status >= 400 or not key_id) and not self._may_be_refused(key_id):
            self._miss(key_id)
            return
        target = without_secrets(target[:MAX_TARGET])
        line = AuditLine(self._clock(), key_id, without_secrets(prefix), action, target, status, request_id, address)
        _lines.info("%s", json.dumps(as_json(line)))
        metrics.AUDIT_LINES.inc()
        if len(self._unwritten) < MAX_UNWRITTEN:
            self._unwritten.append(line)
        else:
            self._miss(key_id)

    @property
    def unwritten(self) -> int:
        """How many lines are on their way to the database."""
        return len(self._unwritten)

    def _miss(self, key_id: str) -> None:
        self._missing[key_id] += 1
        metrics.AUDIT_MISSING.inc()

    def note_no_request(self, address: str, status: int, request_id: str) -> None:
        """Add a line about bytes from a stranger that were refused before they became a request."""
        self.note(
            key_id="", prefix="", action=NO_REQUEST, target="", status=status, request_id=request_id, address=address
        )

    async def write(self) -> None:
        """Write the lines that are not written yet. Raises DatabaseError; the lines stay until the next time."""
        while self._missing and len(self._unwritten) < MAX_UNWRITTEN:
            key_id, count = self._missing.popitem()
            gap = AuditLine(self._clock(), key_id, "", GAP, f"{count} lines", 0, "", "")
            self._unwritten.append(gap)
            _lines.warning("%s", json.dumps(as_json(gap)))
        while writing := self._unwritten[:MAX_WRITTEN]:
            async with self._store.transaction(durable=False) as tx:
                await tx.insert_audit(writing)
            del self._unwritten[: len(writing)]

    def _may_be_refused(self, source: str) -> bool:
        """Whether one more line of a refused request is written; the empty source stands for all strangers."""
        now = self._monotonic()
        known = self._sources.pop(source, None) or _Allowance(REFUSED_AT_ONCE, now)
        left = min(REFUSED_AT_ONCE, known.left + (now - known.at) / REFILL_SECONDS)
        self._sources[source] = _Allowance(left - 1 if left >= 1 else left, now)
        if len(self._sources) > MAX_SOURCES:
            self._sources.popitem(last=False)
        return left >= 1

    async def _write_later(self) -> None:
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            try:
                await self.write()
            except errors.DatabaseError as exc:
                log.warning("%d lines of the audit cannot be written yet: %s", len(self._unwritten), exc)
            if not self._unwritten:
                return

    async def _purge(self) -> float:
        more = await self._store.purge_audit(self._clock() - self._keep)
        return WRITE_SECONDS if more else PURGE_SECONDS


def as_json(line: AuditLine) -> dict[str, object]:
    """A line as the log and `boxlite-server audit` show it."""
    fields = line._asdict()
    return {"time": timestamp(fields.pop("at")), **fields}
