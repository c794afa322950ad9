"""Boxes whose name, labels, lifetimes or size change, and clients that wait for a change."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.coordinator_site import CoordinatorSite
from support.fake_worker import id_of
from support.tasks import settle

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator import spec
from boxlite_server.coordinator.domain import boxes
from boxlite_server.coordinator.domain.warm import pool_of
from boxlite_server.coordinator.store import Box, Quotas


async def load(site: CoordinatorSite) -> tuple[int, int]:
    found = await site.core.store.load(id_of("one"))
    return found.cpus, found.memory_mib


async def update(site: CoordinatorSite, box: Box, **changes: Any) -> Box:
    return await site.core.boxes.update("default", box.id, spec.changes(changes))


async def broken_off(site: CoordinatorSite, worker: Any, box: Box) -> None:
    """Have the box's memory grow to 1024 MiB at its worker, whose answer is lost."""
    worker.lose("UpdateBox", after=True)
    with pytest.raises(errors.UnreachableError):
        await update(site, box, memory_mib=1024)
    worker.recover()


def test_what_is_not_named_stays(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        box = await site.create(name="web", labels={"a": "1"}, auto_stop=60, auto_resume=False)
        changed = await update(site, box, labels={"b": "2"}, name=None)
        assert (changed.name, changed.labels, changed.spec.auto_stop) == ("web", {"b": "2"}, 60)
        renamed = await update(site, box, name="shop", auto_pause=30, auto_delete=5)
        assert (renamed.name, renamed.labels) == ("shop", {"b": "2"})
        assert (renamed.spec.auto_stop, renamed.spec.auto_delete, renamed.spec.auto_resume) == (30, 5, False)
        assert await site.core.boxes.get("default", "shop") == renamed
        assert site.one.calls == ["CreateBox"]
        with pytest.raises(errors.NotFoundError):
            await site.core.boxes.get("default", "web")

    tell(story)


def test_a_name_that_is_taken_changes_nothing(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        await site.create(name="web")
        box = await site.create(name="shop")
        with pytest.raises(errors.AlreadyExistsError):
            await update(site, box, name="web", memory_mib=1024, labels={"a": "1"})
        assert await site.core.boxes.get("default", box.id) == box
        assert await update(site, box, name="shop", labels={"a": "1"})

    tell(story)


def test_a_field_that_cannot_be_changed_is_named() -> None:
    for name in ("image", "env", "volumes", "status", "start", "disk_size_gb", "secrets"):
        with pytest.raises(errors.UnsupportedError, match=f"'{name}'"):
            spec.changes({name: "x", "labels": {}})
    assert spec.changes({"unheard_of": 1, "auto_pause": 0}) == {"auto_stop": 0}
    with pytest.raises(errors.InvalidArgumentError):
        spec.changes({"auto_stop": 1, "auto_pause": 2})


def test_a_box_that_grows_reserves_its_room_first(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create(cpus=1, memory_mib=512)
        begun, go = one.hold("UpdateBox")
        growing = asyncio.create_task(update(site, box, cpus=2, memory_mib=4096))
        await begun.wait()
        assert await load(site) == (2, 4096)
        with pytest.raises(errors.UpstreamUnavailableError, match="memory"):
            await site.create(memory_mib=8192)
        go.set()
        changed = await growing
        assert (changed.cpus, changed.memory_mib, one.sizes[box.id]) == (2, 4096, (2, 4096))
        assert (changed.spec.cpus, changed.spec.memory_mib) == (2, 4096)

    tell(story)


def test_a_box_that_shrinks_gives_its_room_back_last(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create(cpus=2, memory_mib=4096)
        begun, go = one.hold("UpdateBox")
        shrinking = asyncio.create_task(update(site, box, cpus=1, memory_mib=512))
        await begun.wait()
        assert await load(site) == (2, 4096)
        go.set()
        await shrinking
        assert await load(site) == (1, 512)

    tell(story)


def test_a_worker_without_room_and_a_quota_refuse(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create(memory_mib=4096)
        await site.create(memory_mib=2048)
        with pytest.raises(errors.ResourceExhaustedError, match="cannot grow"):
            await update(site, box, memory_mib=6500, labels={"a": "1"})
        await site.core.store.put_quotas("default", Quotas(cpus=2))
        with pytest.raises(errors.QuotaExceededError, match="the quota cpus"):
            await update(site, box, cpus=2)
        assert await site.core.boxes.get("default", box.id) == box
        assert "UpdateBox" not in one.calls
        assert (await update(site, box, memory_mib=6000)).memory_mib == 6000

    tell(story)


def test_a_size_that_the_worker_refuses_is_not_reserved(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create(memory_mib=512)
        one.refuse("UpdateBox", errors.InvalidStateError("it uses more"))
        with pytest.raises(errors.InvalidStateError, match="uses more"):
            await update(site, box, cpus=2, memory_mib=1024, labels={"a": "1"})
        now = await site.core.boxes.get("default", box.id)
        assert (now.cpus, now.memory_mib, now.labels, now.spec) == (1, 512, {}, box.spec)

    tell(story)


@pytest.mark.parametrize("after", [False, True])
def test_a_size_of_which_nobody_knows_is_undone_when_the_worker_answers_again(tell: Any, after: bool) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create(memory_mib=512)
        one.lose("UpdateBox", after=after)
        with pytest.raises(errors.UnreachableError):
            await update(site, box, memory_mib=1024)
        assert await load(site) == (1, 1024)
        one.recover()
        await site.look()
        assert (await load(site), one.sizes[box.id]) == ((1, 512), (1, 512))
        now = await site.core.boxes.get("default", box.id)
        assert (now.spec, now.resizing) == (box.spec, False)
        calls = len(one.calls)
        await site.look()
        assert "UpdateBox" not in one.calls[calls:]

    tell(story)


def test_a_size_that_cannot_be_undone_is_kept(tell: Any) -> None:
    """The box has begun to use what it was given."""

    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create(memory_mib=512)
        await broken_off(site, one, box)
        one.used[box.id] = 600
        await site.look()
        now = await site.core.boxes.get("default", box.id)
        assert (await load(site), one.sizes[box.id]) == ((1, 1024), (1, 1024))
        assert (now.memory_mib, now.spec.memory_mib, now.resizing) == (1024, 1024, False)

    tell(story)


def test_a_size_of_a_box_that_has_gone_is_undone_too(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create(memory_mib=512)
        await broken_off(site, one, box)
        del one.boxes[box.id]
        await site.look()
        now = await site.core.boxes.get("default", box.id)
        assert (now.status, now.memory_mib, now.resizing, await load(site)) == ("failed", 512, False, (0, 0))

    tell(story)


def test_a_name_that_is_taken_meanwhile_leaves_the_size_as_it_was(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create(memory_mib=512)
        begun, go = one.hold("UpdateBox")
        changing = asyncio.create_task(update(site, box, name="web", memory_mib=1024))
        await begun.wait()
        await site.create(name="web")
        go.set()
        with pytest.raises(errors.AlreadyExistsError):
            await changing
        await site.look()
        assert one.sizes[box.id] == (1, 512)
        assert (await site.core.boxes.get("default", box.id)).memory_mib == 512

    tell(story)


def test_a_stopped_box_reserves_its_new_size_at_its_start(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create(start=True, memory_mib=512)
        await site.core.boxes.stop("default", box.id, None)
        other = await site.create(memory_mib=7000)  # which leaves no room for the new size
        await update(site, box, memory_mib=2048)
        await site.core.boxes.remove("default", other.id, force=True)
        assert (await load(site), one.sizes[box.id]) == ((0, 0), (1, 2048))
        await site.core.boxes.start("default", box.id)
        assert await load(site) == (1, 2048)

    tell(story)


def test_a_box_that_is_being_removed_is_not_changed(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create()
        one.lose("RemoveBox", after=False)
        with pytest.raises(errors.UnreachableError):
            await site.core.boxes.remove("default", box.id, force=False)
        one.recover()
        with pytest.raises(errors.InvalidStateError, match="is being removed"):
            await update(site, box, labels={"a": "1"})

    tell(story)


def test_lifetimes_that_change_move_the_deadline(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        box = await site.create(start=True)
        store = site.core.store
        assert await store.deadline(box.id) is None
        await update(site, box, auto_stop=60)
        assert await store.deadline(box.id) == site.clock() + 60
        await update(site, box, auto_stop=0)
        assert await store.deadline(box.id) is None

    tell(story)


def test_a_box_that_grows_on_a_full_worker_gets_the_room_of_warm_boxes(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        one.images = [pb.Image(reference="docker.io/library/alpine:latest", image_id=one.image_id)]
        async with site.core.store.transaction() as tx:
            await tx.put_warm_pools([pool_of("alpine", 2, memory_mib=2048)])
        for _ in range(2):
            await site.pass_time(5)
            await site.core.pools.look()
            await settle()
        box = await site.create(memory_mib=1024)
        assert len(await site.core.store.warm_boxes()) == 2
        assert (await update(site, box, memory_mib=5000)).memory_mib == 5000
        assert len(await site.core.store.warm_boxes()) == 1
        with pytest.raises(errors.ResourceExhaustedError, match="cannot grow"):
            await update(site, box, memory_mib=8193)

    tell(story)


# ---- waiting --------------------------------------------------------------------------------------------


def counted(site: CoordinatorSite, monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[str]:
    """The boxes whose rows are about to be looked at by those who wait."""
    looks = asyncio.Queue[str]()
    get_box = site.core.store.get_box

    async def noted(box_id: str) -> Box | None:
        looks.put_nowait(box_id)
        return await get_box(box_id)

    monkeypatch.setattr(site.core.store, "get_box", noted)
    return looks


async def wait(site: CoordinatorSite, box: Box, until: boxes.Awaited, seconds: float = 0) -> tuple[bool, str | None]:
    is_reached, seen = await site.core.boxes.wait("default", box.id, until, seconds, asyncio.Event())
    return is_reached, seen and seen.status


def test_who_waits_is_woken_by_the_change_and_reads_nothing_meanwhile(
    tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        box = await site.create(start=True)
        stopping, looks = asyncio.Event(), counted(site, monkeypatch)
        waits = [
            asyncio.create_task(site.core.boxes.wait("default", box.id, boxes.Awaited.STOPPED, 600, stopping))
            for _ in range(3)
        ]
        for _ in waits:
            await looks.get()
        await site.core.boxes.stop("default", box.id, None)
        for is_reached, seen in await asyncio.wait_for(asyncio.gather(*waits), 60):
            assert (is_reached, seen and seen.status) == (True, "stopped")
        assert looks.qsize() < 20

    tell(story)


def test_who_waits_at_another_coordinator_is_woken_too(tell_both: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        box = await site.create(start=True)
        waiting = site.other.boxes.wait("default", box.id, boxes.Awaited.REMOVED, 600, asyncio.Event())
        wait = asyncio.create_task(waiting)
        await site.core.boxes.remove("default", box.id, force=True)
        assert await asyncio.wait_for(wait, 60) == (True, None)

    tell_both(story)


def test_nobody_waits_for_a_coordinator_that_stops(tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        box = await site.create(start=True)
        stopping, looks = asyncio.Event(), counted(site, monkeypatch)
        wait = asyncio.create_task(site.core.boxes.wait("default", box.id, boxes.Awaited.REMOVED, 600, stopping))
        await looks.get()
        stopping.set()
        is_reached, seen = await asyncio.wait_for(wait, 60)
        assert (is_reached, seen and seen.status) == (False, "running")

    tell(story)


def test_a_box_that_has_failed_has_stopped_and_does_not_run(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create(start=True)
        del one.boxes[box.id]
        await site.look()
        assert await site.status(box) == "failed"
        reached = {until: await wait(site, box, until) for until in boxes.Awaited}
        assert reached == {"running": (False, "failed"), "stopped": (True, "failed"), "removed": (False, "failed")}

    tell(story)


def test_a_box_that_goes_while_it_is_awaited_has_stopped_and_does_not_run(
    tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        box = await site.create()
        looks = counted(site, monkeypatch)
        waits = [asyncio.create_task(wait(site, box, until, 600)) for until in boxes.Awaited]
        for _ in waits:
            await looks.get()
        await site.core.boxes.remove("default", box.id, force=True)
        reached = await asyncio.wait_for(asyncio.gather(*waits), 60)
        assert reached == [(until != "running", None) for until in boxes.Awaited]

    tell(story)


def test_a_change_between_a_look_and_the_wait_is_not_slept_through(tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        box = await site.create(start=True)
        get_box, looked, go = site.core.store.get_box, asyncio.Event(), asyncio.Event()

        async def late(box_id: str) -> Box | None:
            row = await get_box(box_id)
            if asyncio.current_task() is waiting and not go.is_set():
                looked.set()
                await go.wait()
            return row

        monkeypatch.setattr(site.core.store, "get_box", late)
        waiting = asyncio.create_task(wait(site, box, boxes.Awaited.STOPPED, 600))
        await looked.wait()
        [watch] = site.core.events._watches[("box", box.id)]
        await site.core.boxes.stop("default", box.id, None)
        await asyncio.wait_for(watch.news.wait(), 60)
        go.set()
        assert await asyncio.wait_for(waiting, 60) == (True, "stopped")
        assert not site.core.events._watches

    tell(story)
