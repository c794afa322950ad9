"""The body of an upload: how long it is waited for, and what is made of its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from boxlite_server.coordinator.http.bodies import streams as bodies
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


def test_a_client_that_falls_silent_in_the_middle_of_a_body_is_given_up() -> None:
    async def story() -> None:
        pieces = iter([{"type": "http.request", "body": b"one", "more_body": True}])

        async def receive() -> Any:
            return next(pieces, None) or await asyncio.Event().wait()

        in_time = bodies.bounded(receive, 0.01)
        assert (await in_time())["body"] == b"one"
        with pytest.raises(TimedOutError, match="did not go on"):
            await in_time()

    asyncio.run(story())


def test_a_client_that_waits_for_its_answer_is_not_given_up() -> None:
    async def story() -> None:
        goes = asyncio.Event()
        pieces = iter([{"type": "http.request", "body": b"all", "more_body": False}])

        async def receive() -> Any:
            return next(pieces, None) or (await goes.wait() and {"type": "http.disconnect"})

        in_time = bodies.bounded(receive, 0.01)
        await in_time()
        asyncio.get_running_loop().call_later(0.05, goes.set)
        assert (await in_time())["type"] == "http.disconnect"

    asyncio.run(story())


def test_a_client_that_goes_away_is_no_end() -> None:
    with pytest.raises(InvalidArgumentError, match="went away"):
        asyncio.run(collected(broken()))


def test_what_comes_after_a_refusal_is_read_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "DRAIN_BYTES", 10_000)
    asyncio.run(bodies.drain(endless()))
    asyncio.run(bodies.drain(broken()))
    monkeypatch.setattr(bodies, "DRAIN_SECONDS", 0.01)
    asyncio.run(bodies.drain(silent()))
