"""Boxes that stop and go by themselves: what is due when, and what holds it off. The clock is the test's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from support.blocking import Blocking

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator.control.lifetimes import RETRY_SECONDS
from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.limits import Policy
from boxlite_server.coordinator.store import Box, Worker

NOTHING = Policy()


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class FakeWorker:
    """Does what it is told, and says what the test wants of commands."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.states: dict[str, int] = {}
        self.live = 0
        self.idle: float | None = None
        self.down = False
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}

    async def unary(self, method: str, request: Any, *, timeout: float) -> Any:
        self.calls.append(method)
        if method in self.before:
            await self.before[method]()
        if self.down:
            raise errors.UpstreamUnavailableError("down")
        box_id = request.box_id if isinstance(request, pb.BoxRef) else request.box.box_id
        match method:
            case "CreateBox":
                self.states[box_id] = pb.BOX_STATUS_CONFIGURED
            case "StartBox":
                self.states[box_id] = pb.BOX_STATUS_RUNNING
            case "StopBox":
                self.states[box_id] = pb.BOX_STATUS_STOPPED
            case "RemoveBox":
                self.states.pop(box_id, None)
                return pb.Empty()
            case "StartExecution":
                return pb.Execution(execution_id=request.execution_id)
        if box_id not in self.states:
            raise errors.NotFoundError(box_id)
        answer = pb.Box(box_id=box_id, generation=1, status=self.states[box_id])  # type: ignore[arg-type]
        if method == "GetBox":
            answer.live_executions = self.live
            if self.idle is not None:
                answer.idle_seconds = self.idle
        return answer

    async def close(self) -> None:
        pass


class Site:
    def __init__(self, path: Path, policy: Policy = NOTHING, clock: Any = None) -> None:
        self.path = path
        self.policy = policy
        self.clock = clock or Clock()
        self.worker = FakeWorker()
        self.core = asyncio.run(self.open())
        row = Worker("w1", "one", "http://127.0.0.1:1", "s", "active", "e", {}, 8, 65536, None, "", "", 0, 0)
        Blocking(self.core.store).put_worker(row._replace(last_heartbeat=self.clock()))

    async def open(self) -> Core:
        return await Core.open(self.path, None, self.policy, self.clock, connect=lambda row: self.worker)

    async def running(self, **fields: Any) -> Box:
        box = await self.core.creation.create("default", fields)
        return await self.core.boxes.start("default", box.id)

    async def after(self, seconds: float, *, beats: bool = True) -> None:
        """Let time pass, and see what is done about it; the worker sends heartbeats unless told otherwise."""
        self.clock.now += seconds
        if beats:
            await self.core.store.update_worker("w1", last_heartbeat=self.clock())
        await self.core.lifetimes.look()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    async def status(self, box: Box) -> str | None:
        row = await self.core.store.get_box(box.id)
        return row.status if row else None


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "c.db")


def test_an_idle_box_is_stopped_and_later_removed(site: Site) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60, auto_delete=100)
        await site.after(59)
        assert await site.status(box) == "running"
        assert "GetBox" not in site.worker.calls
        await site.after(1)
        assert await site.status(box) == "stopped"
        await site.after(99)
        assert await site.status(box) == "stopped"
        await site.after(1)
        assert await site.status(box) is None
        assert site.worker.states == {}

    asyncio.run(story())


def test_without_a_wish_a_box_stays(site: Site) -> None:
    async def story() -> None:
        box = await site.running()
        await site.after(1e6)
        assert await site.status(box) == "running"
        await site.core.boxes.stop("default", box.id, None)
        await site.after(1e6)
        assert await site.status(box) == "stopped"

    asyncio.run(story())


def test_the_operators_defaults_hold_unless_the_box_says_otherwise(tmp_path: Path) -> None:
    site = Site(tmp_path / "c.db", Policy(default_auto_stop=10, default_auto_delete=20))

    async def story() -> None:
        plain = await site.running()
        never = await site.running(auto_stop=0, auto_delete=0)
        longer = await site.running(auto_pause=30)
        assert (longer.spec.auto_stop, longer.spec.auto_delete) == (30, 20)
        await site.after(10)
        assert [await site.status(box) for box in (plain, never, longer)] == ["stopped", "running", "running"]
        await site.after(20)
        assert [await site.status(box) for box in (plain, never, longer)] == [None, "running", "stopped"]

    asyncio.run(story())


def test_two_names_of_one_wish_must_agree(site: Site) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="auto_pause"):
        asyncio.run(site.running(auto_stop=1, auto_pause=2))
    assert asyncio.run(site.running(auto_stop=1, auto_pause=1)).spec.auto_stop == 1


def test_use_holds_the_stop_off_and_the_time_counts_from_its_end(site: Site) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)
        async with site.core.schedule.use(box):
            await site.after(1000)
            assert await site.status(box) == "running"
            await site.after(1000)
        await site.after(59)
        assert await site.status(box) == "running"
        await site.after(1)
        assert await site.status(box) == "stopped"

    asyncio.run(story())


def test_a_command_that_nobody_watches_holds_the_stop_off(site: Site) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)
        await site.core.executions.start("default", box.id, {"command": "sleep"})
        site.worker.live = 1
        for _ in range(3):
            await site.after(60)
            assert await site.status(box) == "running"
        site.worker.live, site.worker.idle = 0, 45.0  # it ended 45 seconds ago
        await site.after(60)
        assert await site.core.store.next_deadline(0) == site.clock() + 15
        site.worker.idle = 60.0
        await site.after(15)
        assert await site.status(box) == "stopped"

    asyncio.run(story())


