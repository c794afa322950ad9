"""Hands out the events of the store to readers, as they come.

A reader has a position, and reads from the store what comes behind it, as much at a time as its client takes: however
slow that is, nothing is kept in memory. One task of the coordinator looks for new events, of whatever coordinator, and
wakes those whom they may concern: at once after a transaction of its own process, and every half second for those of
others. While nobody reads or waits, nobody looks.
"""

from __future__ import annotations

import asyncio
import functools
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

_Subject = tuple[str, str | None]  # a kind and a name
_EVERYTHING: _Subject = ("", "")


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


class Watch:
    """Says when something may have happened to a subject. `news` is set by events that are newer than the one with the
    id `position`. To be closed."""

    def __init__(self, position: int, close: Callable[[Watch], object]) -> None:
        self.position = position
        self.news = asyncio.Event()
        self._close = close

    def close(self) -> None:
        self._close(self)


class Reader:
    """Reads the events of a prefix; None: of all prefixes and workers. `position` is the id of the last event that it
    has read, whether it was wanted or not. To be closed by `aclose`."""

    def __init__(
        self, store: Store, prefix: str | None, watch: Watch, after: int | None, wanted: Wanted, *, follow: bool
    ) -> None:
        self.position = watch.position if after is None else after
        self._store = store
        self._prefix = prefix
        self._watch = watch
        self._wanted = wanted
        self._follow = follow

    async def aclose(self) -> None:
        self._watch.close()

    async def items(self) -> AsyncGenerator[Event | Gap, None]:
        """Yield the wanted events behind the position, as they come; or, not to `follow`, those that there are. Raises
        DatabaseError."""
        if self.position > self._watch.position:  # of another database, or of one that has lost its end
            self.position = self._watch.position
            yield Gap(self.position)
        while True:
            self._watch.news.clear()
            found = await self._store.list_events(self._prefix, self.position, _AT_ONCE)
            forgotten = await self._store.forgotten_events(self._prefix)
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
                await self._watch.news.wait()


class Events:
    """The events of one coordinator's store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watches: dict[_Subject, set[Watch]] = {}
        self._seen = 0  # id of the newest event that has been looked at
        self._due = asyncio.Event()  # set when there may be new events
        self._looking = Loop("new events cannot be looked for", self._look, retry=LOOK_SECONDS, sleep=self._sleep)
        self._is_looking = False
        self._purging = Loop("old events cannot be deleted", self._purge, retry=PURGE_SECONDS)
        store.on_commit(self._committed)

    def start(self) -> None:
        """Delete old events from now on; needs the running event loop."""
        self._purging.start()

    async def close(self) -> None:
        await self._looking.close()
        await self._purging.close()

    async def watch_box(self, box_id: str) -> Watch:
        """A watch on one box: what is read after this call is up to date until there are news."""
        return await self._watch(("box", box_id))

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
        watch = await self._watch(_EVERYTHING if prefix is None else ("prefix", prefix), MAX_READERS)
        return Reader(self._store, prefix, watch, after, wanted, follow=follow)

    async def _watch(self, subject: _Subject, most: int | None = None) -> Watch:
        position = await self._store.last_event()
        if most is not None and len(self._watches.get(subject, ())) >= most:
            raise errors.ResourceExhaustedError(
                f"{most} clients are reading these events through this coordinator; close one first"
            )
        if not self._watches:
            self._seen = position
        if not self._is_looking:
            self._is_looking = True
            self._looking.start()
        watch = Watch(position, functools.partial(self._drop, subject))
        self._watches.setdefault(subject, set()).add(watch)
        return watch

    def _drop(self, subject: _Subject, watch: Watch) -> None:
        watches = self._watches.get(subject, set())
        watches.discard(watch)
        if not watches:
            self._watches.pop(subject, None)

    def _committed(self) -> None:
        if self._watches:
            self._due.set()

    async def _look(self) -> float:
        if self._watches:
            changed = await self._store.subjects_of_events(self._seen)
            subjects = {_EVERYTHING} if changed else set[_Subject]()
            for prefix, box_id, event_id in changed:
                subjects |= {("prefix", prefix), ("box", box_id)}
                self._seen = max(self._seen, event_id)
            for subject in subjects:
                for watch in self._watches.get(subject, ()):
                    watch.news.set()
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
