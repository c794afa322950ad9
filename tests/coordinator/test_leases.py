"""Leases of two coordinators on one database. The clock is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from support.clock import NOON
from support.coordinator_site import CoordinatorSite

from boxlite_server import errors
from boxlite_server.coordinator import leases as module
from boxlite_server.coordinator.leases import TTL_SECONDS, Leases

NAME = "box/Ab0000000001"


Story = Callable[[CoordinatorSite], Awaitable[None]]


def leases_of(site: CoordinatorSite, where: str) -> Leases:
    """The leases of the first coordinator, `here`, or of the other one, `there`."""
    return {"here": site.core, "there": site.other}[where].leases


async def is_free(site: CoordinatorSite) -> bool:
    return not await site.core.store.is_leased("box/", site.clock())


def test_turns_come_in_the_order_of_asking(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        order: list[int] = []

        async def turn(number: int) -> None:
            async with site.core.leases.hold(NAME, "it"):
                order.append(number)
                await asyncio.sleep(0)
                order.append(number)

        await asyncio.gather(*(turn(number) for number in range(5)))
        assert order == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert await is_free(site)

    tell_both(story)


def test_another_coordinator_waits(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        async def turn() -> None:
            async with site.other.leases.hold(NAME, "it"):
                order.append("there")

        order: list[str] = []
        async with site.core.leases.hold(NAME, "it"):
            task = asyncio.create_task(turn())
            await asyncio.wait([task], timeout=0.1)
            order.append("here")
        await task
        assert order == ["here", "there"]
        assert await is_free(site)

    tell_both(story)


@pytest.mark.parametrize("where", ["here", "there"])
def test_waiting_has_an_end(tell_both: Callable[[Story], None], where: str) -> None:
    async def story(site: CoordinatorSite) -> None:
        async with site.core.leases.hold(NAME, "box x"):
            with pytest.raises(errors.BusyError, match="box x is busy"):
                async with leases_of(site, where).hold(NAME, "box x", patience=0.01):
                    raise AssertionError
            assert await site.core.store.holds_lease(NAME, site.core.leases.holder, site.clock.now)
        async with leases_of(site, where).hold(NAME, "box x", patience=0.01):
            pass

    tell_both(story)


@pytest.mark.parametrize("where", ["here", "there"])
def test_without_waiting(tell_both: Callable[[Story], None], where: str) -> None:
    async def story(site: CoordinatorSite) -> None:
        other: Leases = leases_of(site, where)
        async with site.core.leases.try_hold(NAME) as lease:
            assert lease
            assert await other.is_held(NAME)
            async with other.try_hold(NAME) as second:
                assert second is None
            assert await other.is_held(NAME)
        assert not await other.is_held(NAME)
        async with other.try_hold(NAME) as lease:
            assert lease

    tell_both(story)


def test_the_lease_of_one_who_died_ends(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        async with AsyncExitStack() as dead:
            lease = await dead.enter_async_context(site.core.leases.hold(NAME, "it"))
            site.clock.now += TTL_SECONDS - 0.1
            async with site.other.leases.try_hold(NAME) as taken:
                assert taken is None
            site.clock.now += 0.2
            async with site.other.leases.try_hold(NAME) as taken:
                assert taken
                await site.core.leases.renew()  # the first coordinator was not dead, but had stopped for a while
                assert lease.lost.done()
                with pytest.raises(errors.LeaseLostError):
                    async with site.core.leases.writing(NAME):
                        raise AssertionError
                async with site.other.leases.writing(NAME) as tx:
                    await tx.count("default", "boxes_failed")
            with pytest.raises(errors.LeaseLostError):  # free now, but the other one has held it since
                async with site.core.leases.writing(NAME):
                    raise AssertionError
        assert (await site.core.store.counters("default")).boxes_failed == 1

    tell_both(story)


def test_one_that_ran_out_is_kept_as_long_as_nobody_takes_it(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        async with site.core.leases.hold(NAME, "it") as lease:
            site.clock.now += 10 * TTL_SECONDS
            async with site.core.leases.writing(NAME) as tx:
                await tx.count("default", "boxes_failed")
            await site.core.leases.renew()
            assert not lease.lost.done()
            async with site.other.leases.try_hold(NAME) as taken:
                assert taken is None

    tell_both(story)


def test_what_is_held_is_renewed_and_what_is_not_is_not(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.core.store.acquire_lease(
            "box/left", site.core.leases.holder, site.clock.now, site.clock.now + TTL_SECONDS
        )
        async with site.core.leases.hold(NAME, "it"):
            for _ in range(4):
                site.clock.now += TTL_SECONDS / 3
                await site.core.leases.renew()
            assert await site.other.leases.is_held(NAME)
            assert not await site.other.leases.is_held("box/left")

    tell_both(story)


def test_the_keeper_goes_on_when_the_database_fails(
    tell_both: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.001)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.001)

    async def story(site: CoordinatorSite) -> None:
        calls = 0
        renewed = asyncio.Event()
        renew = site.core.store.renew_leases

        async def fail_once(*arguments: Any) -> set[str]:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise errors.DatabaseError("the disk is full")
            names = await renew(*arguments)
            if arguments[-1] == NOON + 2 * TTL_SECONDS - 1:
                renewed.set()
            return names

        monkeypatch.setattr(site.core.store, "renew_leases", fail_once)
        site.core.leases.start()
        async with site.core.leases.hold(NAME, "it"):
            site.clock.now += TTL_SECONDS - 1
            await asyncio.wait_for(renewed.wait(), 30)
            site.clock.now += TTL_SECONDS - 1
            assert await site.other.leases.is_held(NAME)
        await site.core.leases.close()

    tell_both(story)


def test_one_that_is_broken_off_gives_its_lease_back(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        begun = asyncio.Event()

        async def hang(leases: Leases) -> None:
            async with leases.hold(NAME, "it"):
                begun.set()
                await asyncio.Event().wait()

        holder = asyncio.create_task(hang(site.core.leases))
        await begun.wait()
        waiters = [asyncio.create_task(hang(leases)) for leases in (site.core.leases, site.other.leases)]
        await asyncio.wait(waiters, timeout=0.05)
        for task in (*waiters, holder):
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        assert await is_free(site)
        async with site.core.leases.hold(NAME, "it", patience=0), site.other.leases.hold("box/other", "it", patience=0):
            pass

    tell_both(story)


def test_one_that_is_broken_off_while_it_takes_a_lease_leaves_none(
    tell_both: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement may have been carried out."""

    async def story(site: CoordinatorSite) -> None:
        acquire = site.core.store.acquire_lease

        async def without_answer(*arguments: Any) -> bool:
            await acquire(*arguments)
            raise asyncio.CancelledError

        with monkeypatch.context() as patch:
            patch.setattr(site.core.store, "acquire_lease", without_answer)
            with pytest.raises(asyncio.CancelledError):
                async with site.core.leases.hold(NAME, "it"):
                    raise AssertionError
        assert await is_free(site)

    tell_both(story)


