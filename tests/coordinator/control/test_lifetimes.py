"""Boxes that stop and go by themselves: what is due when, and what holds it off. The clock is the test's."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from support.blocking import Blocking
from support.coordinator_site import CoordinatorSite
from support.fake_worker import EVERY

from boxlite_server import errors
from boxlite_server.coordinator.control.lifetimes import RETRY_SECONDS
from boxlite_server.coordinator.limits import Policy
from boxlite_server.coordinator.store.counters import Counters

NOTHING = Policy()


def opened(path: Path, policy: Policy = NOTHING, clock: Any = None) -> CoordinatorSite:
    """A coordinator with one worker."""
    site = CoordinatorSite(path, policy=policy, clock=clock, control="lifetimes")
    return asyncio.run(site.open(site.one))


@pytest.fixture
def site(tmp_path: Path) -> CoordinatorSite:
    return opened(tmp_path / "c.db")


def test_an_idle_box_is_stopped_and_later_removed(site: CoordinatorSite) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60, auto_delete=100)
        await site.look(59)
        assert await site.status(box) == "running"
        assert "GetBox" not in site.one.calls
        await site.look(1)
        assert await site.status(box) == "stopped"
        await site.look(99)
        assert await site.status(box) == "stopped"
        await site.look(1)
        assert await site.status(box) is None
        assert site.one.boxes == {}

    asyncio.run(story())


def test_without_a_wish_a_box_stays(site: CoordinatorSite) -> None:
    async def story() -> None:
        box = await site.running()
        await site.look(1e6)
        assert await site.status(box) == "running"
        await site.core.boxes.stop("default", box.id, None)
        await site.look(1e6)
        assert await site.status(box) == "stopped"

    asyncio.run(story())


def test_the_operators_defaults_hold_unless_the_box_says_otherwise(tmp_path: Path) -> None:
    site = opened(tmp_path / "c.db", Policy(default_auto_stop=10, default_auto_delete=20))

    async def story() -> None:
        plain = await site.running()
        never = await site.running(auto_stop=0, auto_delete=0)
        longer = await site.running(auto_pause=30)
        assert (longer.spec.auto_stop, longer.spec.auto_delete) == (30, 20)
        await site.look(10)
        assert [await site.status(box) for box in (plain, never, longer)] == ["stopped", "running", "running"]
        await site.look(20)
        assert [await site.status(box) for box in (plain, never, longer)] == [None, "running", "stopped"]

    asyncio.run(story())


def test_two_names_of_one_wish_must_agree(site: CoordinatorSite) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="auto_pause"):
        asyncio.run(site.running(auto_stop=1, auto_pause=2))
    assert asyncio.run(site.running(auto_stop=1, auto_pause=1)).spec.auto_stop == 1


def test_use_holds_the_stop_off_and_the_time_counts_from_its_end(site: CoordinatorSite) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)
        async with site.core.schedule.use(box):
            await site.look(1000)
            assert await site.status(box) == "running"
            await site.look(1000)
        await site.look(59)
        assert await site.status(box) == "running"
        await site.look(1)
        assert await site.status(box) == "stopped"

    asyncio.run(story())


def test_a_command_that_nobody_watches_holds_the_stop_off(site: CoordinatorSite) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)
        await site.core.executions.start("default", box.id, {"command": "sleep"})
        site.one.live_executions = 1
        for _ in range(3):
            await site.look(60)
            assert await site.status(box) == "running"
        site.one.live_executions, site.one.idle_seconds = 0, 45.0  # it ended 45 seconds ago
        await site.look(60)
        assert await site.core.store.next_deadline(0) == site.clock() + 15
        site.one.idle_seconds = 60.0
        await site.look(15)
        assert await site.status(box) == "stopped"

    asyncio.run(story())


def test_a_command_that_comes_while_the_worker_is_asked_wins(site: CoordinatorSite) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)

        async def exec_in_between() -> None:
            await users.enter_async_context(site.core.schedule.use(box))

        async with AsyncExitStack() as users:
            site.one.before["GetBox"] = exec_in_between
            await site.look(60)
            assert await site.status(box) == "running"
            assert "StopBox" not in site.one.calls

    asyncio.run(story())


def test_a_command_that_comes_during_the_stop_starts_the_box_again(site: CoordinatorSite) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)
        begun: list[asyncio.Task[Any]] = []

        async def exec_now() -> None:
            start = site.core.executions.start("default", box.id, {"command": "true"})
            begun.append(asyncio.ensure_future(start))
            await asyncio.sleep(0)

        site.one.before["StopBox"] = exec_now
        await site.look(60)
        assert site.one.calls[-3:] == ["StopBox", "StartBox", "StartExecution"]
        assert await site.status(box) == "running"
        assert begun[0].exception() is None

    asyncio.run(story())


def test_a_box_that_ends_before_its_command_is_started_once(site: CoordinatorSite) -> None:
    async def story() -> None:
        box = await site.running()
        await site.core.boxes.stop("default", box.id, None)
        site.one.refuse("StartExecution", errors.StoppedError("its main command ended"))
        calls = len(site.one.calls)
        with pytest.raises(errors.StoppedError):
            await site.core.executions.start("default", box.id, {"command": "true"})
        assert site.one.calls[calls:] == ["StartBox", "StartExecution"]

    asyncio.run(story())


def test_without_auto_resume_a_stopped_box_takes_no_command(site: CoordinatorSite) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60, auto_resume=False)
        await site.look(60)
        with pytest.raises(errors.StoppedError):
            await site.core.executions.start("default", box.id, {"command": "true"})
        await site.core.boxes.start("default", box.id)
        await site.core.executions.start("default", box.id, {"command": "true"})

    asyncio.run(story())


def test_starting_a_running_box_is_use(site: CoordinatorSite) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)
        await site.look(59)
        await site.core.boxes.start("default", box.id)
        await site.look(59)
        assert await site.status(box) == "running"
        await site.look(1)
        assert await site.status(box) == "stopped"

    asyncio.run(story())


def test_a_box_that_is_started_again_is_not_removed(site: CoordinatorSite) -> None:
    async def story() -> None:
        box = await site.running(auto_delete=10)
        await site.core.boxes.stop("default", box.id, None)
        await site.look(9)
        await site.core.boxes.start("default", box.id)
        await site.look(100)
        assert await site.status(box) == "running"

    asyncio.run(story())


def test_a_transfer_holds_the_removal_off(site: CoordinatorSite) -> None:
    async def story() -> None:
        box = await site.running(auto_delete=10)
        box = await site.core.boxes.stop("default", box.id, None)
        async with site.core.schedule.use(box):
            await site.look(10)
            assert await site.status(box) == "stopped"
        await site.look(0)
        assert await site.status(box) is None

    asyncio.run(story())


def test_a_worker_that_does_not_answer_is_asked_again(site: CoordinatorSite) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)
        site.one.refuse(EVERY, errors.UpstreamUnavailableError("down"))
        await site.look(60)
        assert await site.status(box) == "running"
        site.one.recover()
        await site.look(RETRY_SECONDS - 1)
        assert await site.status(box) == "running"
        await site.look(1)
        assert await site.status(box) == "stopped"

    asyncio.run(story())


def test_a_worker_that_is_gone_is_not_asked_until_it_is_back(
    site: CoordinatorSite, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        box = await site.running(auto_stop=60)
        site.one.calls.clear()
        await site.look(3600, beats=False)
        await site.look(3600, beats=False)
        assert site.one.calls == []
        assert "cannot be acted on" not in caplog.text
        await site.look(RETRY_SECONDS)
        assert await site.status(box) == "stopped"

    asyncio.run(story())


def test_deadlines_outlive_the_coordinator(site: CoordinatorSite) -> None:
    async def story() -> None:
        idle = await site.running(auto_stop=60)
        gone = await site.running(auto_delete=60)
        await site.core.boxes.stop("default", gone.id, None)
        await site.core.store.close()
        site.clock.now += 3600
        await site.open()
        await site.look(0)
        assert (await site.status(idle), await site.status(gone)) == ("stopped", None)

    asyncio.run(story())


def test_the_keeper_wakes_for_a_deadline_that_is_earlier_than_its_next_look(tmp_path: Path) -> None:
    """This test runs in real time: without the wake-up, the keeper would sleep for a minute."""
    site = opened(tmp_path / "c.db", clock=time.time)

    async def story() -> None:
        stopped = asyncio.Event()

        async def on_stop() -> None:
            stopped.set()

        site.one.before["StopBox"] = on_stop
        site.core.start()
        await asyncio.sleep(0)
        await site.running(auto_stop=1)
        await asyncio.wait_for(stopped.wait(), 30)
        await site.close()

    asyncio.run(story())


def test_counters(site: CoordinatorSite) -> None:
    async def story() -> None:
        box = await site.running()
        await site.core.executions.start("default", box.id, {"command": "true"})
        await site.core.boxes.stop("default", box.id, None)
        await site.core.boxes.start("default", box.id)
        await site.core.boxes.remove("default", box.id, force=True)
        site.one.refuse(EVERY, errors.UpstreamUnavailableError("down"))
        with pytest.raises(errors.UpstreamUnavailableError):
            await site.core.creation.create("default", {})
        assert (await site.core.counting.counters("default"))[:4] == (1, 1, 1, 1)

    asyncio.run(story())
    assert Blocking(site.core.store).counters("other") == Counters()
    Blocking(site.core.store).close()
    assert Blocking(asyncio.run(site.open()).core.store).counters("default")[:4] == (1, 1, 1, 1)


def test_a_prefix_may_have_so_many_boxes(tmp_path: Path) -> None:
    site = opened(tmp_path / "c.db", Policy(max_boxes_per_prefix=2))

    async def story() -> None:
        boxes = [await site.core.creation.create("default", {}) for _ in range(2)]
        with pytest.raises(errors.ResourceExhaustedError, match="the quota boxes"):
            await site.core.creation.create("default", {})
        await site.core.creation.create("other", {})
        await site.core.boxes.remove("default", boxes[0].id, force=False)
        await site.core.creation.create("default", {})

    asyncio.run(story())
