"""Orphans have an end: they go soon, and those that a worker refuses to remove are shown and left alone."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from support.coordinator_site import CoordinatorSite
from support.fake_worker import Container

from boxlite_server import errors, ids
from boxlite_server.coordinator.control.orphans import FIRST_PAUSE, LONGEST_PAUSE
from boxlite_server.coordinator.control.reconcile import SURVEY_SECONDS
from boxlite_server.coordinator.domain.verdict import Kind
from boxlite_server.coordinator.http.handlers import workers as workers_api

GRACE = 60.0
NEW_LIFE = 2


def story(test: Callable[[CoordinatorSite], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """Makes a test of a coroutine that gets a site with one worker, which has just been surveyed."""

    def run(tmp_path: Path) -> None:
        site = CoordinatorSite(tmp_path / "c.db", orphan_grace=GRACE, memory_mib=65536)

        async def surveyed(site: CoordinatorSite) -> None:
            await site.look()
            site.one.calls.clear()
            await test(site)

        site.run(surveyed, site.one)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def shown(site: CoordinatorSite) -> dict[str, int]:
    """The counts of orphans that operators see with the worker."""
    (worker,) = (await workers_api.list_workers(site.core))["workers"]
    return dict(worker["orphans"])


def kept(site: CoordinatorSite, box_id: str, *names: str) -> None:
    """Have the worker hold snapshots of a box, without rows."""
    site.one.snapshots |= set(names)
    site.one.kept_of |= dict.fromkeys(names, box_id)


@story
async def test_snapshots_without_a_row_go_with_the_next_survey(site: CoordinatorSite) -> None:
    """A worker that died while its engine was copying the disk leaves such a snapshot."""
    box = await site.create()
    await site.core.snapshots.create("default", box.id, "kept")
    (own,) = site.one.snapshots
    kept(site, box.id, "left-1", "left-2", "left-3")
    await site.look(SURVEY_SECONDS)
    assert site.one.snapshots == {own}
    assert await shown(site) == {"total": 0, "refused": 0}


@story
async def test_a_worker_that_comes_back_is_surveyed_at_once(site: CoordinatorSite) -> None:
    """What was asked of it meanwhile may have been done in part."""
    await site.look(30.0, beats=False)
    kept(site, ids.new_id(), "left")
    await site.look()
    assert site.one.snapshots == set()


@story
async def test_a_worker_that_registers_is_surveyed_at_once(site: CoordinatorSite) -> None:
    kept(site, ids.new_id(), "left")
    await site.look()
    assert site.one.snapshots == {"left"}
    await site.register("one", NEW_LIFE)
    await site.look()
    assert site.one.snapshots == set()


@story
async def test_the_snapshots_of_an_orphan_go_with_it_after_its_grace(site: CoordinatorSite) -> None:
    orphan = ids.new_id()
    site.one.boxes[orphan] = Container(1)
    kept(site, orphan, "first", "second")
    await site.look(SURVEY_SECONDS)
    assert await shown(site) == {"total": 1, "refused": 0}
    await site.look(GRACE - 1)
    assert site.one.snapshots == {"first", "second"}
    await site.look(1)
    assert (site.one.boxes, site.one.snapshots) == ({}, set())


@story
async def test_what_is_left_of_a_forgotten_box_goes_as_soon_as_its_worker_is_back(site: CoordinatorSite) -> None:
    box = await site.create()
    kept(site, box.id, "first", "second")
    site.one.lose("RemoveBox")
    assert await site.core.boxes.remove("default", box.id, force=True)
    await site.look(beats=False)
    assert box.id in site.one.boxes
    site.one.recover()
    await site.look(2 * FIRST_PAUSE)
    assert (site.one.boxes, site.one.snapshots) == ({}, set())
    assert await shown(site) == {"total": 0, "refused": 0}


@story
async def test_an_orphan_that_cannot_be_removed_is_tried_again_soon(site: CoordinatorSite) -> None:
    orphan = ids.new_id()
    site.one.boxes[orphan] = Container(1)
    site.one.refuse("RemoveBox", errors.EngineError("not now"))
    await site.beats(site.one)
    await site.look(GRACE)
    site.one.recover()
    await site.look(FIRST_PAUSE - 1)
    assert orphan in site.one.boxes
    await site.look(1)
    assert orphan not in site.one.boxes


@story
async def test_the_tries_grow_rarer(site: CoordinatorSite) -> None:
    site.one.boxes[ids.new_id()] = Container(1)
    site.one.refuse("RemoveBox", errors.EngineError("not now"))
    await site.beats(site.one)
    await site.look(GRACE)
    hour = range(0, 3600, 5)
    for _ in hour:
        await site.look()
    assert 3600 / LONGEST_PAUSE < site.one.calls.count("RemoveBox") < 25


@story
async def test_a_removal_that_broke_off_goes_on_although_the_container_is_gone(site: CoordinatorSite) -> None:
    """The engine has removed the container, and failed at one of the images."""
    orphan = ids.new_id()
    site.one.boxes[orphan] = Container(3)
    site.one.refuse("RemoveBox", errors.EngineError("unrecognized image ID"))
    await site.beats(site.one)
    await site.look(GRACE)
    site.one.boxes.clear()
    await site.beats(site.one)
    assert await shown(site) == {"total": 1, "refused": 0}
    site.one.recover()
    site.one.calls.clear()
    await site.look(FIRST_PAUSE)
    assert site.one.calls.count("RemoveBox") == 1
    assert await shown(site) == {"total": 0, "refused": 0}


@story
async def test_a_removal_that_is_refused_is_shown_and_not_asked_for_again(site: CoordinatorSite) -> None:
    box = await site.create()
    kept(site, box.id, "left")
    site.one.refuse("RemoveSnapshot", errors.InvalidStateError("generation 1 is over, generation 3 has begun"))
    for _ in range(20):
        await site.look(SURVEY_SECONDS)
    assert site.one.calls.count("RemoveSnapshot") == 1
    assert await shown(site) == {"total": 1, "refused": 1}
    (done,) = (await site.core.reconciler.run(dry_run=True)).done
    assert (done.action.kind, done.action.snapshot_id) == (Kind.UNKNOWN, "left")
    assert "left alone: generation 1 is over, generation 3 has begun" in done.action.reason


@story
async def test_a_refused_removal_is_tried_again_when_the_operator_asks(site: CoordinatorSite) -> None:
    box = await site.create()
    kept(site, box.id, "left")
    site.one.refuse("RemoveSnapshot", errors.InvalidStateError("not me"))
    await site.look(SURVEY_SECONDS)
    (done,) = (await site.core.reconciler.run(dry_run=False)).done
    assert (done.action.kind, done.error) == (Kind.REMOVE_ORPHAN, "not me")
    site.one.recover()
    (done,) = (await site.core.reconciler.run(dry_run=False)).done
    assert done.done
    assert site.one.snapshots == set()


@story
async def test_a_refused_removal_is_tried_again_by_the_next_process_of_the_worker(site: CoordinatorSite) -> None:
    box = await site.create()
    kept(site, box.id, "left")
    site.one.refuse("RemoveSnapshot", errors.InvalidStateError("not me"))
    await site.look(SURVEY_SECONDS)
    site.one.recover()
    await site.register("one", NEW_LIFE)
    await site.look()
    assert site.one.snapshots == set()


@story
async def test_a_refused_orphan_that_somebody_removes_is_forgotten(site: CoordinatorSite) -> None:
    site.one.boxes[ids.new_id()] = Container(1)
    site.one.refuse("RemoveBox", errors.InvalidStateError("not me"))
    await site.beats(site.one)
    await site.look(GRACE)
    assert await shown(site) == {"total": 1, "refused": 1}
    site.one.boxes.clear()
    await site.beats(site.one)
    assert await shown(site) == {"total": 0, "refused": 0}


@story
async def test_a_removal_of_a_box_that_its_engine_breaks_off_is_finished(site: CoordinatorSite) -> None:
    box = await site.create()
    site.one.refuse("RemoveBox", errors.EngineError("unrecognized image ID"))
    with pytest.raises(errors.EngineError):
        await site.core.boxes.remove("default", box.id, force=True)
    assert await site.status(box) == "removing"
    for _ in range(3):
        await site.look()
    site.one.recover()
    await site.look(60.0)
    assert await site.status(box) is None
    assert box.id not in site.one.boxes