def test_one_that_cannot_be_given_back_runs_out(
    tell_both: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(site: CoordinatorSite) -> None:
        async def fail(*arguments: Any) -> None:
            raise errors.DatabaseError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(site.core.store, "release_lease", fail)
            async with site.core.leases.hold(NAME, "it"):
                pass
        assert await site.other.leases.is_held(NAME)
        await site.core.leases.renew()
        site.clock.now += TTL_SECONDS
        async with site.core.leases.try_hold(NAME) as lease:
            assert lease

    tell_both(story)


def test_several_share_one(tell_both: Callable[[Story], None]) -> None:
    name = "use/Ab0000000001/here"

    async def story(site: CoordinatorSite) -> None:
        async with AsyncExitStack() as users:
            async with site.core.leases.share(name), site.core.leases.share(name):
                await users.enter_async_context(site.core.leases.share(name))
                assert await site.other.leases.is_any_held("use/Ab0000000001/")
            assert await site.other.leases.is_any_held("use/Ab0000000001/")
            assert not await site.other.leases.is_any_held("use/Ab0000000002/")
            await site.core.leases.renew()
            site.clock.now += TTL_SECONDS - 1
            await site.core.leases.renew()
            site.clock.now += TTL_SECONDS - 1
            assert await site.other.leases.is_any_held("use/Ab0000000001/")
        assert not await site.other.leases.is_any_held("use/Ab0000000001/")

        async def use() -> None:
            async with site.core.leases.share(name):
                assert await site.other.leases.is_any_held("use/Ab0000000001/")
                await asyncio.sleep(0)
                assert await site.other.leases.is_any_held("use/Ab0000000001/")

        await asyncio.gather(*(use() for _ in range(10)))
        assert not await site.other.leases.is_any_held("use/Ab0000000001/")

    tell_both(story)


def test_what_was_left_of_a_shared_one_is_used_again(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.core.store.acquire_lease(
            "use/x/here", site.core.leases.holder, site.clock.now, site.clock.now + TTL_SECONDS
        )
        async with site.core.leases.share("use/x/here"):
            site.clock.now += TTL_SECONDS - 1
            await site.core.leases.renew()
            site.clock.now += TTL_SECONDS - 1
            assert await site.other.leases.is_any_held("use/x/")
        assert not await site.other.leases.is_any_held("use/x/")

    tell_both(story)


def test_closing_waits_for_those_that_end_and_gives_back_the_rest(
    tell_both: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)

    async def story(site: CoordinatorSite) -> None:
        order: list[str] = []

        async def end() -> None:
            async with site.core.leases.hold("box/ends", "it"):
                await asyncio.sleep(0)
                async with site.core.leases.writing("box/ends"):
                    order.append("written")

        async def wait() -> None:
            async with site.other.leases.hold(NAME, "it"):
                order.append("taken")

        task = asyncio.create_task(end())
        await asyncio.sleep(0)
        async with AsyncExitStack() as stuck:
            await stuck.enter_async_context(site.core.leases.hold(NAME, "it"))
            waiter = asyncio.create_task(wait())
            await site.core.leases.close()
            await asyncio.gather(task, waiter)
            assert order == ["written", "taken"]
            with pytest.raises(errors.LeaseLostError):
                async with site.core.leases.writing(NAME):
                    raise AssertionError
            with pytest.raises(errors.BusyError, match="stopping"):
                async with site.core.leases.hold("box/new", "it"):
                    raise AssertionError

    tell_both(story)
