"""Counts commands and warm boxes. A count is written a moment later, together with others: nobody waits for the
database."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from ... import errors
from ..loops import Tasks
from ..store import Counters, Store

WRITE_SECONDS = 1.0  # from a count to its write; a coordinator that is killed forgets as much

log = logging.getLogger(__name__)


class Counting:
    """The counters of all prefixes, over those in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unwritten: Counter[tuple[str, str]] = Counter()  # by prefix and counter
        self._writing = asyncio.Lock()
        self._tasks = Tasks()

    @property
    def unwritten(self) -> int:
        """How many counters wait to be written."""
        return len(self._unwritten)

    def add(self, prefix: str, counter: str) -> None:
        """Add one to a counter, which is a field of `Counters`."""
        self._unwritten[prefix, counter] += 1
        self._tasks.begin("write", self._write_later)

    async def counters(self, prefix: str) -> Counters:
        """The counters of a prefix. What other coordinators have counted in the last second may be missing."""
        await self._write()
        return await self._store.counters(prefix)

    async def totals(self) -> Counters:
        """The counters of all prefixes together; see `counters`. Nothing is written."""
        async with self._writing:
            totals = (await self._store.total_counters())._asdict()
            for (_, counter), number in self._unwritten.items():
                totals[counter] += number
        return Counters(**totals)

    async def close(self) -> None:
        await self._tasks.close()
        await self._write()

    async def _write_later(self) -> None:
        await asyncio.sleep(WRITE_SECONDS)
        await self._write()

    async def _write(self) -> None:
        """Write what is not written yet; what cannot be written stays until the next time."""
        async with self._writing:
            for (prefix, counter), number in list(self._unwritten.items()):
                try:
                    await self._store.count(prefix, counter, number)
                except errors.DatabaseError as exc:
                    log.warning("the counts cannot be written yet: %s", exc)
                    return
                self._unwritten[prefix, counter] -= number
                if not self._unwritten[prefix, counter]:
                    del self._unwritten[prefix, counter]
