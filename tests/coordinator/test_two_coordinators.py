"""Two coordinators, one database: what must be true of both together. A coordinator dies by never going on. The
clock is the test's; nobody renews a lease here, so whoever holds one for longer than it lasts is dead to others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.asgi import Reply, ask
from support.coordinator_site import CoordinatorSite
from support.fake_worker import Container
from support.tasks import settle

from boxlite_server import errors
from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.http.app import create_app
from boxlite_server.coordinator.leases import TTL_SECONDS
from boxlite_server.coordinator.limits import REQUEST_SECONDS

P = "default"
KEY = "anonymous default/k"

Story = Callable[[CoordinatorSite], Awaitable[None]]


async def count(site: CoordinatorSite) -> int:
    """How many boxes have a row."""
    return len((await site.core.store.list_boxes(P)).boxes)


# ---- boxes ------------------------------------------------------------------------------------------------


def test_of_two_boxes_with_one_name_one_is_made(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        results = await asyncio.gather(
            *(core.creation.create(P, {"name": "web"}) for core in (site.core, site.other)), return_exceptions=True
        )
        assert sorted(type(result).__name__ for result in results) == ["AlreadyExistsError", "Box"]
        assert site.one.made == 1

    tell_both(story)


def test_operations_on_a_box_come_in_turn(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        box = await site.core.creation.create(P, {})
        await site.core.boxes.start(P, box.id)
        begun, go = site.one.hold("StopBox")
        stopping = asyncio.create_task(site.core.boxes.stop(P, box.id, None))
        await begun.wait()
        assert await site.other.turns.is_busy(box.id)
        starting = asyncio.create_task(site.other.boxes.start(P, box.id))
        await asyncio.wait([starting], timeout=0.1)
        assert site.one.calls[-1] == "StopBox"
        go.set()
        assert (await stopping).status == "stopped"
        assert (await starting).status == "running"
        assert not await site.other.turns.is_busy(box.id)

    tell_both(story)


def test_one_that_was_held_up_writes_nothing_after_another_took_over(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        box = await site.core.creation.create(P, {})
        begun, go = site.one.hold("StartBox")
        starting = asyncio.create_task(site.core.boxes.start(P, box.id))
        await begun.wait()
        await site.pass_time(TTL_SECONDS)
        await site.other.boxes.remove(P, box.id, force=True)
        site.one.boxes[box.id] = Container(1, "stopped")  # what the worker holds does not matter here
        go.set()
        with pytest.raises(errors.LeaseLostError):
            await starting
        assert await count(site) == 0

    tell_both(story)


def test_two_boxes_cannot_take_the_same_room_again(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        made = []
        for _ in range(2):
            box = await site.core.creation.create(P, {"memory_mib": 6000})
            await site.core.boxes.start(P, box.id)
            made.append(await site.core.boxes.stop(P, box.id, None))
        starts = [core.boxes.start(P, box.id) for core, box in zip((site.core, site.other), made, strict=True)]
        results = await asyncio.gather(*starts, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["Box", "ResourceExhaustedError"]

    tell_both(story)


# ---- requests that come again ----------------------------------------------------------------------------------


def test_a_box_that_was_made_before_a_crash_is_found_by_its_key(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        request = {"name": "web", "env": {"A": "1"}, "ports": [{"guest_port": 80}], "labels": {"a": "b"}}
        box = await site.core.creation.create(P, request, request_key=KEY)
        assert await site.other.creation.create(P, request, request_key=KEY) == box
        with pytest.raises(errors.KeyReusedError):
            await site.other.creation.create(P, {**request, "env": {}}, request_key=KEY)
        with pytest.raises(errors.AlreadyExistsError):
            await site.other.creation.create(P, request, request_key="another")
        assert site.one.made == 1

    tell_both(story)


def test_a_box_with_volumes_is_found_by_its_key(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.core.volumes.create(P, "data")
        request = {"volumes": [{"managed_volume": "data", "guest_path": "/d"}]}
        box = await site.core.creation.create(P, request, request_key=KEY)
        assert await site.other.creation.create(P, request, request_key=KEY) == box

    tell_both(story)


@pytest.mark.parametrize("after", [False, True])
def test_a_box_that_a_crash_left_half_made_is_made_once(tell_both: Callable[[Story], None], after: bool) -> None:
    async def story(site: CoordinatorSite) -> None:
        begun, go = site.one.hold("CreateBox", after=after)
        first = asyncio.create_task(site.core.creation.create(P, {}, request_key=KEY))
        await begun.wait()
        await site.pass_time(TTL_SECONDS)
        box = await site.other.creation.create(P, {}, request_key=KEY)
        assert box.status == "configured"
        assert await count(site) == 1
        if after:
            assert site.one.made == 1
            go.set()
            with pytest.raises(errors.LeaseLostError):  # the first coordinator was only held up
                await first
        assert list(site.one.boxes) == [box.id]
        assert await count(site) == 1

    tell_both(story)


def test_two_attempts_at_once_make_one_box(tell_both: Callable[[Story], None]) -> None:
    """The key's lease is there to prevent this; without it, the row of the first attempt stands."""

    async def story(site: CoordinatorSite) -> None:
        attempts = [core.creation.create(P, {}, request_key=KEY) for core in (site.core, site.other)]
        results = await asyncio.gather(*attempts, return_exceptions=True)
        boxes = [result for result in results if not isinstance(result, BaseException)]
        assert len({box.id for box in boxes}) == 1
        assert all(isinstance(result, errors.LeaseLostError) for result in results if result not in boxes)
        assert site.one.made == 1

    tell_both(story)


