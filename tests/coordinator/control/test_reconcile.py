"""Rows and workers that disagree, and operations that were broken off: what comes of them. The clock is the test's.

A crash is the end of the database under whatever goes on; what comes after is another coordinator on the same file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from support.coordinator_site import CoordinatorSite
from support.fake_worker import Container, FakeWorker, epoch
from support.tasks import settle

from boxlite_server import errors, ids
from boxlite_server.coordinator.control.restarts import FULL_PAUSE, LONGEST_PAUSE, MAX_RESTARTS, MAX_STARTS
from boxlite_server.coordinator.domain.verdict import Kind
from boxlite_server.coordinator.http.handlers import workers as workers_api
from boxlite_server.coordinator.store.backup import back_up

GRACE = 60.0


def story(*workers: str) -> Callable[[Callable[[CoordinatorSite], Coroutine[Any, Any, None]]], Callable[[Path], None]]:
    """Makes a test of a coroutine that gets a site with these workers."""

    def decorate(test: Callable[[CoordinatorSite], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
        def run(tmp_path: Path) -> None:
            site = CoordinatorSite(tmp_path / "c.db", orphan_grace=GRACE, memory_mib=65536)
            site.run(test, *map(site.worker, workers or ("one",)))

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


async def begun(work: Awaitable[Any], worker: FakeWorker, method: str) -> asyncio.Task[Any]:
    """The work as a task, once the worker has done what it was called for; the answer never comes."""
    done, _ = worker.hold(method, after=True)
    task = asyncio.ensure_future(work)
    await done.wait()
    return task


# ---- what is desired -------------------------------------------------------------------------------------


@story()
async def test_start_and_stop_say_what_is_desired(site: CoordinatorSite) -> None:
    box = await site.core.creation.create("default", {})
    assert await site.state(box) == ("configured", "stopped")
    await site.core.boxes.start("default", box.id)
    assert await site.state(box) == ("running", "running")
    assert (await site.row(box)).engine_life == "life-1"
    await site.core.boxes.stop("default", box.id, None)
    assert await site.state(box) == ("stopped", "stopped")
    await site.core.boxes.ensure_running("default", box.id)
    assert await site.state(box) == ("running", "running")


@story()
async def test_a_refused_start_is_not_wanted_any_more(site: CoordinatorSite) -> None:
    box = await site.core.creation.create("default", {})
    site.one.refuse("StartBox", errors.ExecutionError("no such command"))
    with pytest.raises(errors.ExecutionError):
        await site.core.boxes.start("default", box.id)
    assert await site.state(box) == ("configured", "stopped")
    site.one.recover()
    await site.look()
    await site.beats(site.one)
    assert await site.state(box) == ("configured", "stopped")


@story()
async def test_a_refused_stop_changes_nothing(site: CoordinatorSite) -> None:
    box = await site.running()
    site.one.refuse("StopBox", errors.InvalidStateError("not now"))
    with pytest.raises(errors.InvalidStateError):
        await site.core.boxes.stop("default", box.id, None)
    assert await site.state(box) == ("running", "running")
    site.one.refuse("StopBox", errors.UpstreamUnavailableError("not asked at all"))
    with pytest.raises(errors.UpstreamUnavailableError):
        await site.core.boxes.stop("default", box.id, None)
    assert await site.state(box) == ("running", "running")


@story()
async def test_a_command_that_ends_by_itself_leaves_its_box_stopped(site: CoordinatorSite) -> None:
    box = await site.running()
    site.one.boxes[box.id].status = "stopped"
    await site.beats(site.one)
    assert await site.state(box) == ("stopped", "stopped")
    assert (await site.row(box)).exit_code == 0
    site.one.restart_engine()
    await site.beats(site.one)
    assert await site.state(box) == ("stopped", "stopped")


# ---- engines that go and come ----------------------------------------------------------------------------


@story()
async def test_after_an_engines_restart_boxes_are_as_desired(site: CoordinatorSite) -> None:
    runs, stopped, ended, never = [await site.running() for _ in range(3)] + [await site.create()]
    await site.core.boxes.stop("default", stopped.id, None)
    site.one.boxes[ended.id].status = "stopped"
    await site.beats(site.one)
    site.one.restart_engine()
    await site.beats(site.one)
    assert [await site.state(box) for box in (runs, stopped, ended, never)] == [
        ("running", "running"),
        ("stopped", "stopped"),
        ("stopped", "stopped"),
        ("configured", "stopped"),
    ]
    row = await site.row(runs)
    assert (row.engine_life, row.error) == (site.one.engine_life, None)


@story()
async def test_a_box_that_was_killed_is_started_again(site: CoordinatorSite) -> None:
    box = await site.running()
    site.one.boxes[box.id] = Container(1, "stopped", interrupted=True)
    await site.beats(site.one)
    assert await site.state(box) == ("running", "running")


@story()
async def test_a_whole_engine_of_boxes_is_started_a_few_at_a_time(site: CoordinatorSite) -> None:
    boxes = [await site.running(memory_mib=128) for _ in range(40)]
    site.one.restart_engine()
    site.one.calls.clear()
    site.one.most_at_once.clear()
    await site.beats(site.one)
    assert {await site.state(box) for box in boxes} == {("running", "running")}
    assert site.one.calls.count("StartBox") == 40
    assert site.one.most_at_once["StartBox"] == MAX_STARTS


@story()
async def test_while_it_waits_for_its_restart_a_box_keeps_its_room_and_can_be_stopped(site: CoordinatorSite) -> None:
    box = await site.running(memory_mib=60000)
    site.one.restart_engine()
    site.one.refuse("StartBox", errors.ResourceExhaustedError("too many starts of boxes"))
    await site.beats(site.one)
    row = await site.row(box)
    assert (row.status, row.desired, row.pid) == ("configured", "running", None)
    assert row.error == "it ended with its engine; it is being started again"
    with pytest.raises(errors.BoxliteError, match="memory"):
        await site.core.creation.create("default", {"memory_mib": 30000})
    await site.core.boxes.stop("default", box.id, None)
    assert await site.state(box) == ("stopped", "stopped")
    site.one.recover()
    await site.look(FULL_PAUSE)
    assert await site.state(box) == ("stopped", "stopped")


@story()
async def test_a_worker_that_has_too_much_to_start_is_asked_again(site: CoordinatorSite) -> None:
    box = await site.running()
    site.one.restart_engine()
    site.one.refuse("StartBox", errors.ResourceExhaustedError("too many starts of boxes"))
    await site.beats(site.one)
    for _ in range(2 * MAX_RESTARTS):
        await site.look(FULL_PAUSE)
    assert await site.state(box) == ("configured", "running")
    site.one.recover()
    await site.look(FULL_PAUSE)
    assert await site.state(box) == ("running", "running")


@story()
async def test_a_box_that_cannot_be_started_again_fails_after_some_attempts(site: CoordinatorSite) -> None:
    box = await site.running()
    site.one.restart_engine()
    site.one.refuse("StartBox", errors.InvalidStateError("port 80 is taken"))
    await site.beats(site.one)
    site.one.calls.clear()
    await site.look(0.1)
    assert "StartBox" not in site.one.calls  # the next attempt is not made at once
    for _ in range(MAX_RESTARTS - 1):
        assert await site.state(box) == ("configured", "running")
        await site.look(LONGEST_PAUSE)
    row = await site.row(box)
    assert (row.status, row.desired) == ("failed", "stopped")
    assert row.error == f"it was started again {MAX_RESTARTS} times, in vain: port 80 is taken"
    await site.beats(site.one)
    await site.look()
    assert await site.row(box) == row
    site.one.recover()
    await site.core.boxes.start("default", box.id)
    site.one.restart_engine()
    await site.beats(site.one)
    assert await site.state(box) == ("running", "running")


@story()
async def test_a_box_that_could_not_be_started_keeps_the_reason(site: CoordinatorSite) -> None:
    box = await site.running()
    await site.core.boxes.stop("default", box.id, None)
    site.one.boxes[box.id] = Container(1, "failed")
    site.one.refuse("StartBox", errors.InvalidStateError("port 80 is taken"))
    with pytest.raises(errors.InvalidStateError):
        await site.core.boxes.start("default", box.id)
    for _ in range(2):
        row = await site.row(box)
        assert (row.status, row.error) == ("failed", "port 80 is taken")
        await site.core.observer.refresh(box.id)


@story()
async def test_a_box_that_is_killed_again_and_again_is_left_alone_in_the_end(site: CoordinatorSite) -> None:
    box = await site.running()
    for _ in range(MAX_RESTARTS):
        site.one.boxes[box.id] = Container(1, "stopped", interrupted=True)
        await site.beats(site.one, seconds=LONGEST_PAUSE)
        assert await site.state(box) == ("running", "running")
    site.one.boxes[box.id] = Container(1, "stopped", interrupted=True)
    await site.beats(site.one, seconds=LONGEST_PAUSE)
    assert await site.state(box) == ("failed", "stopped")
    await site.core.boxes.start("default", box.id)  # a start by a client begins the count anew
    site.one.boxes[box.id] = Container(1, "stopped", interrupted=True)
    await site.beats(site.one)
    assert await site.state(box) == ("running", "running")


@story()
async def test_restarts_are_counted_whichever_coordinator_they_come_from(site: CoordinatorSite) -> None:
    box = await site.running()
    for number in range(MAX_RESTARTS):
        site.one.boxes[box.id] = Container(1, "stopped", interrupted=True)
        site.one.calls.clear()
        await site.crash()
        await site.beats(site.one, seconds=0.1)
        assert ("StartBox" in site.one.calls) == (number == 0)
        if number:
            await site.look(LONGEST_PAUSE)
        assert await site.state(box) == ("running", "running")
    site.one.boxes[box.id] = Container(1, "stopped", interrupted=True)
    await site.crash()
    await site.beats(site.one, seconds=LONGEST_PAUSE)
    assert await site.state(box) == ("failed", "stopped")


@story()
async def test_a_box_that_is_started_again_by_a_dying_engine_is_started_by_the_next(site: CoordinatorSite) -> None:
    box, late = await site.running(), await site.core.creation.create("default", {})
    site.one.boxes[box.id] = Container(1, "stopped", interrupted=True)
    site.one.dying = True
    await site.core.boxes.start("default", late.id)
    await site.beats(site.one)
    assert await site.state(box) == await site.state(late) == ("configured", "running")
    site.one.dying = False
    site.one.restart_engine()
    await site.look()
    assert await site.state(box) == await site.state(late) == ("running", "running")


@story()
async def test_a_short_command_that_is_run_again_ends_for_good(site: CoordinatorSite) -> None:
    box, once = await site.running(), await site.running(auto_remove=True)
    site.one.restart_engine()
    site.one.brief = True
    await site.beats(site.one)
    await site.look()
    assert (await site.state(box), await site.state(once)) == (("stopped", "stopped"), None)
    assert site.one.calls.count("StartBox") == 4


@story()
async def test_a_box_that_its_worker_stopped_unasked_says_why_and_stays(site: CoordinatorSite) -> None:
    box = await site.running(auto_remove=True)
    site.one.boxes[box.id] = Container(1, "stopped", reason="its disk is over its limit")
    for _ in range(2):
        await site.beats(site.one)
        await site.look()
        assert await site.state(box) == ("stopped", "stopped")
        assert (await site.row(box)).error == "its worker stopped it: its disk is over its limit"
    site.one.boxes[box.id].reason = ""  # the worker has forgotten it
    await site.core.observer.refresh(box.id)
    assert (await site.row(box)).error == "its worker stopped it: its disk is over its limit"
    assert (await site.core.boxes.start("default", box.id)).error is None
    site.one.boxes[box.id] = Container(1, "stopped")
    await site.beats(site.one)
    assert await site.state(box) is None


@story()
async def test_a_restart_survives_the_coordinator(site: CoordinatorSite) -> None:
    box = await site.running()
    site.one.boxes[box.id] = Container(1, "stopped", interrupted=True)
    site.one.refuse("StartBox", errors.ResourceExhaustedError("too many starts of boxes"))
    await site.beats(site.one)
    await site.crash()
    site.one.recover()
    site.one.boxes[box.id].interrupted = False  # the worker was restarted as well
    await site.look()
    assert await site.state(box) == ("running", "running")


# ---- broken off ------------------------------------------------------------------------------------------


@story()
async def test_a_create_that_a_crash_cut_off_is_finished_where_the_container_is(site: CoordinatorSite) -> None:
    task = await begun(site.core.creation.create("default", {"name": "x"}), site.one, "CreateBox")
    await site.crash(task)
    box = await site.core.boxes.get("default", "x")
    assert box.status == "creating"
    await site.look()
    assert await site.state(box) == ("configured", "stopped")
    await site.core.boxes.start("default", "x")


@story()
async def test_a_create_that_a_crash_cut_off_is_undone_where_there_is_no_container(site: CoordinatorSite) -> None:
    task = await begun(site.core.creation.create("default", {"name": "x"}), site.one, "CreateBox")
    await site.crash(task)
    site.one.boxes.clear()
    await site.look()
    with pytest.raises(errors.NotFoundError):
        await site.core.boxes.get("default", "x")
    assert "RemoveBox" in site.one.calls  # removes the box's disks, and a container that a late call makes
    await site.core.creation.create("default", {"name": "x"})


@story()
async def test_what_goes_on_is_not_broken_off(site: CoordinatorSite) -> None:
    task = await begun(site.core.creation.create("default", {"name": "x"}), site.one, "CreateBox")
    await site.core.reconciler.look()
    await asyncio.sleep(0)
    assert (await site.core.boxes.get("default", "x")).status == "creating"
    assert {"GetBox", "RemoveBox"}.isdisjoint(site.one.calls)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@story()
async def test_a_stop_that_a_crash_cut_off_is_finished(site: CoordinatorSite) -> None:
    box = await site.running()
    task = await begun(site.core.boxes.stop("default", box.id, None), site.one, "StopBox")
    site.one.boxes[box.id].status = "running"  # the stop was not carried out
    await site.crash(task)
    assert await site.state(box) == ("stopping", "stopped")
    await site.look()
    assert await site.state(box) == ("stopped", "stopped")
    assert site.one.boxes[box.id].status == "stopped"


@pytest.mark.parametrize("done", [True, False])
def test_a_stop_whose_answer_is_lost(tmp_path: Path, done: bool) -> None:
    @story()
    async def test(site: CoordinatorSite) -> None:
        box = await site.running(auto_remove=True)
        site.one.lose("StopBox", after=done)
        with pytest.raises(errors.UnreachableError):
            await site.core.boxes.stop("default", box.id, None)
        assert await site.state(box) == ("stopping", "stopped")
        site.one.recover()
        await site.beats(site.one)
        assert await site.state(box) is None
        assert site.one.boxes == {}

    test(tmp_path)


@pytest.mark.parametrize("done", [True, False])
def test_a_start_whose_answer_is_lost(tmp_path: Path, done: bool) -> None:
    @story()
    async def test(site: CoordinatorSite) -> None:
        box = await site.core.creation.create("default", {})
        site.one.lose("StartBox", after=done)
        with pytest.raises(errors.UnreachableError):
            await site.core.boxes.start("default", box.id)
        assert (await site.row(box)).desired == "running"
        site.one.recover()
        await site.beats(site.one)
        assert await site.state(box) == ("running", "running")

    test(tmp_path)


@story()
async def test_a_start_whose_answer_is_lost_and_whose_command_has_ended_is_not_repeated(site: CoordinatorSite) -> None:
    box = await site.core.creation.create("default", {})
    site.one.lose("StartBox", after=True)
    with pytest.raises(errors.UnreachableError):
        await site.core.boxes.start("default", box.id)
    site.one.recover()
    site.one.boxes[box.id].status = "stopped"
    site.one.calls.clear()
    await site.beats(site.one)
    assert await site.state(box) == ("stopped", "stopped")
    assert "StartBox" not in site.one.calls


@pytest.mark.parametrize("done", [True, False])
def test_a_removal_whose_answer_is_lost(tmp_path: Path, done: bool) -> None:
    @story()
    async def test(site: CoordinatorSite) -> None:
        box = await site.core.creation.create("default", {})
        site.one.lose("RemoveBox", after=done)
        with pytest.raises(errors.UnreachableError):
            await site.core.boxes.remove("default", box.id, force=False)
        with pytest.raises(errors.InvalidStateError, match="is being removed"):
            await site.core.boxes.start("default", box.id)
        site.one.recover()
        await site.beats(site.one)
        assert await site.state(box) is None
        assert site.one.boxes == {}

    test(tmp_path)


@story()
async def test_a_removal_that_was_never_asked_for_leaves_the_box(site: CoordinatorSite) -> None:
    box = await site.core.creation.create("default", {})
    site.one.refuse("RemoveBox", errors.UpstreamUnavailableError("the worker sends no heartbeat"))
    with pytest.raises(errors.UpstreamUnavailableError):
        await site.core.boxes.remove("default", box.id, force=False)
    assert await site.state(box) == ("configured", "stopped")


@story()
async def test_a_clone_that_a_crash_cut_off(site: CoordinatorSite) -> None:
    source = await site.core.creation.create("default", {})
    for made in (True, False):
        task = await begun(site.core.snapshots.clone("default", source.id, "copy"), site.one, "CloneBox")
        site.one.calls.clear()
        await site.crash(task)
        copy = await site.core.boxes.get("default", "copy")
        if not made:
            del site.one.boxes[copy.id]
        await site.look()
        assert await site.state(copy) == (("configured", "stopped") if made else None)
        if made:
            await site.core.boxes.remove("default", "copy", force=False)


@story()
async def test_snapshots_that_a_crash_cut_off(site: CoordinatorSite) -> None:
    box = await site.core.creation.create("default", {})
    await site.core.snapshots.create("default", box.id, "kept")
    task = await begun(site.core.snapshots.create("default", box.id, "s"), site.one, "CreateSnapshot")
    await site.crash(task)
    await site.look()  # reports do not mention snapshots
    assert [s.name for s in await site.core.snapshots.list("default", box.id)] == ["kept"]
    assert len(site.one.snapshots) == 1

    task = await begun(site.core.snapshots.restore("default", box.id, "kept"), site.one, "RestoreSnapshot")
    await site.crash(task)
    await site.look()
    row = await site.row(box)
    assert (row.status, row.generation, site.one.boxes[box.id].generation) == ("configured", 2, 2)

    task = await begun(site.core.snapshots.remove("default", box.id, "kept"), site.one, "RemoveSnapshot")
    site.one.snapshots.add("again")
    await site.crash(task)
    await site.beats(site.one)
    assert await site.core.snapshots.list("default", box.id) == []


@story()
async def test_volumes_that_a_crash_cut_off(site: CoordinatorSite) -> None:
    task = await begun(site.core.volumes.create("default", "v"), site.one, "CreateVolume")
    await site.crash(task)
    await site.look()
    assert (await site.core.volumes.list("default"), site.one.volumes) == ([], set())
    volume = await site.core.volumes.create("default", "v")
    site.one.volumes.add("of-nobody")
    task = await begun(site.core.volumes.remove("default", "v", force=False), site.one, "RemoveVolume")
    site.one.volumes.add(volume.id)
    await site.crash(task)
    await site.look()
    assert (await site.core.volumes.list("default"), site.one.volumes) == ([], {"of-nobody"})


@story()
async def test_nothing_is_changed_about_a_worker_that_cannot_be_reached(site: CoordinatorSite) -> None:
    task = await begun(site.core.creation.create("default", {"name": "x"}), site.one, "CreateBox")
    await site.crash(task)
    site.one.calls.clear()
    await site.look(3600, beats=False)
    assert site.one.calls == []
    assert (await site.core.boxes.get("default", "x")).status == "creating"
    await site.beats(site.one)
    assert (await site.core.boxes.get("default", "x")).status == "configured"


@story()
async def test_what_could_not_be_dealt_with_is_asked_for_again(site: CoordinatorSite) -> None:
    box = await site.running()
    site.one.boxes[box.id].status = "stopped"
    body = {"epoch": epoch(1), "inventory": "digest", "boxes": site.one.inventory()}
    site.one.refuse("GetBox", errors.EngineError("not now"))
    for expected in (True, False):
        assert (await workers_api.heartbeat(site.core, site.one.id, body))["send_inventory"] is False
        await settle()
        beat = {"epoch": epoch(1), "inventory": "digest"}
        assert (await workers_api.heartbeat(site.core, site.one.id, beat))["send_inventory"] is expected
        site.one.recover()
    assert await site.state(box) == ("stopped", "stopped")


# ---- orphans ---------------------------------------------------------------------------------------------


@story()
async def test_an_orphan_goes_after_its_grace(site: CoordinatorSite) -> None:
    orphan = ids.new_id()
    site.one.boxes[orphan] = Container(1)
    await site.beats(site.one)
    await site.look(GRACE - 1)
    assert orphan in site.one.boxes
    await site.beats(site.one, seconds=0)  # the orphan was there all the time
    await site.look(1)
    assert orphan not in site.one.boxes


@story()
async def test_what_is_younger_than_a_backup_is_left_alone_until_somebody_says_so(site: CoordinatorSite) -> None:
    database = Path(site.database)
    backup = database.with_name("backup.db")
    back_up(database, backup)
    await site.core.close()
    site.database = backup
    await site.open(site.one)
    younger = ids.new_id()
    site.one.boxes[younger] = Container(1)
    await site.beats(site.one)
    await site.look(GRACE)
    await site.core.reconciler.run(dry_run=True)
    assert younger in site.one.boxes
    await site.core.reconciler.run(dry_run=False)
    await site.look(GRACE)
    assert younger not in site.one.boxes


@story()
async def test_a_box_that_came_to_be_on_another_worker_leaves_an_orphan(site: CoordinatorSite) -> None:
    """The answer of the first worker is lost: it has made the box all the same."""
    site.one.lose("CreateBox", after=True)
    await site.put(site.two)
    box = await site.core.creation.create("default", {})
    assert (box.worker_id, box.generation) == (site.two.id, 2)
    assert site.one.boxes[box.id].generation == 1
    for _ in range(3):
        await site.beats(site.one, site.two, seconds=GRACE)
        await site.look()
    assert site.one.boxes == {}
    assert site.two.boxes[box.id].generation == 2
    assert await site.state(box) == ("configured", "stopped")


@story()
async def test_a_later_generation_is_never_removed(site: CoordinatorSite) -> None:
    box = await site.core.creation.create("default", {})
    site.one.boxes[box.id] = Container(7, "running")
    for _ in range(3):
        await site.beats(site.one, seconds=GRACE)
        await site.look()
    assert site.one.boxes[box.id] == Container(7, "running")


# ---- when asked ------------------------------------------------------------------------------------------


@story("one", "two")
async def test_a_dry_run_says_what_a_run_does(site: CoordinatorSite) -> None:
    runs = await site.core.creation.create("default", {})
    other = await site.core.creation.create("default", {})
    assert {runs.worker_id, other.worker_id} == {site.one.id, site.two.id}
    worker = site.one if runs.worker_id == site.one.id else site.two
    await site.core.boxes.start("default", runs.id)
    worker.restart_engine()
    orphan = ids.new_id()
    worker.boxes[orphan] = Container(1)
    worker.volumes.add("v")
    expected = {(Kind.RESTART, runs.id, ""), (Kind.REMOVE_ORPHAN, orphan, ""), (Kind.UNKNOWN, "", "v")}

    outcome = await site.core.reconciler.run(dry_run=True)
    assert {(d.action.kind, d.action.box_id, d.action.volume_id) for d in outcome.done} == expected
    assert {(d.done, d.error) for d in outcome.done} == {(False, None)}
    assert await site.state(runs) == ("running", "running")
    assert worker.boxes[runs.id].status == "stopped"

    site.clock.now += GRACE
    await site.put(site.one, site.two)
    outcome = await site.core.reconciler.run(dry_run=False)
    assert {(d.action.kind, d.done, d.error) for d in outcome.done} == {
        (Kind.RESTART, True, None),
        (Kind.REMOVE_ORPHAN, True, None),
        (Kind.UNKNOWN, False, None),
    }
    assert (worker.boxes[runs.id].status, list(worker.boxes), worker.volumes) == ("running", [runs.id], {"v"})
    assert [d.action.kind for d in (await site.core.reconciler.run(dry_run=True)).done] == [Kind.UNKNOWN]


@story("one", "two")
async def test_a_run_names_who_cannot_be_asked(site: CoordinatorSite) -> None:
    site.one.lose("ListBoxes")
    outcome = await site.core.reconciler.run(dry_run=True)
    assert outcome.unreachable == {"one": "worker one cannot be reached"}
    site.clock.now += 3600
    outcome = await site.core.reconciler.run(dry_run=True, worker="two")
    assert list(outcome.unreachable) == ["two"]
    with pytest.raises(errors.NotFoundError):
        await site.core.reconciler.run(dry_run=True, worker="three")


@story()
async def test_a_run_says_what_could_not_be_done(site: CoordinatorSite) -> None:
    box = await site.running()
    site.one.restart_engine()
    site.one.refuse("StartBox", errors.InvalidStateError("port 80 is taken"))
    outcome = await site.core.reconciler.run(dry_run=False)
    assert [(d.action.box_id, d.done, d.error) for d in outcome.done] == [(box.id, False, "port 80 is taken")]


@story()
async def test_the_answer_to_an_operator(site: CoordinatorSite) -> None:
    orphan = ids.new_id()
    site.one.boxes[orphan] = Container(3)
    site.one.volumes.add("v")
    answer = await workers_api.reconcile(site.core, {"dry_run": True})
    nothing = {"done": False, "error": None}
    assert answer == {
        "dry_run": True,
        "actions": [
            {
                "kind": "remove_orphan",
                "worker": "one",
                "box_id": orphan,
                "volume_id": None,
                "generation": 3,
                "reason": "no box has it",
                "due_at": "2027-01-15T12:01:00.000Z",
                **nothing,
            },
            {
                "kind": "unknown",
                "worker": "one",
                "box_id": None,
                "volume_id": "v",
                "generation": None,
                "reason": "it has no row; it is left alone, since it may hold data",
                "due_at": None,
                **nothing,
            },
        ],
        "unreachable": [],
    }
