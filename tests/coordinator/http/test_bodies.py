"""The body of an upload: how long it is waited for, and what is made of its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.requests import ClientDisconnect

from boxlite_server.coordinator.http import bodies
from boxlite_server.errors import InvalidArgumentError, TimedOutError


async def collected(body: AsyncGenerator[bytes, None]) -> list[bytes]:
    return [chunk async for chunk in bodies.received(body)]


async def silent() -> AsyncGenerator[bytes, None]:
    yield b"one"
    await asyncio.Event().wait()


async def broken() -> AsyncGenerator[bytes, None]:
    yield b"one"
    raise ClientDisconnect


async def endless() -> AsyncGenerator[bytes, None]:
    while True:
        yield b"x" * 1000


def test_a_body_is_handed_on() -> None:
    async def body() -> AsyncGenerator[bytes, None]:
        yield b"one"
        yield b"two"

    assert asyncio.run(collected(body())) == [b"one", b"two"]


def test_a_client_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SILENCE_SECONDS", 0.01)
    with pytest.raises(TimedOutError, match="did not go on"):
        asyncio.run(collected(silent()))


def test_a_client_that_goes_away_is_no_end() -> None:
    with pytest.raises(InvalidArgumentError, match="went away"):
        asyncio.run(collected(broken()))


def test_what_comes_after_a_refusal_is_read_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "DRAIN_BYTES", 10_000)
    asyncio.run(bodies.drain(endless()))
    asyncio.run(bodies.drain(broken()))
    monkeypatch.setattr(bodies, "DRAIN_SECONDS", 0.01)
    asyncio.run(bodies.drain(silent()))
