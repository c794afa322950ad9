"""What every `BoxRuntime` promises about prepared boxes: they look as if they were not started, can be claimed for
another spec, and are started in no time."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from support.sites import Site, collect

from boxlite_server import ids
from boxlite_server.errors import ExecutionError, StoppedError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.runtime import BoxRef, BoxState, BoxStatus


def prepared_box(site: Site, **fields: object) -> tuple[BoxRef, BoxState]:
    box = BoxRef(ids.new_id(), 1)
    return box, site.runtime.prepare(box, site.spec(**fields))


def listed(site: Site, box: BoxRef) -> list[BoxState]:
    return [state for state in site.runtime.list_boxes() if state.box.box_id == box.box_id]


def said(site: Site, box: BoxRef, script: str) -> str:
    return collect(site.runtime.spawn(box, ExecSpec(("sh", "-c", script))))[0].decode()


def log_of(site: Site, box: BoxRef) -> str:
    """All that the box's main command has said, once it has ended."""
    reader = site.runtime.read_logs(box, None, follow=True)
    pieces = []
    while (piece := reader.read()) is not None:
        pieces.append(piece[1])
    reader.close()
    return b"".join(pieces).decode()


def test_a_prepared_box_counts_as_not_started_until_its_start(site: Site) -> None:
    box, state = prepared_box(site)
    images = {image.image_id for image in site.runtime.images.list()}
    unclaimed = BoxState(box, BoxStatus.CONFIGURED, unclaimed=True)
    assert state == replace(unclaimed, image_id=state.image_id, engine_life=site.runtime.life())
    assert state.image_id in images
    assert listed(site, box) == [site.runtime.inspect(box)] == [unclaimed]
    with pytest.raises(StoppedError, match="not running"):
        site.runtime.spawn(box, ExecSpec(("true",)))
    started = site.runtime.start(box)
    assert started.status is BoxStatus.RUNNING
    assert started.pid
    os.kill(started.pid, 0)
    assert listed(site, box) == [replace(started, engine_life="")]
    assert said(site, box, "echo hello") == "hello\n"
    site.runtime.remove(box, force=True)


def test_a_claimed_box_has_the_environment_the_directory_and_the_command_of_its_claim(site: Site) -> None:
    box, _ = prepared_box(site)
    script = "echo main has $ONE and $TWO in $PWD; exec tail -f /dev/null"
    wanted = site.spec(env={"ONE": "a b", "TWO": "c"}, working_dir="/tmp", cmd=("sh", "-c", script))
    claimed = site.runtime.create(box, wanted)
    assert (claimed.status, claimed.unclaimed) == (BoxStatus.CONFIGURED, False)
    assert listed(site, box) == [BoxState(box, BoxStatus.CONFIGURED)]
    main = site.runtime.attach_main(box)
    assert site.runtime.start(box).status is BoxStatus.RUNNING
    assert main.read() == (1, b"main has a b and c in /tmp\n")
    main.close()
    assert said(site, box, "echo $ONE, $TWO in $PWD") == "a b, c in /tmp\n"
    own = collect(site.runtime.spawn(box, ExecSpec(("sh", "-c", "echo $ONE $PWD"), {"ONE": "own"}, "/")))
    assert own[0] == b"own /\n"
    site.runtime.remove(box, force=True)


def test_a_claimed_box_is_the_same_in_each_of_its_runs(site: Site) -> None:
    box, _ = prepared_box(site)
    site.runtime.create(box, site.spec(env={"ONE": "x"}, cmd=("sh", "-c", "echo $ONE; exit 5")))
    for _ in range(2):
        site.runtime.start(box)
        log_of(site, box)
    assert log_of(site, box) == "x\nx\n"
    assert (site.runtime.inspect(box).status, site.runtime.inspect(box).exit_code) == (BoxStatus.STOPPED, 5)
    site.runtime.remove(box, force=False)


def test_a_claim_that_is_repeated_changes_nothing(site: Site) -> None:
    box, _ = prepared_box(site)
    for value in ("first", "second"):
        state = site.runtime.create(box, site.spec(env={"ONE": value}))
        assert (state.status, state.unclaimed) == (BoxStatus.CONFIGURED, False)
    site.runtime.start(box)
    assert site.runtime.create(box, site.spec()).status is BoxStatus.RUNNING
    assert said(site, box, "echo $ONE") == "first\n"
    site.runtime.remove(box, force=True)


@pytest.mark.parametrize("other", [{"memory_mib": 96}, {"user": "0"}, {"tty": True}, {"working_dir": "/not/there"}])
def test_a_box_that_is_claimed_for_what_cannot_be_changed_is_made_anew(site: Site, other: dict[str, object]) -> None:
    box, _ = prepared_box(site)
    assert site.runtime.create(box, site.spec(**other)).status is BoxStatus.CONFIGURED
    assert listed(site, box) == [BoxState(box, BoxStatus.CONFIGURED)]
    if not other.keys() & {"working_dir", "user"}:  # where the runtimes differ
        assert site.runtime.start(box).status is BoxStatus.RUNNING
    site.runtime.remove(box, force=True)


def test_a_claimed_box_whose_main_command_is_not_found_says_so(site: Site) -> None:
    box, _ = prepared_box(site)
    site.runtime.create(box, site.spec(entrypoint=("/not/there",)))
    with pytest.raises(ExecutionError, match=r"not found in the box|/not/there"):
        site.runtime.start(box)
    site.runtime.remove(box, force=True)


def test_every_verb_takes_a_prepared_box_for_one_at_rest(site: Site) -> None:
    box, state = prepared_box(site)
    again = site.runtime.prepare(box, site.spec())
    assert (again.status, again.engine_life) == (state.status, state.engine_life)
    assert site.runtime.stop(box, 1).status is BoxStatus.CONFIGURED
    usage = site.runtime.measure(box)
    assert (usage.cpu_percent, usage.memory_bytes) == (0.0, 0)
    site.runtime.remove(box, force=False)
    assert listed(site, box) == []


def test_a_box_that_runs_is_not_prepared_again(site: Site) -> None:
    box, _ = prepared_box(site)
    started = site.runtime.start(box)
    assert site.runtime.prepare(box, site.spec()).status is BoxStatus.RUNNING
    assert site.runtime.inspect(box).pid == started.pid
    stopped = site.runtime.stop(box, 0)
    assert site.runtime.prepare(box, site.spec()) == stopped
    site.runtime.remove(box, force=True)


def test_a_claimed_box_is_restored_copied_and_exported_like_any_other(site: Site) -> None:
    box, _ = prepared_box(site)
    claimed = site.spec(env={"ONE": "x"}, cmd=("sh", "-c", "echo $ONE > /one; exec tail -f /dev/null"))
    site.runtime.create(box, claimed)
    site.runtime.disks.snapshot(box, snapshot_id := ids.new_id())
    with site.runtime.disks.export(box) as export:
        own = export.settings
    assert (own.env["ONE"], own.cmd) == ("x", claimed.cmd)
    assert "/dev/boxlite/init" not in own.entrypoint
    copy, restored = BoxRef(ids.new_id(), 1), BoxRef(box.box_id, 2)
    site.runtime.disks.clone(box, copy, claimed)
    assert site.runtime.disks.restore(box, snapshot_id, 2, claimed).status is BoxStatus.CONFIGURED
    for each in (copy, restored):
        assert site.runtime.start(each).status is BoxStatus.RUNNING
        assert said(site, each, "until cat /one 2>/dev/null; do sleep 0.02; done; echo $ONE") == "x\nx\n"
        site.runtime.remove(each, force=True)
