"""Warm boxes: who gets one, and when they are made, replaced and given up."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from support.coordinator_site import CoordinatorSite
from support.fake_worker import EVERY, FakeWorker
from support.tasks import settle

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator.control.pools import IMAGES_SECONDS, MAX_MAKING
from boxlite_server.coordinator.domain.warm import pool_of
from boxlite_server.coordinator.states import WorkerStatus
from boxlite_server.coordinator.store import WarmBox

IMAGE = "docker.io/library/alpine:latest"


async def keep(site: CoordinatorSite, boxes: int, **fields: Any) -> None:
    """Have the fleet keep so many warm boxes of the size that `CoordinatorSite.create` asks for."""
    async with site.core.store.transaction() as tx:
        await tx.put_warm_pools([pool_of("alpine", boxes, memory_mib=128)])
    await look(site, rounds=boxes, **fields)


async def look(site: CoordinatorSite, rounds: int = 1, seconds: float = 5.0) -> None:
    for _ in range(rounds):
        await site.pass_time(seconds)
        await site.core.pools.look()
        await settle()


async def warm(site: CoordinatorSite) -> list[WarmBox]:
    return await site.core.store.warm_boxes()


async def with_images(site: CoordinatorSite, *names: str, **fields: Any) -> list[FakeWorker]:
    """Registered workers that have the image."""
    workers = [await site.register(name, **fields) for name in names]
    for worker in workers:
        worker.images = [pb.Image(reference=IMAGE, image_id=worker.image_id)]
    return workers


# ---- claims ----


def test_a_request_that_fits_gets_a_warm_box_by_one_call_to_the_worker(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        await keep(site, 1)
        [ready] = await warm(site)
        one.calls.clear()
        box = await site.create(name="web", labels={"team": "blue"}, auto_stop=60)
        assert (box.id, box.status, box.name, box.prefix) == (ready.id, "configured", "web", "default")
        assert (box.labels, box.spec.auto_stop, box.created_at) == ({"team": "blue"}, 60, site.clock())
        assert one.calls == ["CreateBox"]
        assert not one.boxes[box.id].unclaimed
        assert box == await site.core.boxes.get("default", "web")
        assert (await site.core.boxes.start("default", "web")).status == "running"
        assert one.calls == ["CreateBox", "StartBox"]

    tell(story)


def test_a_box_that_is_to_run_at_once_takes_one_call(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        await keep(site, 1)
        one.calls.clear()
        box = await site.create(start=True)
        assert (box.status, box.desired) == ("running", "running")
        assert one.calls == ["CreateBox"]
        assert (await site.core.store.counters("default")).boxes_created == 1

    tell(story)


@pytest.mark.parametrize(
    "other",
    [
        {"memory_mib": 256},
        {"cpus": 2},
        {"image": "alpine:3"},
        {"image": "not an image"},
        {"user": "box"},
        {"working_dir": "not/absolute"},
        {"tty": True},
        {"network": {"mode": "disabled"}},
        {"ports": [{"guest_port": 80}]},
        {"advanced": {"capabilities": {"drop": ["NET_RAW"]}}},
    ],
)
def test_a_request_for_anything_else_gets_a_box_of_its_own(tell: Any, other: dict[str, Any]) -> None:
    async def story(site: CoordinatorSite) -> None:
        await with_images(site, "one")
        await keep(site, 1)
        [ready] = await warm(site)
        assert (await site.create(**other)).id != ready.id
        assert [box.id for box in await warm(site)] == [ready.id]

    tell(story)


@pytest.mark.parametrize(
    "own",
    [
        {"env": {"A": "b"}},
        {"cmd": ["sleep", "1"]},
        {"entrypoint": ["sh"], "cmd": ["-c", "true"]},
        {"working_dir": "/srv"},
        {"name": "web", "labels": {"a": "b"}, "auto_remove": True, "detach": False, "auto_stop": 5},
    ],
)
def test_what_a_box_is_told_at_its_claim_is_free(tell: Any, own: dict[str, Any]) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        await keep(site, 1)
        [ready] = await warm(site)
        box = await site.create(**own)
        assert box.id == ready.id
        assert one.specs[box.id] == box.spec.to_proto(box.id)
        assert dict(one.specs[box.id].env) == own.get("env", {})

    tell(story)


def test_no_two_requests_get_the_same_box(tell_both: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        site.one.images = [pb.Image(reference=IMAGE, image_id=site.one.image_id)]
        await keep(site, 3)
        assert len(await warm(site)) == 3
        request = {"image": "alpine", "memory_mib": 128}
        cores = [site.core, site.other] * 3
        boxes = await asyncio.gather(*(core.creation.create("default", request) for core in cores))
        assert len({box.id for box in boxes}) == 6
        assert len(site.one.boxes) == 6
        assert await warm(site) == []

    tell_both(story)


def test_a_name_that_is_taken_costs_no_warm_box(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await with_images(site, "one")
        await site.create(name="web")
        await keep(site, 1)
        with pytest.raises(errors.AlreadyExistsError, match="'web' already exists"):
            await site.create(name="web")
        assert len(await warm(site)) == 1

    tell(story)


def test_a_request_that_is_sent_again_gets_the_box_that_it_has_claimed(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await with_images(site, "one")
        await keep(site, 2)
        request = {"image": "alpine", "memory_mib": 128}
        first = await site.core.creation.create("default", request, request_key="me/1")
        again = await site.core.creation.create("default", request, request_key="me/1")
        assert (first.id, len(await warm(site))) == (again.id, 1)

    tell(story)


def test_a_warm_box_that_cannot_be_started_is_replaced_by_a_new_one(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        await keep(site, 1)
        [ready] = await warm(site)
        one.refuse_once("CreateBox", errors.EngineError("the engine says no"))
        box = await site.create(name="web", start=True)
        assert (box.status, box.name) == ("running", "web")
        assert box.id != ready.id
        assert list(one.boxes) == [box.id]

    tell(story)


def test_a_main_command_that_a_claimed_box_cannot_execute_is_the_requests_fault(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        await keep(site, 1)
        one.refuse_once("CreateBox", errors.ExecutionError("the main command was not found in the box"))
        with pytest.raises(errors.ExecutionError, match="not found"):
            await site.create(name="web", cmd=["nope"], start=True)
        assert (await site.core.boxes.list("default")).boxes == []
        assert one.calls.count("CreateBox") == 2, "the pool's box, and one claim"

    tell(story)


def test_a_claimed_box_that_may_run_at_a_worker_that_was_lost_runs_nowhere_else(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one, two = await with_images(site, "one", "two")
        await keep(site, 1)
        [ready] = await warm(site)
        its, other = (one, two) if ready.worker_id == one.id else (two, one)
        its.lose(EVERY)
        with pytest.raises(errors.UnreachableError):
            await site.create(name="web", start=True)
        assert other.boxes == {}
        assert (await site.core.boxes.list("default")).boxes == []
        box = await site.create(name="web")
        assert (box.status, box.worker_id) == ("configured", other.id)

    tell(story)


def test_a_worker_that_prepares_no_boxes_has_none_in_its_pools(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        one.prepares = False
        await keep(site, 1)
        assert (await warm(site), one.boxes) == ([], {})

    tell(story)


def test_nobody_sees_a_warm_box_before_its_claim(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await with_images(site, "one")
        await keep(site, 1)
        [ready] = await warm(site)
        assert (await site.core.boxes.list("default")).boxes == []
        with pytest.raises(errors.NotFoundError):
            await site.core.boxes.get("default", ready.id)
        assert (await site.core.store.load(site.one.id)).memory_mib == 128

    tell(story)


def test_the_claims_and_the_misses_are_counted(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await with_images(site, "one")
        await keep(site, 1)
        for _ in range(3):
            await site.create()
        await site.create(user="another")
        mine, all_of_them = await site.core.counting.counters("default"), await site.core.counting.totals()
        assert (mine.warm_claims, mine.warm_misses, mine.boxes_created) == (1, 2, 4)
        assert (mine.warm_made, mine.warm_given_up) == (0, 0)
        assert (all_of_them.warm_claims, all_of_them.warm_misses, all_of_them.warm_made) == (1, 2, 1)
        await site.reopen()
        assert await site.core.counting.counters("default") == mine

    tell(story)


# ---- pools ----


def test_a_claimed_box_is_replaced_and_only_a_few_are_made_at_once(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        await keep(site, 5)
        assert len(await warm(site)) == 5
        assert one.most_at_once["CreateBox"] <= MAX_MAKING
        await site.create()
        await look(site)
        assert len(await warm(site)) == 5
        async with site.core.store.transaction() as tx:
            await tx.put_warm_pools([])
        await look(site)
        assert await warm(site) == []
        assert len(one.boxes) == 1

    tell(story)


def test_a_worker_keeps_the_boxes_that_it_was_told_to_keep(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await with_images(site, "one", warm_images={"alpine": 2})
        await with_images(site, "two")
        await look(site, rounds=3)
        assert Counter(box.worker_id for box in await warm(site)) == {site.one.id: 2}

    tell(story)


def test_boxes_of_a_restarted_engine_are_replaced(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        await keep(site, 1)
        [ready] = await warm(site)
        one.restart_engine()
        await site.beats(one)
        assert (await site.create()).id != ready.id
        await look(site, rounds=2)
        [fresh] = await warm(site)
        assert (fresh.id != ready.id, fresh.engine_life) == (True, one.engine_life)
        assert ready.id not in one.boxes

    tell(story)


def test_boxes_are_replaced_once_their_image_is_another_one(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        await keep(site, 1)
        [ready] = await warm(site)
        one.image_id = "sha256:2"
        await with_images(site, "one")
        await look(site, rounds=2, seconds=IMAGES_SECONDS)
        [fresh] = await warm(site)
        assert (fresh.id != ready.id, fresh.image_id) == (True, "sha256:2")

    tell(story)


def test_a_draining_worker_gives_its_warm_boxes_up(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one, two = await with_images(site, "one", "two")
        await keep(site, 2)
        await site.core.fleet.set_status(one.id, WorkerStatus.DRAINING)
        await look(site, rounds=3)
        assert {box.worker_id for box in await warm(site)} == {two.id}
        assert one.boxes == {}
        await site.core.fleet.remove(one.id, force=False)

    tell(story)


def test_a_box_that_finds_no_room_gets_that_of_warm_boxes(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        await keep(site, 4)
        big = one.memory_mib - 128
        box = await site.create(memory_mib=big)
        assert (box.status, len(await warm(site))) == ("configured", 1)
        assert (await site.core.counting.totals()).warm_given_up == 3
        await look(site, rounds=3)
        assert len(await warm(site)) == 1, "none is made where there is room for one more only"
        last = await site.create(cpus=2)
        assert last.worker_id == one.id
        with pytest.raises(errors.BoxliteError, match="memory"):
            await site.create(cpus=3)

    tell(story)


def test_a_stopped_box_that_finds_no_room_gets_that_of_warm_boxes(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        box = await site.running(memory_mib=one.memory_mib - 128)
        await site.core.boxes.stop("default", box.id, None)
        await keep(site, 3)
        assert (await site.core.boxes.start("default", box.id)).status == "running"
        assert len(await warm(site)) == 1

    tell(story)


def test_a_pool_that_cannot_be_filled_is_tried_less_and_less_often(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        one.refuse("CreateBox", errors.ImageError("no such image"))
        await keep(site, 1)
        await look(site, rounds=100)
        assert one.calls.count("CreateBox") < 15
        assert (await warm(site), one.boxes) == ([], {})

    tell(story)


def test_a_warm_box_whose_making_was_broken_off_is_not_given_to_anybody(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        begun, _ = one.hold("CreateBox", after=True)
        task = asyncio.create_task(keep(site, 1))
        await begun.wait()
        await site.crash(task)
        await with_images(site, "one")
        box = await site.create()
        await site.look()
        await look(site, rounds=3)
        [fresh] = await warm(site)
        assert set(one.boxes) == {box.id, fresh.id}

    tell(story)


def test_a_lost_worker_is_waited_for_and_its_warm_boxes_are_made_elsewhere(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        [one] = await with_images(site, "one")
        await keep(site, 1)
        [two] = await with_images(site, "two")
        one.lose(EVERY)
        site.core.fleet.note_silence(await site.core.fleet.get(one.id), "lost")
        await site.core.pools.look()
        assert Counter(box.worker_id for box in await warm(site)) == {one.id: 1, two.id: 1}
        assert (await site.create()).worker_id == two.id
        one.recover()
        await site.beats(one)
        await look(site, rounds=3)
        assert len(await warm(site)) == 1

    tell(story)