def test_a_command_that_comes_while_the_worker_is_asked_wins(site: Site) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)

        async def exec_in_between() -> None:
            await users.enter_async_context(site.core.schedule.use(box))

        async with AsyncExitStack() as users:
            site.worker.before["GetBox"] = exec_in_between
            await site.after(60)
            assert await site.status(box) == "running"
            assert "StopBox" not in site.worker.calls

    asyncio.run(story())


def test_a_command_that_comes_during_the_stop_starts_the_box_again(site: Site) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)
        begun: list[asyncio.Task[Any]] = []

        async def exec_now() -> None:
            start = site.core.executions.start("default", box.id, {"command": "true"})
            begun.append(asyncio.ensure_future(start))
            await asyncio.sleep(0)

        site.worker.before["StopBox"] = exec_now
        await site.after(60)
        assert site.worker.calls[-3:] == ["StopBox", "StartBox", "StartExecution"]
        assert await site.status(box) == "running"
        assert begun[0].exception() is None

    asyncio.run(story())


def test_without_auto_resume_a_stopped_box_takes_no_command(site: Site) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60, auto_resume=False)
        await site.after(60)
        with pytest.raises(errors.StoppedError):
            await site.core.executions.start("default", box.id, {"command": "true"})
        await site.core.boxes.start("default", box.id)
        await site.core.executions.start("default", box.id, {"command": "true"})

    asyncio.run(story())


def test_starting_a_running_box_is_use(site: Site) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)
        await site.after(59)
        await site.core.boxes.start("default", box.id)
        await site.after(59)
        assert await site.status(box) == "running"
        await site.after(1)
        assert await site.status(box) == "stopped"

    asyncio.run(story())


def test_a_box_that_is_started_again_is_not_removed(site: Site) -> None:
    async def story() -> None:
        box = await site.running(auto_delete=10)
        await site.core.boxes.stop("default", box.id, None)
        await site.after(9)
        await site.core.boxes.start("default", box.id)
        await site.after(100)
        assert await site.status(box) == "running"

    asyncio.run(story())


def test_a_transfer_holds_the_removal_off(site: Site) -> None:
    async def story() -> None:
        box = await site.running(auto_delete=10)
        box = await site.core.boxes.stop("default", box.id, None)
        async with site.core.schedule.use(box):
            await site.after(10)
            assert await site.status(box) == "stopped"
        await site.after(0)
        assert await site.status(box) is None

    asyncio.run(story())


def test_a_worker_that_does_not_answer_is_asked_again(site: Site) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)
        site.worker.down = True
        await site.after(60)
        assert await site.status(box) == "running"
        site.worker.down = False
        await site.after(RETRY_SECONDS - 1)
        assert await site.status(box) == "running"
        await site.after(1)
        assert await site.status(box) == "stopped"

    asyncio.run(story())


def test_a_worker_that_is_gone_is_not_asked_until_it_is_back(site: Site) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)
        site.worker.calls.clear()
        await site.after(3600, beats=False)
        await site.after(3600, beats=False)
        assert site.worker.calls == []
        await site.after(RETRY_SECONDS)
        assert await site.status(box) == "stopped"

    asyncio.run(story())


def test_deadlines_outlive_the_coordinator(site: Site) -> None:
    async def story() -> None:
        idle = await site.running(auto_stop=60)
        gone = await site.running(auto_delete=60)
        await site.core.boxes.stop("default", gone.id, None)
        await site.core.store.close()
        site.clock.now += 3600
        site.core = await site.open()
        await site.after(0)
        assert (await site.status(idle), await site.status(gone)) == ("stopped", None)

    asyncio.run(story())


def test_the_keeper_wakes_for_a_deadline_that_is_earlier_than_its_next_look(tmp_path: Path) -> None:
    """In real time: it would sleep for a minute."""
    site = Site(tmp_path / "c.db", clock=time.time)

    async def story() -> None:
        stopped = asyncio.Event()

        async def on_stop() -> None:
            stopped.set()

        site.worker.before["StopBox"] = on_stop
        site.core.start()
        await asyncio.sleep(0)
        await site.running(auto_stop=1)
        await asyncio.wait_for(stopped.wait(), 30)
        await site.core.close()

    asyncio.run(story())


def test_counters(site: Site) -> None:
    async def story() -> None:
        box = await site.running()
        await site.core.executions.start("default", box.id, {"command": "true"})
        await site.core.boxes.stop("default", box.id, None)
        await site.core.boxes.start("default", box.id)
        await site.core.boxes.remove("default", box.id, force=True)
        site.worker.down = True
        with pytest.raises(errors.UpstreamUnavailableError):
            await site.core.creation.create("default", {})

    asyncio.run(story())
    assert Blocking(site.core.store).counters("default") == (1, 1, 1, 1, 0)
    assert Blocking(site.core.store).counters("other") == (0, 0, 0, 0, 0)
    Blocking(site.core.store).close()
    assert Blocking(asyncio.run(site.open()).store).counters("default") == (1, 1, 1, 1, 0)


def test_a_prefix_may_have_so_many_boxes(tmp_path: Path) -> None:
    site = Site(tmp_path / "c.db", Policy(max_boxes_per_prefix=2))

    async def story() -> None:
        boxes = [await site.core.creation.create("default", {}) for _ in range(2)]
        with pytest.raises(errors.ResourceExhaustedError, match="2 boxes"):
            await site.core.creation.create("default", {})
        await site.core.creation.create("other", {})
        await site.core.boxes.remove("default", boxes[0].id, force=False)
        await site.core.creation.create("default", {})

    asyncio.run(story())
