"""Where boxes go when workers fail, and that no worker is ever promised more than it has."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.coordinator_site import CoordinatorSite
from support.fake_worker import EVERY, Container, id_of
from support.tasks import settle

from boxlite_server import errors
from boxlite_server.coordinator.domain import creating
from boxlite_server.coordinator.domain.turns import Turns
from boxlite_server.coordinator.http.handlers import workers
from boxlite_server.coordinator.store import RESERVING


async def rows(site: CoordinatorSite) -> list[Any]:
    return (await site.core.boxes.list("default")).boxes


# ---- the next candidate ----


@pytest.mark.parametrize(
    "error",
    [
        errors.EngineError("the engine says no"),
        errors.ResourceExhaustedError("too many calls under way"),
        errors.UpstreamUnavailableError("addressed to a former life of this worker"),
        errors.UnreachableError("connection reset"),
    ],
)
def test_what_is_the_workers_trouble_sends_the_box_to_the_next(tell: Any, error: errors.BoxliteError) -> None:
    async def story(site: CoordinatorSite) -> None:
        one, two = await site.register("one"), await site.register("two")
        one.refuse("CreateBox", error)
        box = await site.create(name="web")
        assert (box.worker_id, box.generation, box.status) == (id_of("two"), 2, "configured")
        assert [row.id for row in await rows(site)] == [box.id]
        assert two.boxes == {box.id: Container(2)}
        loads = await site.core.store.loads()
        assert {name: load.boxes for name, load in loads.items() if load.boxes} == {id_of("two"): 1}

    tell(story)


def test_what_came_about_behind_a_lost_answer_is_removed_and_the_box_is_not(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one, two = await site.register("one"), await site.register("two")
        one.lose(EVERY, after=True)
        box = await site.create()
        assert (one.boxes, two.boxes) == ({box.id: Container(1)}, {box.id: Container(2)})
        one.recover()
        for _ in range(2):
            for name in ("one", "two"):
                await site.beat(name, boxes=site.workers[name].inventory())
            await settle()
            site.clock.now += 61
        assert (one.boxes, two.boxes) == ({}, {box.id: Container(2)})
        assert [row.status for row in await rows(site)] == ["configured"]

    tell(story)


def test_a_name_stays_taken_while_the_box_goes_from_worker_to_worker(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        two = await site.register("two")
        rivals: list[str] = []

        async def rival() -> None:
            with pytest.raises(errors.AlreadyExistsError):
                await site.create(name="web")
            rivals.append("refused")
            raise errors.EngineError("no")

        one.before["CreateBox"] = two.before["CreateBox"] = rival
        with pytest.raises(errors.UpstreamUnavailableError, match="2 failed"):
            await site.create(name="web")
        assert rivals == ["refused", "refused"]
        one.recover()
        assert (await site.create(name="web")).status == "configured"

    tell(story)


def test_when_all_have_failed_nothing_is_left_and_each_is_told(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        for name in ("one", "two"):
            (await site.register(name)).refuse("CreateBox", errors.EngineError("the engine says no"))
        await site.register("three")
        await workers.set_worker_status(site.core, id_of("three"), {"status": "draining"})
        with pytest.raises(errors.UpstreamUnavailableError) as refused:
            await site.create()
        assert refused.value.message == (
            "no worker can take the box: 1 draining, 2 failed (one: the engine says no; two: the engine says no)"
        )
        assert await rows(site) == []
        assert (await site.core.store.counters("default")).boxes_failed == 1

    tell(story)


def test_a_create_that_takes_too_long_is_neither_kept_nor_doubled(tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(site: CoordinatorSite) -> None:
        one, two = await site.register("one"), await site.register("two")
        monkeypatch.setattr(creating, "CREATE_SECONDS", 0.01)
        monkeypatch.setattr(creating, "LAST_TRY_SECONDS", 0.01)

        async def never() -> None:
            await asyncio.Event().wait()

        one.before["CreateBox"] = two.before["CreateBox"] = never
        with pytest.raises(errors.TimedOutError):
            await site.create(name="web")
        assert one.calls + two.calls == ["CreateBox"]
        assert await rows(site) == []
        one.recover()
        assert (await site.create(name="web")).status == "configured"

    tell(story)


@pytest.mark.parametrize(
    "interruption", [errors.DatabaseUnavailableError("connection refused"), errors.LeaseLostError("taken over")]
)
def test_a_create_that_is_interrupted_does_not_say_that_there_is_no_box(
    tell: Any, monkeypatch: pytest.MonkeyPatch, interruption: errors.BoxliteError
) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")

        async def interrupt(*_: Any, **__: Any) -> None:
            raise interruption

        with monkeypatch.context() as patch:
            patch.setattr(Turns, "change", interrupt)
            with pytest.raises(errors.TimedOutError, match="look whether it is there"):
                await site.create(name="web")
        [row] = await rows(site)
        assert one.boxes == {row.id: Container(1)}  # the reconciler finishes it
        with monkeypatch.context() as patch:
            patch.setattr(Turns, "writing", interrupt_at_once(interruption))
            with pytest.raises(type(interruption)):  # nothing was begun: that is a refusal
                await site.create(name="other")
        assert len(await rows(site)) == 1

    tell(story)


def interrupt_at_once(interruption: errors.BoxliteError) -> Any:
    @asynccontextmanager
    async def writing(*_: Any, **_how: Any) -> AsyncIterator[None]:
        raise interruption
        yield

    return writing


# ---- capacity ----

SMALL = {"cpus": 4, "cpu_limit": 20.0, "memory_mib": 4096, "max_boxes": 24}


async def check(site: CoordinatorSite) -> None:
    """Reservations are what the rows say, and no worker is promised more than it has."""
    loads = await site.core.store.loads()
    reserving = [row for row in await rows(site) if row.status in RESERVING]
    counted = Counter(row.worker_id for row in reserving)
    assert {name: load.boxes for name, load in loads.items() if load.boxes} == dict(counted)
    for worker in await site.core.store.list_workers():
        mine = [row for row in reserving if row.worker_id == worker.id]
        assert sum(row.cpus for row in mine) <= (worker.cpu_limit or 0)
        assert sum(row.memory_mib for row in mine) <= worker.memory_mib
        assert len(mine) <= (worker.max_boxes or 0)


@pytest.mark.parametrize(
    ("size", "each"),
    [
        ({"cpus": 1, "memory_mib": 128}, 20),  # cpu_limit 20
        ({"cpus": 1, "memory_mib": 512}, 8),
        ({"cpus": 4, "memory_mib": 128}, 5),
    ],
)
def test_two_hundred_creates_at_once_fill_the_workers_to_the_brim_and_no_further(
    tell: Any, size: dict[str, int], each: int
) -> None:
    async def story(site: CoordinatorSite) -> None:
        names = [f"w{number}" for number in range(5)]
        for name in names:
            worker = await site.register(name, capacity=SMALL)
            worker.before["CreateBox"] = lambda: asyncio.sleep(0)
        results = await asyncio.gather(*(site.create(**size) for _ in range(200)), return_exceptions=True)
        made = [box for box in results if not isinstance(box, BaseException)]
        refused = [error for error in results if isinstance(error, BaseException)]
        assert len(made) == 5 * each
        assert {type(error) for error in refused} == {errors.UpstreamUnavailableError}
        assert Counter(box.worker_id for box in made) == {id_of(name): each for name in names}
        held = [box_id for worker in site.workers.values() for box_id in worker.boxes]
        assert sorted(held) == sorted(box.id for box in made) == sorted(row.id for row in await rows(site))
        await check(site)

    tell(story)


def test_two_hundred_starts_and_creates_at_once_never_oversell_a_worker(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register(
            "one", capacity={**SMALL, "cpu_limit": None, "memory_mib": 1 << 20, "max_boxes": None}
        )
        stopped = [await site.create(cpus=1, memory_mib=128) for _ in range(100)]
        for box in stopped:
            await site.core.boxes.start("default", box.id)
            await site.core.boxes.stop("default", box.id, None)
        assert (await site.core.store.load(id_of("one"))).boxes == 0
        await site.register("one", capacity=SMALL)
        one.before["StartBox"] = one.before["CreateBox"] = lambda: asyncio.sleep(0)
        results = await asyncio.gather(
            *(site.core.boxes.start("default", box.id) for box in stopped),
            *(site.create(cpus=1, memory_mib=128) for _ in range(100)),
            return_exceptions=True,
        )
        done = [result for result in results if not isinstance(result, BaseException)]
        assert len(done) == 20
        assert {type(result) for result in results if isinstance(result, BaseException)} == {
            errors.ResourceExhaustedError,
            errors.UpstreamUnavailableError,
        }
        assert len(await rows(site)) == 100 + len([box for box in done if box.status == "configured"])
        await check(site)
        # A reservation is given back once.
        running = [row for row in await rows(site) if row.status == "running"]
        await asyncio.gather(*(site.core.boxes.stop("default", row.id, None) for row in running))
        await asyncio.gather(*(site.core.boxes.remove("default", row.id, force=True) for row in await rows(site)))
        load = await site.core.store.load(id_of("one"))
        assert (load.cpus, load.memory_mib, load.boxes) == (0, 0, 0)

    tell(story)


def test_a_stopped_box_needs_a_place_again(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one", capacity={"cpus": 4, "memory_mib": 4096, "max_boxes": 1})
        first = await site.create()
        await site.core.boxes.start("default", first.id)
        with pytest.raises(errors.UpstreamUnavailableError, match=r"1 has no place \(allows 1 boxes\)"):
            await site.create()
        await site.core.boxes.stop("default", first.id, None)
        second = await site.create()
        with pytest.raises(errors.ResourceExhaustedError, match=r"one has no place"):
            await site.core.boxes.start("default", first.id)
        await site.core.boxes.remove("default", second.id, force=False)
        assert (await site.core.boxes.start("default", first.id)).status == "running"

    tell(story)


def test_a_box_that_is_being_removed_keeps_its_room_until_it_is_gone(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        worker = await site.register("one")
        leaving = await site.create(memory_mib=6000)

        async def somebody_wants_room() -> None:
            with pytest.raises(errors.UpstreamUnavailableError, match="lacks memory"):
                await site.create(memory_mib=6000)
            raise errors.InvalidStateError("it runs")

        worker.before["RemoveBox"] = somebody_wants_room
        with pytest.raises(errors.InvalidStateError):
            await site.core.boxes.remove("default", leaving.id, force=False)
        assert (await site.core.store.load(id_of("one"))).memory_mib == 6000
        del worker.before["RemoveBox"]
        await site.core.boxes.remove("default", leaving.id, force=True)
        assert (await site.create(memory_mib=6000)).status == "configured"

    tell(story)
