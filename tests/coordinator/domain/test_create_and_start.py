"""A box that is created and started by one request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.coordinator_site import CoordinatorSite
from support.fake_worker import id_of
from support.tasks import settle

from boxlite_server import errors
from boxlite_server.coordinator.http.handlers import boxes


async def rows(site: CoordinatorSite) -> list[Any]:
    return (await site.core.boxes.list("default")).boxes


def test_the_box_runs_after_one_call(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        box = await site.create(start=True)
        assert one.calls == ["CreateBox"]
        assert (box.status, box.desired, box.pid, box.engine_life) == ("running", "running", 4242, one.engine_life)
        assert box == await site.row(box)
        stopped = await site.core.boxes.stop("default", box.id, None)
        assert (stopped.status, one.boxes[box.id].status) == ("stopped", "stopped")

    tell(story)


def test_a_box_that_cannot_be_started_is_not_made(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        one.refuse("CreateBox", errors.ExecutionError("the main command was not found in the box"))
        with pytest.raises(errors.ExecutionError, match="not found"):
            await site.create(start=True)
        assert await rows(site) == []
        assert (await site.core.store.load(one.id)).boxes == 0

    tell(story)


def test_the_box_starts_at_the_next_worker_when_the_first_has_trouble(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one, two = await site.register("one"), await site.register("two")
        one.refuse("CreateBox", errors.ResourceExhaustedError("too many starts of boxes"))
        box = await site.create(start=True)
        assert (box.worker_id, box.generation, box.status) == (two.id, 2, "running")

    tell(story)


@pytest.mark.parametrize("error", [errors.UnreachableError("lost"), errors.EngineError("the engine says no")])
def test_a_box_that_may_run_at_a_worker_is_started_at_no_other(tell: Any, error: errors.BoxliteError) -> None:
    async def story(site: CoordinatorSite) -> None:
        _, two = await site.register("one"), await site.register("two")
        site.one.refuse("CreateBox", error)
        with pytest.raises(type(error)):
            await site.create(start=True)
        assert (await rows(site), two.boxes) == ([], {})

    tell(story)


def test_a_command_that_ends_at_once_leaves_the_box_stopped(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        one.brief = True
        box = await site.create(start=True)
        assert (box.status, box.desired, box.exit_code) == ("stopped", "stopped", 0)

    tell(story)


def test_a_box_that_its_ending_engine_killed_at_once_is_started_again(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        one.dying = True
        box = await site.create(start=True)
        assert await site.state(box) == ("configured", "running")
        one.dying = False
        await site.look()
        assert await site.state(box) == ("running", "running")

    tell(story)


def test_a_client_is_told_of_a_box_that_its_ending_engine_killed_at_once(
    tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        one.dying = True
        one.refuse("StartBox", errors.EngineError("the engine is gone"))
        monkeypatch.setattr(boxes, "request_key", lambda: None)
        body, status, _ = await boxes.create_box(site.core, "default", {"image": "alpine", "start": True})
        assert (status, body["status"]) == (201, "configured")  # the box is there, and will run again

    tell(story)


def test_a_worker_of_an_earlier_version_is_told_to_start_the_box(tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        monkeypatch.setattr(one, "_CreateBox", lambda request: one._make(request.box))
        monkeypatch.setattr(boxes, "request_key", lambda: None)
        body, status, _ = await boxes.create_box(site.core, "default", {"image": "alpine", "start": True})
        assert (status, body["status"]) == (201, "running")
        assert one.calls == ["CreateBox", "StartBox"]

    tell(story)


def test_an_answer_that_was_lost_with_the_coordinator_leaves_the_box_running(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one = await site.register("one")
        begun, _ = one.hold("CreateBox", after=True)
        task = asyncio.create_task(site.create(start=True))
        await begun.wait()
        await site.crash(task)
        await site.register("one")
        await site.look()
        [box] = await rows(site)
        assert (box.status, box.desired, box.worker_id) == ("running", "running", id_of("one"))
        await settle()

    tell(story)
