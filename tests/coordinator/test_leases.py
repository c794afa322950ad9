"""Leases of two coordinators on one database. The clock is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from boxlite_server import errors
from boxlite_server.coordinator import leases as module
from boxlite_server.coordinator.leases import TTL_SECONDS, Leases
from boxlite_server.coordinator.store import Store

NAME = "box/Ab0000000001"


class Site:
    """Two coordinators, `here` and `there`."""

    def __init__(self, here: Store, there: Store) -> None:
        self.store = here
        self.now = 1000.0
        self.here = Leases(here, self.clock, "here")
        self.there = Leases(there, self.clock, "there")

    def clock(self) -> float:
        return self.now

    async def is_free(self) -> bool:
        return not await self.store.is_leased("box/", self.now)


Story = Callable[[Site], Awaitable[None]]


@pytest.fixture(params=["sqlite", "postgresql"])
def tell(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Story], None]:
    where = tmp_path / "c.db" if request.param == "sqlite" else request.getfixturevalue("postgresql").new_database()

    def tell(story: Story) -> None:
        async def run() -> None:
            here = await Store.open(where)
            there = here if request.param == "sqlite" else await Store.open(where)
            try:
                await story(Site(here, there))
            finally:
                await here.close()
                await there.close()

        asyncio.run(run())

    return tell


def test_turns_come_in_the_order_of_asking(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        order: list[int] = []

        async def turn(number: int) -> None:
            async with site.here.hold(NAME, "it"):
                order.append(number)
                await asyncio.sleep(0)
                order.append(number)

        await asyncio.gather(*(turn(number) for number in range(5)))
        assert order == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert await site.is_free()

    tell(story)


def test_another_coordinator_waits(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        async def turn() -> None:
            async with site.there.hold(NAME, "it"):
                order.append("there")

        order: list[str] = []
        async with site.here.hold(NAME, "it"):
            task = asyncio.create_task(turn())
            await asyncio.wait([task], timeout=0.1)
            order.append("here")
        await task
        assert order == ["here", "there"]
        assert await site.is_free()

    tell(story)


@pytest.mark.parametrize("where", ["here", "there"])
def test_waiting_has_an_end(tell: Callable[[Story], None], where: str) -> None:
    async def story(site: Site) -> None:
        async with site.here.hold(NAME, "box x"):
            with pytest.raises(errors.BusyError, match="box x is busy"):
                async with getattr(site, where).hold(NAME, "box x", patience=0.01):
                    raise AssertionError
            assert await site.store.holds_lease(NAME, "here", site.now)
        async with getattr(site, where).hold(NAME, "box x", patience=0.01):
            pass

    tell(story)


@pytest.mark.parametrize("where", ["here", "there"])
def test_without_waiting(tell: Callable[[Story], None], where: str) -> None:
    async def story(site: Site) -> None:
        other: Leases = getattr(site, where)
        async with site.here.try_hold(NAME) as lease:
            assert lease
            assert await other.is_held(NAME)
            async with other.try_hold(NAME) as second:
                assert second is None
            assert await other.is_held(NAME)
        assert not await other.is_held(NAME)
        async with other.try_hold(NAME) as lease:
            assert lease

    tell(story)


def test_the_lease_of_one_who_died_ends(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        async with AsyncExitStack() as dead:
            lease = await dead.enter_async_context(site.here.hold(NAME, "it"))
            site.now += TTL_SECONDS - 0.1
            async with site.there.try_hold(NAME) as taken:
                assert taken is None
            site.now += 0.2
            async with site.there.try_hold(NAME) as taken:
                assert taken
                await site.here.renew()  # it was not dead, but stopped for a while
                assert lease.lost.is_set()
                with pytest.raises(errors.LeaseLostError):
                    async with site.here.writing(NAME):
                        raise AssertionError
                async with site.there.writing(NAME) as tx:
                    await tx.count("default", "boxes_failed")
            with pytest.raises(errors.LeaseLostError):  # nobody's now, but there was another
                async with site.here.writing(NAME):
                    raise AssertionError
        assert (await site.store.counters("default")).boxes_failed == 1

    tell(story)


def test_one_that_ran_out_is_kept_as_long_as_nobody_takes_it(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        async with site.here.hold(NAME, "it") as lease:
            site.now += 10 * TTL_SECONDS
            async with site.here.writing(NAME) as tx:
                await tx.count("default", "boxes_failed")
            await site.here.renew()
            assert not lease.lost.is_set()
            async with site.there.try_hold(NAME) as taken:
                assert taken is None

    tell(story)


def test_what_is_held_is_renewed_and_what_is_not_is_not(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        await site.store.acquire_lease("box/left", "here", site.now, site.now + TTL_SECONDS)
        async with site.here.hold(NAME, "it"):
            for _ in range(4):
                site.now += TTL_SECONDS / 3
                await site.here.renew()
            assert await site.there.is_held(NAME)
            assert not await site.there.is_held("box/left")

    tell(story)


def test_the_keeper_goes_on_when_the_database_fails(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.001)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.001)

    async def story(site: Site) -> None:
        calls = 0
        renewed = asyncio.Event()
        renew = site.store.renew_leases

        async def fail_once(*arguments: Any) -> set[str]:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise errors.DatabaseError("the disk is full")
            names = await renew(*arguments)
            if arguments[-1] == 1000.0 + 2 * TTL_SECONDS - 1:
                renewed.set()
            return names

        monkeypatch.setattr(site.store, "renew_leases", fail_once)
        site.here.start()
        async with site.here.hold(NAME, "it"):
            site.now += TTL_SECONDS - 1
            await asyncio.wait_for(renewed.wait(), 30)
            site.now += TTL_SECONDS - 1
            assert await site.there.is_held(NAME)
        await site.here.close()

    tell(story)


def test_one_that_is_broken_off_gives_its_lease_back(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        begun = asyncio.Event()

        async def hang(leases: Leases) -> None:
            async with leases.hold(NAME, "it"):
                begun.set()
                await asyncio.Event().wait()

        holder = asyncio.create_task(hang(site.here))
        await begun.wait()
        waiters = [asyncio.create_task(hang(leases)) for leases in (site.here, site.there)]
        await asyncio.wait(waiters, timeout=0.05)
        for task in (*waiters, holder):
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        assert await site.is_free()
        async with site.here.hold(NAME, "it", patience=0), site.there.hold("box/other", "it", patience=0):
            pass

    tell(story)


def test_one_that_is_broken_off_while_it_takes_a_lease_leaves_none(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement may have been carried out."""

    async def story(site: Site) -> None:
        acquire = site.store.acquire_lease

        async def without_answer(*arguments: Any) -> bool:
            await acquire(*arguments)
            raise asyncio.CancelledError

        with monkeypatch.context() as patch:
            patch.setattr(site.store, "acquire_lease", without_answer)
            with pytest.raises(asyncio.CancelledError):
                async with site.here.hold(NAME, "it"):
                    raise AssertionError
        assert await site.is_free()

    tell(story)


