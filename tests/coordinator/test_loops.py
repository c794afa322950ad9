"""Loops that survive errors, and one task at a time for each key."""

from __future__ import annotations

import asyncio

import pytest

from boxlite_server import errors
from boxlite_server.coordinator.loops import Backoff, Loop, Tasks


def test_a_loop_goes_on_after_any_error(caplog: pytest.LogCaptureFixture) -> None:
    slept: list[float] = []
    results = [1.0, errors.DatabaseError("locked"), ValueError("fault"), 2.0]

    async def act() -> float:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    async def run() -> None:
        done = asyncio.Event()

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            if not results:
                done.set()
                await asyncio.Event().wait()

        loop = Loop("it cannot be done", act, retry=7.0, sleep=sleep)
        loop.start(after=3.0)
        await done.wait()
        await loop.close()

    asyncio.run(run())
    assert slept == [3.0, 1.0, 7.0, 7.0, 2.0]
    assert [record.message for record in caplog.records if "it cannot be done" in record.message] == [
        "it cannot be done, trying again: locked",
        "fault: it cannot be done, trying again",
    ]


def test_a_key_has_one_task_and_runs_again_when_asked() -> None:
    ran: list[str] = []

    async def run() -> None:
        tasks, gate = Tasks(), asyncio.Event()

        async def wait() -> None:
            ran.append("first")
            await gate.wait()

        async def note(what: str) -> None:
            ran.append(what)

        tasks.begin("a", wait)
        tasks.begin("a", lambda: note("dropped"))
        tasks.begin("a", lambda: note("replaced"), again=True)
        tasks.begin("a", lambda: note("again"), again=True)
        tasks.begin("b", lambda: note("other"))
        await asyncio.sleep(0)
        assert ran == ["first", "other"]
        gate.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert ran == ["first", "other", "again"]
        gate.clear()
        tasks.begin("a", wait)
        tasks.begin("a", lambda: note("too late"), again=True)
        await asyncio.sleep(0)
        await tasks.close()
        await asyncio.sleep(0)

    asyncio.run(run())
    assert ran == ["first", "other", "again", "first"]


def test_pauses_grow_until_an_attempt_succeeds() -> None:
    now = 100.0
    pauses = Backoff(5.0, 60.0, lambda: now)
    assert pauses.due_at("box") == 0
    due = []
    for _ in range(6):
        pauses.failed("box")
        due.append(pauses.due_at("box") - now)
        now = pauses.due_at("box")
    assert due == [5, 10, 20, 40, 60, 60]
    pauses.failed("other")
    assert pauses.due_at("other") - now == 5
    pauses.succeeded("box")
    assert pauses.due_at("box") == 0


def test_pauses_that_nobody_asks_for_any_more_are_dropped() -> None:
    now = 100.0
    pauses = Backoff(5.0, 60.0, lambda: now)
    pauses.failed("gone")
    now = 1000.0
    pauses.failed("box")
    assert pauses.due_at("gone") == 0
