"""Hands out the events of the store to readers, as they come.

A reader has a position, and reads from the store what comes behind it, as much at a time as its client takes: however
slow that is, nothing is kept in memory. One task of the coordinator looks for new events, of whatever coordinator, and
wakes the readers whom they may concern: at once after a transaction of its own process, and every half second for those
of others. While nobody reads, nobody looks.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import NamedTuple

from .. import errors
from .loops import Loop
from .store import Event, Store

LOOK_SECONDS = 0.5  # between two looks for events of other coordinators
PAUSE_SECONDS = 0.01  # between any two looks
PURGE_SECONDS = 60.0  # between two times that old events are deleted
KEEP_SECONDS = 24 * 3600.0
MAX_EVENTS = 500_000  # that are kept
MAX_OF_PREFIX = 20_000  # of a prefix, and of the workers
MAX_READERS = 64  # of a prefix at one coordinator, and of those of everything
_AT_ONCE = 100  # events in one read


class Gap(NamedTuple):
    """Says that events up to the one with this id were deleted before the reader came to them."""

    id: int


class Wanted(NamedTuple):
    """Which events a reader wants; empty: all."""

    boxes: frozenset[str] = frozenset()  # ids or names
    kinds: frozenset[str] = frozenset()  # such as box.stopped, or box for all of its kinds

    def fits(self, event: Event) -> bool:
        if self.boxes and (event.box_id is None or self.boxes.isdisjoint((event.box_id, event.name))):
            return False
        return not self.kinds or not self.kinds.isdisjoint((event.kind, event.kind.partition(".")[0]))


class Reader:
    """Reads the events of a prefix; None: of all prefixes and workers. `position` is the id of the last event that it
    has read, whether it was wanted or not. To be closed by `aclose`."""

    def __init__(
        self, store: Store, prefix: str | None, position: int, newest: int, wanted: Wanted, *, follow: bool
    ) -> None:
        self.prefix = prefix
        self.position = position
        self.news = asyncio.Event()
        self._store = store
        self._newest = newest
        self._wanted = wanted
        self._follow = follow
        self.on_close: Callable[[], object] = lambda: None

    async def aclose(self) -> None:
        self.on_close()

    async def items(self) -> AsyncGenerator[Event | Gap, None]:
        """Yield the wanted events behind the position, as they come; or, not to `follow`, those that there are. Raises
        DatabaseError."""
        if self.position > self._newest:  # of another database, or of one that has lost its end
            self.position = self._newest
            yield Gap(self.position)
        while True:
            self.news.clear()
            found = await self._store.list_events(self.prefix, self.position, _AT_ONCE)
            forgotten = await self._store.forgotten_events(self.prefix)
            if forgotten > self.position:
                self.position = forgotten
                yield Gap(forgotten)
                continue
            for event in found:
                self.position = event.id
                if self._wanted.fits(event):
                    yield event
            if len(found) < _AT_ONCE:
                if not self._follow:
                    return
                await self.news.wait()


class Events:
    """The events of one coordinator's store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._readers: set[Reader] = set()
        self._counts: Counter[str | None] = Counter()  # readers by prefix
        self._seen = 0  # id of the newest event that readers were woken for
        self._due = asyncio.Event()  # set when there may be new events
        self._looking = Loop("new events cannot be looked for", self._look, retry=LOOK_SECONDS, sleep=self._sleep)
        self._purging = Loop("old events cannot be deleted", self._purge, retry=PURGE_SECONDS)
        store.on_commit(self._committed)

    def start(self) -> None:
        self._looking.start()
        self._purging.start()

    async def close(self) -> None:
        await self._looking.close()
        await self._purging.close()

    async def position(self) -> int:
        """The id of the newest event: what a reader from there reads happens from now on."""
        return await self._store.last_event()

    async def reader(
        self,
        prefix: str | None,
        after: int | None = None,
        wanted: Wanted = Wanted(),  # noqa: B008
        *,
        follow: bool = True,
    ) -> Reader:
        """A reader of what comes behind the event with the id `after`; None: from now on. Raises
        ResourceExhaustedError when there are too many."""
        newest = await self._store.last_event()
        if self._counts[prefix] >= MAX_READERS:
            raise errors.ResourceExhaustedError(
                f"{MAX_READERS} clients are reading these events through this coordinator; close one first"
            )
        reader = Reader(self._store, prefix, newest if after is None else after, newest, wanted, follow=follow)
        if not self._readers:
            self._seen = newest
        self._readers.add(reader)
        self._counts[prefix] += 1
        reader.on_close = lambda: self._drop(reader)
        return reader

    def _drop(self, reader: Reader) -> None:
        if reader in self._readers:
            self._readers.discard(reader)
            self._counts[reader.prefix] -= 1

    def _committed(self) -> None:
        if self._readers:
            self._due.set()

    async def _look(self) -> float:
        if self._readers:
            changed = await self._store.prefixes_with_events(self._seen)
            self._seen = max(changed.values(), default=self._seen)
            for reader in self._readers:
                if changed and (reader.prefix is None or reader.prefix in changed):
                    reader.news.set()
        return LOOK_SECONDS

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(PAUSE_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._due.wait()
        self._due.clear()

    async def _purge(self) -> float:
        async with self._store.transaction(durable=False) as tx:
            more = await tx.purge_events(KEEP_SECONDS, MAX_EVENTS, MAX_OF_PREFIX)
        return PAUSE_SECONDS if more else PURGE_SECONDS