def test_one_that_cannot_be_given_back_runs_out(tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(site: Site) -> None:
        async def fail(*arguments: Any) -> None:
            raise errors.DatabaseError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(site.store, "release_lease", fail)
            async with site.here.hold(NAME, "it"):
                pass
        assert await site.there.is_held(NAME)
        await site.here.renew()
        site.now += TTL_SECONDS
        async with site.here.try_hold(NAME) as lease:
            assert lease

    tell(story)


def test_several_share_one(tell: Callable[[Story], None]) -> None:
    name = "use/Ab0000000001/here"

    async def story(site: Site) -> None:
        async with AsyncExitStack() as users:
            async with site.here.share(name), site.here.share(name):
                await users.enter_async_context(site.here.share(name))
                assert await site.there.is_any_held("use/Ab0000000001/")
            assert await site.there.is_any_held("use/Ab0000000001/")
            assert not await site.there.is_any_held("use/Ab0000000002/")
            await site.here.renew()
            site.now += TTL_SECONDS - 1
            await site.here.renew()
            site.now += TTL_SECONDS - 1
            assert await site.there.is_any_held("use/Ab0000000001/")
        assert not await site.there.is_any_held("use/Ab0000000001/")

        async def use() -> None:
            async with site.here.share(name):
                assert await site.there.is_any_held("use/Ab0000000001/")
                await asyncio.sleep(0)
                assert await site.there.is_any_held("use/Ab0000000001/")

        await asyncio.gather(*(use() for _ in range(10)))
        assert not await site.there.is_any_held("use/Ab0000000001/")

    tell(story)


def test_what_was_left_of_a_shared_one_is_used_again(tell: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        await site.store.acquire_lease("use/x/here", "here", site.now, site.now + TTL_SECONDS)
        async with site.here.share("use/x/here"):
            site.now += TTL_SECONDS - 1
            await site.here.renew()
            site.now += TTL_SECONDS - 1
            assert await site.there.is_any_held("use/x/")
        assert not await site.there.is_any_held("use/x/")

    tell(story)


def test_closing_waits_for_those_that_end_and_gives_back_the_rest(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)

    async def story(site: Site) -> None:
        order: list[str] = []

        async def end() -> None:
            async with site.here.hold("box/ends", "it"):
                await asyncio.sleep(0)
                async with site.here.writing("box/ends"):
                    order.append("written")

        async def wait() -> None:
            async with site.there.hold(NAME, "it"):
                order.append("taken")

        task = asyncio.create_task(end())
        await asyncio.sleep(0)
        async with AsyncExitStack() as stuck:
            await stuck.enter_async_context(site.here.hold(NAME, "it"))
            waiter = asyncio.create_task(wait())
            await site.here.close()
            await asyncio.gather(task, waiter)
            assert order == ["written", "taken"]
            with pytest.raises(errors.LeaseLostError):
                async with site.here.writing(NAME):
                    raise AssertionError
            with pytest.raises(errors.BusyError, match="stopping"):
                async with site.here.hold("box/new", "it"):
                    raise AssertionError

    tell(story)
