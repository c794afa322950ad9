"""Readers of events: what they are told, also when they come late, and what they cost."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from support.coordinator_site import CoordinatorSite
from support.rows import WORKER, box, open_store

from boxlite_server import errors, rpc
from boxlite_server.coordinator.events import MAX_READERS, Events, Gap, Reader, Wanted
from boxlite_server.coordinator.fleet.registry import UNREACHABLE_SECONDS
from boxlite_server.coordinator.store import Event, Store
from boxlite_server.coordinator.store.backup import back_up

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(database: Path | str) -> AsyncIterator[Store]:
    async with open_store(database) as store:
        yield store


@pytest.fixture
async def events(store: Store) -> AsyncIterator[Events]:
    events = Events(store)
    events.start()
    yield events
    await events.close()


@contextlib.asynccontextmanager
async def reading(reader: Reader) -> AsyncIterator[Callable[[int], object]]:
    """Yields a function that reads so many items."""
    async with contextlib.aclosing(reader), contextlib.aclosing(reader.items()) as items:

        async def read(count: int) -> list[object]:
            async with asyncio.timeout(30):
                return [_short(await anext(items)) for _ in range(count)]

        yield read


def _short(item: Event | Gap) -> object:
    return item if isinstance(item, Gap) else item.name


async def tell(store: Store, *names: str, prefix: str = "a") -> None:
    for name in names:
        async with store.transaction(durable=False) as tx:
            await tx.tell(prefix, "image.pulled", name=name)


async def test_readers_are_told_of_their_prefix_alone(store: Store, events: Events) -> None:
    async with (
        reading(await events.reader("a")) as of_a,
        reading(await events.reader("b")) as of_b,
        reading(await events.reader(None)) as of_all,
    ):
        await tell(store, "one")
        await tell(store, "two", prefix="b")
        assert await of_a(1) == ["one"]
        assert await of_b(1) == ["two"]
        await store.tell("a", "image.pulled", name="three")  # a single write wakes nobody, and is found
        assert await of_a(1) == ["three"]
        assert await of_all(3) == ["one", "two", "three"]


async def test_a_reader_that_comes_back_goes_on(store: Store, events: Events) -> None:
    names = [str(number) for number in range(250)]  # more than are read at a time
    first = await events.reader("a")
    async with reading(first) as read:
        await tell(store, *names[:3])
        assert await read(3) == names[:3]
    await tell(store, *names[3:])
    async with reading(await events.reader("a", first.position)) as read:
        assert await read(247) == names[3:]
        await tell(store, "last")
        assert await read(1) == ["last"]


async def test_what_is_filtered_out_moves_the_position(store: Store, events: Events) -> None:
    await store.insert_box(box(1, prefix="a", name="web"))
    await store.insert_box(box(2, prefix="a"))
    await tell(store, "image")
    for wanted, names in (
        (Wanted(), ["web", None, "image"]),
        (Wanted(boxes=frozenset({"web"})), ["web"]),
        (Wanted(boxes=frozenset({"box1", "box2"})), ["web", None]),
        (Wanted(boxes=frozenset({"image"})), []),
        (Wanted(kinds=frozenset({"box"})), ["web", None]),
        (Wanted(kinds=frozenset({"box.placed", "image"})), ["web", None, "image"]),
        (Wanted(frozenset({"web"}), frozenset({"image"})), []),
    ):
        reader = await events.reader("a", 0, wanted, follow=False)
        async with contextlib.aclosing(reader):
            assert [_short(item) async for item in reader.items()] == names
            assert reader.position == await store.last_event()


async def test_a_reader_that_comes_too_late_is_told_so(store: Store, events: Events) -> None:
    await tell(store, "one", "two")
    late = await store.last_event() - 1
    await tell(store, "three", "four")
    async with store.transaction() as tx:
        await tx.purge_events(3600.0, most=1000, most_of_prefix=1)
    gone = await store.last_event() - 1
    for after in (0, late, gone - 1):
        async with reading(await events.reader("a", after)) as read:
            assert await read(2) == [Gap(gone), "four"]
    async with reading(await events.reader("a", gone)) as read:
        assert await read(1) == ["four"]
    async with reading(await events.reader("b", 0)) as read:
        await tell(store, "other", prefix="b")
        assert await read(1) == ["other"]


async def test_a_reader_that_is_slow_is_told_of_what_it_missed(store: Store, events: Events) -> None:
    async with reading(await events.reader("a")) as read:
        await tell(store, "one")
        assert await read(1) == ["one"]
        await tell(store, "two", "three")
        async with store.transaction() as tx:
            await tx.purge_events(3600.0, most=1000, most_of_prefix=1)
        assert await read(2) == [Gap(await store.last_event() - 1), "three"]


async def test_what_comes_while_a_reader_looks_is_not_slept_through(
    store: Store, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, list_events, told = await events.reader("a"), store.list_events, list[str]()

    async def late(prefix: str | None, after: int, limit: int) -> list[Event]:
        found = await list_events(prefix, after, limit)
        if not told:
            told.append("one")
            await tell(store, *told)
            await reader._watch.news.wait()
        return found

    monkeypatch.setattr(store, "list_events", late)
    async with reading(reader) as read:
        assert (await read(1), told) == (["one"], ["one"])


async def test_an_id_that_was_never_given_is_a_gap(store: Store, events: Events) -> None:
    async with reading(await events.reader("a", 10**15)) as read:
        assert await read(1) == [Gap(await store.last_event())]
        await tell(store, "one")
        assert await read(1) == ["one"]


async def test_too_many_readers_of_one_prefix_are_refused(events: Events) -> None:
    readers = [await events.reader("a") for _ in range(MAX_READERS)]
    with pytest.raises(errors.ResourceExhaustedError, match="close one first"):
        await events.reader("a")
    await (await events.reader("b")).aclose()
    for _ in range(2):  # the second time does nothing
        await readers[0].aclose()
    readers[0] = await events.reader("a")
    with pytest.raises(errors.ResourceExhaustedError):
        await events.reader("a")
    for reader in readers:
        await reader.aclose()


async def test_nobody_looks_while_nobody_reads(store: Store, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        pytest.fail("somebody looks")

    monkeypatch.setattr(store, "subjects_of_events", fail)
    await tell(store, "one")
    await asyncio.sleep(0.1)


async def test_readers_of_a_database_that_was_put_back_are_told(tmp_path: Path) -> None:
    async with open_store(tmp_path / "c.db") as store:
        await tell(store, "one")
        back_up(tmp_path / "c.db", tmp_path / "copy.db")
        known = await store.last_event()
        await tell(store, "lost", "lost too")
        last = await store.last_event()
    for _ in range(2):  # opened for the first time, and again
        store = await Store.open(tmp_path / "copy.db")
        events = Events(store)
        for after in (0, known, last):
            reader = await events.reader("a", after, follow=False)
            found = [item async for item in reader.items()]
            assert [type(item) for item in found[:1]] == [Gap]
            await reader.aclose()
        position = await store.last_event()
        assert position > last + 1000
        await store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
        restored = "SELECT count(*) FROM events WHERE kind = 'database.restored'"
        assert connection.execute(restored).fetchone() == (1,)


async def test_a_copy_that_is_marked_by_hand_is_one_too(database: Path | str) -> None:
    async with open_store(database) as store:
        await tell(store, "one")
        last = await store.last_event()
        await store._write("INSERT INTO meta VALUES ('is_backup', '1')")
    store = await Store.open(database)
    reader = await Events(store).reader("a", last, follow=False)
    assert [item async for item in reader.items()] == [Gap(await store.last_event() - 1)]
    assert await store.is_backup()
    await store.close()


def test_a_worker_that_falls_silent_is_told_once_and_so_is_its_return(
    tell_both: Callable[..., None],
) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        created = await site.create()
        before = await site.core.store.last_event()
        await site.look(UNREACHABLE_SECONDS + 1, beats=False)
        await site.look(beats=False)
        await site.other.reconciler.look()
        await site.beat("one")
        told = await site.core.store.list_events(None, before, 100)
        assert [(event.kind, event.box_id) for event in told] == [
            ("worker.lost", None),
            ("box.unreachable", created.id),
            ("worker.back", None),
            ("box.reachable", created.id),
        ]
        assert told[0].details["error_message"] == "its heartbeats have stopped"

    tell_both(story)


def test_an_image_that_had_to_be_pulled_is_told(tell_both: Callable[..., None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        with rpc.on_behalf_of(rpc.Tenant("acme")):
            await site.core.images.note_pulled("x:1", "acme", WORKER.id, is_private=False)
        [event] = await site.core.store.list_events("acme", 0, 10)
        assert (event.kind, event.name) == ("image.pulled", "x:1")

    tell_both(story)
