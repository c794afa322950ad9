"""The stream of events as text: what a client is sent, and what becomes of its reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from support.rows import open_store

from boxlite_server.coordinator import events as events_module
from boxlite_server.coordinator.events import Events, Reader, Wanted
from boxlite_server.coordinator.http import sse
from boxlite_server.coordinator.store import Event, Store

pytestmark = pytest.mark.anyio
SCOPE = {"type": "http", "asgi": {"spec_version": "2.4"}}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "c.db") as store:
        yield store


@pytest.fixture
async def events(store: Store) -> AsyncIterator[Events]:
    events = Events(store)
    yield events
    await events.close()


def streamed(reader: Reader) -> sse.StreamingResponse:
    def view(event: Event) -> dict[str, Any]:
        return {"id": event.id}

    return sse.stream_events(SimpleNamespace(stopping=asyncio.Event()), reader, view)  # type: ignore[arg-type]


async def text_until(reader: Reader, wanted: str) -> str:
    """What a client is sent until it has had the wanted text; the client goes away then."""
    text = ""

    async def send(message: Any) -> None:
        nonlocal text
        text += message.get("body", b"").decode()
        if wanted in text:
            raise OSError

    async with asyncio.timeout(30):
        with pytest.raises(ClientDisconnect):
            await streamed(reader)(SCOPE, asyncio.Event().wait, send)  # type: ignore[arg-type]
    return text


async def test_a_quiet_stream_shows_signs_of_life_and_where_its_reader_stands(
    store: Store, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "KEEPALIVE_SECONDS", 0.01)
    reader = await events.reader("a", wanted=Wanted(kinds=frozenset({"box"})))
    begin = await store.last_event()
    await store.tell("a", "image.pulled")
    text = await text_until(reader, f": keep-alive\n\nid: {begin + 1}\n\n")
    assert text.startswith(f"retry: 1000\nid: {begin}\n\n")
    assert "event:" not in text


async def test_a_gap_is_an_event_from_which_a_client_goes_on(store: Store, events: Events) -> None:
    for _ in range(3):
        await store.tell("a", "image.pulled")
    last = await store.last_event()
    async with store.transaction() as tx:
        await tx.purge_events(3600.0, most=1000, most_of_prefix=1)
    text = await text_until(await events.reader("a", 0), f'event: image.pulled\nid: {last}\ndata: {{"id":{last}}}\n\n')
    begin, gap, *_ = text.split("\n\n")
    assert begin == "retry: 1000\nid: 0"
    assert gap.startswith(f'event: gap\nid: {last - 1}\ndata: {{"id":{last - 1},"message":"events that came before')


async def test_a_client_that_goes_away_leaves_its_place_to_another(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "MAX_READERS", 1)
    for wanted in ("", "retry"):  # before the first piece, and behind it
        await text_until(await events.reader("a"), wanted)
    await (await events.reader("a")).aclose()


async def test_old_events_are_deleted_while_a_coordinator_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_OF_PREFIX": 1, "PURGE_SECONDS": 0.01}.items():
        monkeypatch.setattr(events_module, name, value)
    events = Events(store)
    for _ in range(3):
        await store.tell("a", "image.pulled")
    events.start()
    async with asyncio.timeout(30):
        while len(await store.list_events("a", 0, 10)) > 1:  # noqa: ASYNC110  # nobody is told of it
            await asyncio.sleep(0.01)
    await events.close()
