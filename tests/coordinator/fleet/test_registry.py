"""The registry of workers: who is there, who is told what, and what is said of those who are not there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support.clock import NOON
from support.coordinator_site import CoordinatorSite
from support.fake_worker import Container, epoch, id_of

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator.fleet.registry import HEARTBEAT_SECONDS, UNREACHABLE_SECONDS
from boxlite_server.coordinator.http import views
from boxlite_server.coordinator.http.errors import IS_OPERATOR
from boxlite_server.coordinator.http.handlers import boxes, system, workers
from boxlite_server.coordinator.store import Worker
from boxlite_server.coordinator.store.workers import Workers


@pytest.fixture(autouse=True)
def operator() -> Iterator[None]:
    """Answers are those to an operator, who hears of workers."""
    token = IS_OPERATOR.set(True)
    yield
    IS_OPERATOR.reset(token)


async def shown(site: CoordinatorSite, box: Any) -> tuple[str, str | None]:
    answer = await views.placed_box(site.core, await site.core.boxes.get("default", box.id))
    return answer["status"], answer["error_message"]


async def listed(site: CoordinatorSite, **filters: Any) -> list[dict[str, Any]]:
    answer = await boxes.list_boxes(site.core, "default", **filters)
    boxes_of_page: list[dict[str, Any]] = json.loads(answer.body)["boxes"]
    return boxes_of_page


async def status(site: CoordinatorSite, name: str) -> str:
    return str((await workers.get_worker(site.core, id_of(name)))["status"])


# ---- reachable or not ----


def test_three_beats_may_be_missed_and_no_more(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        site.clock.now += 3 * HEARTBEAT_SECONDS * 1.1  # the third heartbeat of the slowest worker is due
        assert await status(site, "one") == "active"
        site.clock.now = NOON + UNREACHABLE_SECONDS + 0.1
        assert await status(site, "one") == "unreachable"
        await site.beat("one")
        assert await status(site, "one") == "active"

    tell(story)


def test_calls_to_a_worker_that_is_not_there_fail_at_once_and_say_why(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("frosty-meado")
        box = await site.create(name="web")
        one.calls.clear()
        site.clock.now += 19
        reason = "worker frosty-meado has not been heard of since 12:00:00 UTC (19 s)"
        core = site.core
        for operation in (
            core.boxes.start("default", "web"),
            core.boxes.stop("default", "web", None),
            core.boxes.remove("default", "web", force=False),
            core.snapshots.create("default", "web", "s"),
            core.snapshots.clone("default", "web", "copy"),
            core.archives.export("default", "web"),
            core.executions.start("default", "web", {"command": "true"}),
            core.files.download("default", "web", "/etc", follow_symlinks=False),
            core.files.upload("default", "web", "/etc", _nobody(), overwrite=True, source_is_dir=None),
        ):
            with pytest.raises(errors.UpstreamUnavailableError) as refused:
                await operation
            assert refused.value.message == reason
        assert one.calls == []
        assert (await core.store.get_box(box.id)) == box
        assert await shown(site, box) == ("unknown", reason)
        await site.beat("frosty-meado")
        assert await shown(site, box) == ("configured", None)
        assert (await core.boxes.start("default", "web")).status == "running"

    tell(story)


def test_the_day_is_told_where_it_is_another(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        site.clock.now += 13 * 3600
        reason = (await workers.get_worker(site.core, id_of("one")))["reason"]
        assert reason == "worker one has not been heard of since 2027-01-15 12:00:00 UTC (46800 s)"

    tell(story)


def test_after_its_own_start_the_coordinator_waits_for_everybody_again(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        site.clock.now += 3600
        await site.reopen()
        assert await status(site, "one") == "active"
        site.clock.now += UNREACHABLE_SECONDS + 1
        assert await status(site, "one") == "unreachable"

    tell(story)


def test_a_worker_that_says_goodbye_is_gone_at_once_also_for_the_next_coordinator(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        box = await site.create()
        site.clock.now += 1
        await site.beat("one", leaving=True)
        assert await shown(site, box) == ("unknown", "worker one was shut down at 12:00:01 UTC")
        await site.reopen()
        assert await status(site, "one") == "unreachable"
        with pytest.raises(errors.InvalidStateError, match="said goodbye"):
            await site.beat("one")  # a heartbeat that was sent before the goodbye and comes late
        assert await status(site, "one") == "unreachable"
        await site.register("one", 2)
        assert await shown(site, box) == ("configured", None)

    tell(story)


def test_a_worker_without_its_engine_gets_no_calls(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        box = await site.create()
        await site.beat("one", engine_error="connection refused")
        assert await shown(site, box) == ("unknown", "the engine of worker one does not answer: connection refused")
        await site.beat("one")
        assert await shown(site, box) == ("configured", None)

    tell(story)


def test_a_worker_that_a_call_did_not_reach_is_unreachable_until_it_is_heard(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create()
        site.clock.now += 1
        one.refuse("StartBox", errors.UnreachableError("worker one cannot be reached: connection refused"))
        with pytest.raises(errors.UnreachableError):
            await site.core.boxes.start("default", box.id)
        assert await shown(site, box) == ("unknown", "worker one cannot be reached: connection refused")
        # Another coordinator on the same database has heard it since.
        await site.core.store.update_worker(id_of("one"), last_heartbeat=NOON + 2)
        assert await shown(site, box) == ("configured", None)

    tell(story)


def test_what_a_former_life_did_not_hear_is_not_held_against_the_next(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create()

        async def die_and_return() -> None:
            await site.register("one", 2)
            raise errors.UnreachableError("connection reset")

        one.before["StopBox"] = die_and_return
        with pytest.raises(errors.UnreachableError):
            await site.core.boxes.stop("default", box.id, None)
        assert await status(site, "one") == "active"

    tell(story)


def test_a_list_finds_the_boxes_of_unreachable_workers_under_unknown_alone(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one", capacity={"cpus": 8, "memory_mib": 99999})
        lost = await site.create(name="lost")
        site.clock.now += 1
        await workers.set_worker_status(site.core, id_of("one"), {"status": "draining"})
        await site.register("two")
        there = await site.create(name="there")

        async def found(**filters: Any) -> list[str]:
            return [box["box_id"] for box in await listed(site, **filters)]

        assert await found(status="configured") == [lost.id, there.id]
        assert await found(status="unknown") == []
        one.refuse("StartBox", errors.UnreachableError("gone"))
        with pytest.raises(errors.UnreachableError):
            await site.core.boxes.start("default", "lost")
        assert await found(status="unknown") == [lost.id]
        assert await found(status="configured") == [there.id]
        site.clock.now += 60
        await site.beat("one")
        assert await found(status="unknown") == [there.id]
        assert await found(status="configured") == [lost.id]
        shown = [(box["status"], box["worker"]) for box in await listed(site)]
        assert shown == [("configured", "one"), ("unknown", "two")]

    tell(story)


def test_a_lost_box_can_be_forgotten_and_the_answer_says_what_is_left(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create()
        site.clock.now += 60
        body, code = await boxes.remove_box(site.core, "default", box.id, force=True)
        assert code == 200
        assert body["message"].startswith(f"box {box.id} is forgotten; its container is removed when its worker is")
        assert await site.core.store.get_box(box.id) is None
        assert one.boxes == {box.id: Container(1)}
        await site.beat("one")
        assert await boxes.remove_box(site.core, "default", (await site.create()).id) == (None, 204)

    tell(story)


def test_only_workers_that_take_boxes_make_the_coordinator_ready(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        await site.register("two")
        assert (await system.get_readiness(site.core))["active_workers"] == 2
        await workers.set_worker_status(site.core, id_of("one"), {"status": "draining"})
        await site.beat("two", leaving=True)
        assert (await system.get_readiness(site.core))[1] == 503

    tell(story)


def test_a_restarted_coordinator_is_ready_when_it_has_heard_a_worker(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        site.clock.now += 1
        await site.reopen()
        assert (await system.get_readiness(site.core))[1] == 503
        await site.beat("one")
        assert (await system.get_readiness(site.core))["active_workers"] == 1

    tell(story)


# ---- epochs ----


def test_a_heartbeat_of_a_former_life_is_refused(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        await site.register("one", 2)
        for last_word in ({}, {"leaving": True}, {"engine_error": "no"}):
            with pytest.raises(errors.InvalidStateError, match="register again"):
                await site.beat("one", 1, **last_word)
        assert await status(site, "one") == "active"
        with pytest.raises(errors.NotFoundError):
            await site.beat("two")

    tell(story)


def test_a_registration_of_a_former_life_that_comes_late_is_refused(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one", 2, url="http://127.0.0.1:2")
        with pytest.raises(errors.InvalidStateError, match="stale"):
            await site.register("one", 1)
        assert (await workers.get_worker(site.core, id_of("one")))["url"] == "http://127.0.0.1:2"
        await site.register("one", 2, url="http://127.0.0.1:3")  # the same life, wherever it serves now
        assert (await workers.get_worker(site.core, id_of("one")))["url"] == "http://127.0.0.1:3"
        # A host whose clock was set back is let in once the other life is not heard of any more.
        site.clock.now += UNREACHABLE_SECONDS + 1
        await site.register("one", 1)
        await site.beat("one", 1)

    tell(story)


def test_the_link_is_remade_with_url_secret_and_epoch_and_only_then(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        box = await site.create()
        for fields in ({}, {"life": 2}, {"life": 2, "url": "http://127.0.0.1:2"}):
            await site.register("one", **fields)
            await site.core.boxes.start("default", box.id)
            await site.core.boxes.start("default", box.id)
        assert [(link.row.epoch, link.row.url[-1], link.closed) for link in site.links] == [
            (epoch(1), "1", True),
            (epoch(2), "1", True),
            (epoch(2), "2", False),
        ]

    tell(story)


def test_a_worker_keeps_what_its_operator_wants_through_its_lives(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        await workers.set_worker_status(site.core, id_of("one"), {"status": "draining"})
        await site.register("one", 2)
        await site.reopen()
        assert await status(site, "one") == "draining"
        await site.beat("one", 2, leaving=True)
        worker = await workers.get_worker(site.core, id_of("one"))
        assert (worker["status"], worker["draining"]) == ("unreachable", True)

    tell(story)


# ---- inventories ----


def test_boxes_are_asked_for_when_they_are_not_those_that_were_taken_last(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        async def asks(**beat: Any) -> bool:
            return bool((await site.beat("one", **beat))["send_inventory"])

        await site.register("one")
        assert await asks(inventory="a")
        assert not await asks(inventory="a", boxes=[])
        assert not await asks(inventory="a")
        assert await asks(inventory="b")
        assert await asks(inventory="b")
        assert not await asks(inventory="b", boxes=[])
        await site.reopen()
        assert await asks(inventory="b")
        assert not await asks(inventory="b", boxes=[])
        assert not await asks(boxes=[])  # this worker sends no digests

    tell(story)


def test_an_inventory_that_could_not_be_dealt_with_is_asked_for_again(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")

        async def fail(*_: Any, **__: Any) -> None:
            raise errors.DatabaseError("disk full")

        report, site.core.reconciler.report = site.core.reconciler.report, fail  # type: ignore[method-assign]
        with pytest.raises(errors.DatabaseError):
            await site.beat("one", inventory="a", boxes=[])
        site.core.reconciler.report = report  # type: ignore[method-assign]
        assert (await site.beat("one", inventory="a"))["send_inventory"]

    tell(story)


# ---- removal of a worker ----


def test_a_worker_with_boxes_is_removed_by_force_and_the_answer_says_what_becomes_of_them(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        await site.create()
        await site.create()
        await site.core.volumes.create("default", "data")
        with pytest.raises(errors.InvalidStateError) as refused:
            await workers.remove_worker(site.core, id_of("one"))
        assert refused.value.message == (
            "worker one has 2 boxes and 1 volume; remove them first, or use force: 2 boxes are forgotten, whose "
            "containers stay on the worker's host until it registers again and are then removed as orphans, after a "
            "grace; 1 volume is forgotten, whose data stays on the worker's host until somebody removes it there"
        )
        answer = await workers.remove_worker(site.core, id_of("one"), force=True)
        assert (answer["boxes"], answer["volumes"]) == (2, 1)
        assert refused.value.message.endswith(answer["message"])
        assert await listed(site) == []
        assert site.links[0].closed
        await site.register("two")
        assert await workers.remove_worker(site.core, id_of("two")) == (None, 204)

    tell(story)


@pytest.mark.parametrize("method", ["StartBox", "StopBox", "RemoveBox"])
def test_an_operation_on_a_box_whose_worker_is_removed_ends_clearly(tell: Any, method: str) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create()

        async def removed() -> None:
            await workers.remove_worker(site.core, id_of("one"), force=True)

        one.before[method] = removed
        if method == "RemoveBox":
            await site.core.boxes.remove("default", box.id, force=False)
            return
        with pytest.raises((errors.UpstreamUnavailableError, errors.NotFoundError), match=r"forgotten|not found"):
            if method == "StartBox":
                await site.core.boxes.start("default", box.id)
            else:
                await site.core.boxes.stop("default", box.id, None)

    tell(story)


def test_a_create_whose_worker_is_removed_goes_to_the_next(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        await site.register("two")

        async def removed() -> None:
            one.recover()
            await workers.remove_worker(site.core, id_of("one"), force=True)

        one.before["CreateBox"] = removed
        box = await site.create(name="web")
        assert (box.worker_id, box.generation, box.status) == (id_of("two"), 2, "configured")

    tell(story)


# ---- streams ----


async def _nobody() -> AsyncIterator[bytes]:
    return
    yield b""


def test_a_worker_that_is_silent_in_a_stream_is_given_up(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create()

        async def one_and_no_more() -> AsyncIterator[str]:
            yield "first"
            await asyncio.Event().wait()

        one.streams["GetFiles"] = one_and_no_more()
        answers = site.core.calls.get_files(box.worker_id, pb.GetFilesRequest(), idle=0.01)
        assert await anext(answers) == "first"
        with pytest.raises(errors.TimedOutError, match="worker one was silent"):
            await anext(answers)
        assert await status(site, "one") == "active"

    tell(story)


def test_an_upload_waits_for_its_client_and_not_for_its_worker(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create()
        fallen_asleep = asyncio.Event()

        async def slow_client() -> AsyncIterator[str]:
            yield "a"
            await asyncio.sleep(0.05)  # longer than a worker may be silent
            yield "b"

        taken = await site.core.calls.put_files(box.worker_id, "header", slow_client(), idle=0.02)
        assert taken == ["header", "a", "b"]

        async def stuck() -> None:
            fallen_asleep.set()
            await asyncio.Event().wait()

        one.before["PutFiles"] = stuck
        with pytest.raises(errors.TimedOutError, match="worker one was silent"):
            await site.core.calls.put_files(box.worker_id, "header", slow_client(), idle=0.02)
        assert fallen_asleep.is_set()

    tell(story)


def test_a_start_reads_its_workers_row_once(tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one")
        box = await site.create()
        read: list[str] = []
        get_worker = Workers.get_worker

        async def counted(self: Workers, worker_id: str) -> Worker | None:
            read.append(worker_id)
            return await get_worker(self, worker_id)

        monkeypatch.setattr(Workers, "get_worker", counted)
        for _ in range(2):
            await site.core.boxes.start("default", box.id)
            assert read == [box.worker_id]
            await site.core.boxes.stop("default", box.id, None)  # so that the next start reserves room again
            read.clear()

    tell(story)
