"""What every `BoxRuntime` promises about prepared boxes: they are as good as started, and look as if they were not."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from support.cluster import wait_until
from support.sites import Site, collect

from boxlite_server import ids
from boxlite_server.errors import StoppedError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.runtime import BoxRef, BoxState, BoxStatus


def prepared_box(site: Site, **fields: object) -> tuple[BoxRef, BoxState]:
    box = BoxRef(ids.new_id(), 1)
    return box, site.runtime.prepare(box, site.spec(**fields))


def listed(site: Site, box: BoxRef) -> list[BoxState]:
    return [state for state in site.runtime.list_boxes() if state.box.box_id == box.box_id]


def test_a_prepared_box_counts_as_not_started_until_its_start(site: Site) -> None:
    box, state = prepared_box(site)
    images = {image.image_id for image in site.runtime.images.list()}
    assert state == BoxState(box, BoxStatus.CONFIGURED, image_id=state.image_id, engine_life=site.runtime.life())
    assert state.image_id in images
    assert listed(site, box) == [site.runtime.inspect(box)] == [BoxState(box, BoxStatus.CONFIGURED)]
    with pytest.raises(StoppedError, match="not running"):
        site.runtime.spawn(box, ExecSpec(("true",)))
    started = site.runtime.start(box)
    assert started.status is BoxStatus.RUNNING
    assert started.pid
    os.kill(started.pid, 0)
    assert listed(site, box) == [replace(started, engine_life="")]
    assert collect(site.runtime.spawn(box, ExecSpec(("echo", "hello"))))[0] == b"hello\n"
    site.runtime.remove(box, force=True)


def test_every_verb_takes_a_prepared_box_for_one_at_rest(site: Site) -> None:
    box, state = prepared_box(site)
    again = site.runtime.prepare(box, site.spec())
    assert (again.status, again.engine_life) == (state.status, state.engine_life)
    assert site.runtime.create(box, site.spec()).status is BoxStatus.CONFIGURED
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


def test_a_prepared_box_is_restored_like_one_at_rest(site: Site) -> None:
    box, _ = prepared_box(site)
    site.runtime.disks.snapshot(box, snapshot_id := ids.new_id())
    restored = site.runtime.disks.restore(box, snapshot_id, 2, site.spec())
    assert restored.status is BoxStatus.CONFIGURED
    assert site.runtime.start(BoxRef(box.box_id, 2)).status is BoxStatus.RUNNING
    site.runtime.remove(BoxRef(box.box_id, 2), force=True)


def test_a_prepared_box_whose_command_has_ended_runs_it_again_at_the_start(site: Site) -> None:
    box, _ = prepared_box(site, cmd=("true",))
    assert site.runtime.inspect(box).status is BoxStatus.CONFIGURED
    site.runtime.start(box)
    wait_until(lambda: site.runtime.inspect(box).status is BoxStatus.STOPPED, "its command has ended")
    assert site.runtime.inspect(box).exit_code == 0
    site.runtime.remove(box, force=False)