def test_a_key_is_free_again_after_a_day(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        old = await site.core.creation.create(P, {}, request_key=KEY)
        old_volume = await site.core.volumes.create(P, None, request_key=KEY)
        await site.pass_time(REQUEST_SECONDS)
        new = await site.core.creation.create(P, {"cpus": 2}, request_key=KEY)
        assert new.id != old.id
        assert await site.other.creation.create(P, {"cpus": 2}, request_key=KEY) == new
        assert (await site.core.volumes.create(P, None, request_key=KEY)).id != old_volume.id

    tell_both(story)


def test_a_create_that_is_broken_off_leaves_its_row(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        begun, _ = site.one.hold("CreateBox", after=True)
        first = asyncio.create_task(site.core.creation.create(P, {"name": "web"}, request_key=KEY))
        await begun.wait()
        first.cancel()
        await asyncio.wait([first])
        (left,) = (await site.core.store.list_boxes(P)).boxes
        assert left.status == "creating"
        assert not await site.other.turns.is_busy(left.id)
        await site.other.observer.refresh(left.id)  # as the next heartbeat would
        assert (await site.other.creation.create(P, {"name": "web"}, request_key=KEY)).id == left.id
        assert (await site.other.boxes.get(P, left.id)).status == "configured"

    tell_both(story)


def test_a_clone_is_made_once(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        source = await site.core.creation.create(P, {})
        clone = await site.core.snapshots.clone(P, source.id, "k", request_key=KEY)
        assert await site.other.snapshots.clone(P, source.id, "k", request_key=KEY) == clone
        with pytest.raises(errors.KeyReusedError):
            await site.other.snapshots.clone(P, source.id, "l", request_key=KEY)
        assert site.one.made == 2

    tell_both(story)


def test_a_volume_is_made_once(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        volume = await site.core.volumes.create(P, None, request_key=KEY)
        assert await site.other.volumes.create(P, None, request_key=KEY) == volume
        with pytest.raises(errors.KeyReusedError):
            await site.other.volumes.create(P, "named", request_key=KEY)
        begun, _ = site.one.hold("CreateVolume")
        asyncio.create_task(site.core.volumes.create(P, "other", request_key="k2"))  # noqa: RUF006 - it dies
        await begun.wait()
        await site.pass_time(TTL_SECONDS)
        assert (await site.other.volumes.create(P, "other", request_key="k2")).state == "ready"
        assert len(await site.core.store.list_volumes(P)) == 2

    tell_both(story)


def test_a_command_is_started_once(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        box = await site.core.creation.create(P, {})
        request = {"command": "true", "args": ["a"]}

        async def start(core: Core, **fields: Any) -> str:
            _, execution = await core.executions.start(P, box.id, {**request, **fields}, request_key=KEY)
            return str(execution.execution_id)

        first = await start(site.core)
        assert await start(site.other) == first  # the worker takes the same id for the same command
        assert await start(site.other, args=["b"]) != first
        _, other = await site.core.executions.start(P, box.id, request, request_key="another")
        assert other.execution_id != first

    tell_both(story)


def test_what_a_command_said_at_its_start_is_kept_by_a_coordinator_that_is_alone(
    tell_both: Callable[[Story], None], database: Path | str
) -> None:
    """Another coordinator may have had the output confirmed meanwhile: the worker has to be asked then."""

    async def story(site: CoordinatorSite) -> None:
        box = await site.core.creation.create(P, {})

        async def start(**fields: Any) -> str:
            _, execution = await site.core.executions.start(P, box.id, {"command": "true", **fields})
            return str(execution.execution_id)

        begun, terminal = await start(), await start(tty=True)
        take, foreign = site.core.executions.take_brief, await site.core.creation.create("other", {})
        assert take(foreign, begun) is None
        brief = take(box, begun)
        if isinstance(database, str):
            assert brief is None
        else:
            assert brief is not None
            assert brief.events[-1].ended.exit_code == 0
        assert take(box, begun) is None  # the first reader has it
        assert take(box, terminal) is None

    tell_both(story)


def test_a_snapshot_is_made_once(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        box = await site.core.creation.create(P, {})
        snapshot = await site.core.snapshots.create(P, box.id, "s", request_key=KEY)
        assert await site.other.snapshots.create(P, box.id, "s", request_key=KEY) == snapshot
        with pytest.raises(errors.AlreadyExistsError):
            await site.other.snapshots.create(P, box.id, "s", request_key="another")
        await site.pass_time(REQUEST_SECONDS)
        with pytest.raises(errors.AlreadyExistsError):
            await site.other.snapshots.create(P, box.id, "s", request_key=KEY)

    tell_both(story)


async def post(core: Core, path: str, body: bytes) -> Reply:
    """One request with an Idempotency-Key to this coordinator's application."""
    headers = {"content-type": "application/json", "content-length": str(len(body)), "idempotency-key": "k"}
    return await ask(create_app(core), "POST", path, body, headers=headers)


@pytest.mark.parametrize(
    ("path", "body"), [("boxes", b'{"image": "alpine"}'), ("boxes/source/clone", b"{}"), ("volumes", b"{}")]
)
def test_one_key_at_both(tell_both: Callable[[Story], None], path: str, body: bytes) -> None:
    """Over HTTP there is one execution and one answer; after a crash that lost the answer, a repetition finds the
    same thing."""

    async def story(site: CoordinatorSite) -> None:
        await site.core.creation.create(P, {"name": "source"})
        coordinators = site.core, site.other
        method = {"boxes": "CreateBox", "volumes": "CreateVolume"}.get(path, "CloneBox")
        begun, go = site.one.hold(method)
        tasks = [asyncio.create_task(post(core, f"/v1/{path}", body)) for core in coordinators]
        await begun.wait()
        await asyncio.wait(tasks, timeout=0.1)
        go.set()
        (status, _, first), (other_status, _, second) = await asyncio.gather(*tasks)
        assert (status, first) == (other_status, second)
        assert status == 201, first
        assert site.one.calls.count(method) == 1 + (method == "CreateBox")
        await site.core.store.purge_answers(site.clock.now + REQUEST_SECONDS)
        status, _, third = await post(site.other, f"/v1/{path}", body)
        assert (status, third) == (201, first)
        assert site.one.calls.count(method) == 1 + (method == "CreateBox")

    tell_both(story)


def test_a_crash_frees_the_key(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        begun, go = site.one.hold("CreateBox", after=True)
        first = asyncio.create_task(post(site.core, "/v1/boxes", b"{}"))
        await begun.wait()
        await site.pass_time(TTL_SECONDS)
        status, _, body = await post(site.other, "/v1/boxes", b"{}")
        assert status == 201
        go.set()
        assert (await first)[0] == 503  # the first coordinator was not dead: it tells its client to try again
        assert (await post(site.core, "/v1/boxes", b"{}"))[0::2] == (201, body)
        assert await count(site) == 1

    tell_both(story)


# ---- use, attachment, volumes ------------------------------------------------------------------------------


def test_a_box_in_use_at_the_one_is_not_stopped_by_the_other(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        box = await site.core.creation.create(P, {"auto_stop": 10})
        box = await site.core.boxes.start(P, box.id)
        async with site.core.schedule.use(box):
            assert await site.other.schedule.is_used(box.id)
            site.one.calls.clear()
            await site.pass_time(10)
            await look(site.other)
            assert site.one.calls == []
            assert (await site.other.boxes.get(P, box.id)).status == "running"
            await site.pass_time(TTL_SECONDS)  # the first coordinator is dead
            await look(site.other)
            assert (await site.other.boxes.get(P, box.id)).status == "stopped"
        assert not await site.other.schedule.is_used(box.id)

    tell_both(story)


async def look(core: Core) -> None:
    await core.lifetimes.look()
    await settle()


def test_boxes_without_lifetimes_cost_no_lease(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        box = await site.core.creation.create(P, {})
        async with site.core.schedule.use(box):
            assert not await site.core.store.is_leased("use/", site.clock.now)

    tell_both(story)


def test_one_client_is_attached_wherever_it_came(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        async with site.core.executions.attachment("e1") as lease:
            for core in (site.core, site.other):
                with pytest.raises(errors.AlreadyExistsError):
                    async with core.executions.attachment("e1"):
                        raise AssertionError
            async with site.other.executions.attachment("e2"):
                pass
            site.clock.now += TTL_SECONDS
            async with site.other.executions.attachment("e1"):  # the first coordinator is dead
                await site.core.leases.renew()
                assert lease.lost.done()
        async with site.core.executions.attachment("e1"):
            pass

    tell_both(story)


def test_a_volume_that_the_one_makes_is_not_removed_by_the_other(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        begun, go = site.one.hold("CreateVolume")
        making = asyncio.create_task(site.core.volumes.create(P, "data"))
        await begun.wait()
        with pytest.raises(errors.InvalidStateError, match="try again"):
            await site.other.volumes.remove(P, "data", force=True)
        with pytest.raises(errors.AlreadyExistsError):
            await site.other.volumes.create(P, "data")
        go.set()
        assert (await making).state == "ready"
        await site.other.volumes.remove(P, "data", force=False)
        assert await site.core.store.list_volumes(P) == []

    tell_both(story)


def test_closing_one_leaves_nothing_locked(tell_both: Callable[[Story], None]) -> None:
    async def story(site: CoordinatorSite) -> None:
        box = await site.core.creation.create(P, {})
        begun, _ = site.one.hold("StartBox")
        starting = asyncio.create_task(site.core.boxes.start(P, box.id))
        await begun.wait()
        starting.cancel()
        await site.core.leases.close()
        async with site.other.leases.try_hold(f"box/{box.id}") as lease:
            assert lease

    tell_both(story)
