"""Boxes whose disks are limited, on an engine without quotas: the worker watches them. A GB is a MiB here."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import fake_runtime
from support.cluster import wait_until
from support.fake_runtime import FakeRuntime
from support.sites import Site, collect

from boxlite_server import ids
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.errors import ResourceExhaustedError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.disk_watch import DiskRoom, DiskWatch
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.runtime import BoxRef, BoxState, BoxStatus, DiskLimit, Mount, Owner
from boxlite_server.worker.service.incoming import imported
from boxlite_server.worker.stop_reasons import StopReasons

MIB = 1024 * 1024
OWNER = Owner(ids.new_id(), ids.new_id())


@dataclass
class Watched(Site):
    """A site whose disks can be watched. `home`: where its reasons are kept; None for the fake runtime."""

    home: Path | None = None

    def run(self, box: BoxRef, script: str) -> None:
        assert collect(self.runtime.spawn(box, ExecSpec(("sh", "-c", script))))[2] == 0

    def state(self, box: BoxRef) -> BoxState:
        return self.runtime.inspect(box)

    def await_status(self, box: BoxRef, status: BoxStatus) -> BoxState:
        wait_until(lambda: self.state(box).status is status, f"the box is {status}")
        return self.state(box)


def docker_runtime(docker_host: str, home: Path, **how: bool) -> DockerRuntime:
    return DockerRuntime(lambda: OWNER, docker_host, stop_reasons=home / "reasons.json", gb=MIB, **how)


RUNTIMES = ()  # this module has a site of its own


@pytest.fixture(scope="module", params=["docker", "fake"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    home = tmp_path_factory.mktemp("home")
    if request.param == "fake":
        runtime = FakeRuntime(gb=MIB)
        yield Watched(runtime, fake_runtime.IMAGE, fake_runtime.BARE_IMAGE, home)
        runtime.close()
        return
    docker = docker_runtime(request.getfixturevalue("docker_host"), home)
    images = request.getfixturevalue("test_image"), request.getfixturevalue("bare_image")
    yield Watched(docker, *images, home, home=home)
    for state in docker.list_boxes():
        docker.remove(state.box, force=True)
    docker.close()


@pytest.fixture
def watching(site: Watched) -> Iterator[None]:
    """The disks are watched at short intervals."""
    stopping = threading.Event()
    watch = DiskWatch(site.runtime, lambda box: nullcontext(), random.Random(1), interval=0.5)
    thread = threading.Thread(target=watch.run, args=(stopping,))
    thread.start()
    yield
    stopping.set()
    thread.join()


WRITE = "dd if=/dev/zero of=big bs=1024k count=3 2>/dev/null"


@pytest.mark.usefixtures("watching")
def test_a_box_that_outgrows_its_disk_is_stopped_and_says_why(site: Watched) -> None:
    small, large, free = (site.running_box(disk_size_gb=gb) for gb in (1, 8, 0))
    for box in (large, free, small):
        site.run(box, WRITE)
    state = site.await_status(small, BoxStatus.STOPPED)
    assert "MiB to its disk, more than the 1 MiB of its disk_size_gb" in state.reason
    assert [found.reason for found in site.runtime.list_boxes() if found.box == small] == [state.reason]
    assert [site.state(box).status for box in (large, free)] == [BoxStatus.RUNNING] * 2


@pytest.mark.usefixtures("watching")
def test_a_box_over_its_limit_can_be_started_again_to_delete_files(site: Watched) -> None:
    box = site.running_box(disk_size_gb=1, entrypoint=("sh", "-c", f"{WRITE}; exec cat"))
    assert site.await_status(box, BoxStatus.STOPPED).reason
    assert not site.runtime.start(box).reason
    assert site.await_status(box, BoxStatus.STOPPED).reason


def test_a_stop_that_was_asked_for_has_no_reason(site: Watched) -> None:
    box = site.running_box(disk_size_gb=1)
    site.runtime.stop(box, 0, "because")
    assert site.state(box).reason == "because"
    site.runtime.start(box)
    assert not site.state(box).reason
    assert not site.runtime.stop(box, 0).reason


def test_the_reason_outlives_the_worker_and_goes_with_the_box(site: Watched, docker_host: str) -> None:
    if site.home is None:
        pytest.skip("the fake runtime keeps no files")
    box = site.running_box(disk_size_gb=1)
    site.runtime.stop(box, 0, "because")
    next_life = docker_runtime(docker_host, site.home)
    assert next_life.inspect(box).reason == "because"
    next_life.remove(box, force=True)
    assert "because" not in (site.home / "reasons.json").read_text()
    next_life.close()


def test_reasons_that_cannot_be_read_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "reasons.json"
    for text in ("", "[]", '{"a": 1}', '{"a": ["x", 1]}'):
        path.write_text(text)
        assert StopReasons(path).get(BoxRef("a", 1)) == ""


def test_a_copy_of_a_box_has_its_own_limit_or_none(site: Watched) -> None:
    box = site.running_box(disk_size_gb=1)
    limited, free = BoxRef(ids.new_id(), 1), BoxRef(ids.new_id(), 1)
    site.runtime.disks.clone(box, limited, site.spec(disk_size_gb=2))
    site.runtime.disks.clone(box, free, site.spec())
    for clone in (limited, free):
        site.runtime.start(clone)
    watched = site.runtime.watched_boxes()
    assert (box in watched, limited in watched, free in watched) == (True, True, False)
    assert site.runtime.disk_use(limited).limit == 2 * MIB


def test_a_restored_box_keeps_its_limit(site: Watched) -> None:
    box, snapshot = site.running_box(disk_size_gb=1), ids.new_id()
    site.runtime.disks.snapshot(box, snapshot)
    site.runtime.stop(box, 0)
    restored = BoxRef(box.box_id, 2)
    site.runtime.disks.restore(box, snapshot, 2, site.spec(disk_size_gb=1))
    site.runtime.start(restored)
    assert restored in site.runtime.watched_boxes()


def test_holes_do_not_count(site: Watched) -> None:
    box = site.running_box(disk_size_gb=1)
    site.run(box, "truncate -s 1G sparse")
    assert site.runtime.disk_use(box).written < MIB


def test_a_box_at_rest_is_not_watched(site: Watched) -> None:
    assert site.new_box(disk_size_gb=1) not in site.runtime.watched_boxes()


def test_the_worker_says_that_it_watches(site: Watched) -> None:
    assert site.runtime.capacity().disk_limit is DiskLimit.WATCHED


def test_the_box_that_fills_the_disk_of_the_host_is_stopped_and_the_others_go_on(site: Watched) -> None:
    quiet, greedy = site.running_box(), site.running_box()
    site.run(quiet, WRITE)
    free, _ = site.runtime.disk_free()
    room = DiskRoom(site.runtime, free + (1 << 30))  # as if less were free than its reserve
    with pytest.raises(ResourceExhaustedError, match="nearly full"):
        room.check()
    stopping = threading.Event()
    watch = DiskWatch(site.runtime, lambda box: nullcontext(), random.Random(1), interval=0.5, room=room)
    thread = threading.Thread(target=watch.run, args=(stopping,))
    thread.start()
    script = "while :; do dd if=/dev/zero bs=1024k count=4 2>/dev/null >> big; sleep 0.2; done"
    writing = site.runtime.spawn(greedy, ExecSpec(("sh", "-c", script)))
    state = site.await_status(greedy, BoxStatus.STOPPED)
    stopping.set()
    thread.join()
    collect(writing)
    assert "the disk of its host was nearly full" in state.reason
    assert site.state(quiet).status is BoxStatus.RUNNING
    for box in (quiet, greedy):
        site.runtime.remove(box, force=True)


def test_a_disk_with_room_lets_everything_through(site: Watched) -> None:
    free, size = site.runtime.disk_free()
    assert 0 < free <= size
    DiskRoom(site.runtime, 0).check()


def test_what_a_box_has_in_its_volumes_counts_as_written(site: Watched) -> None:
    if isinstance(site.runtime, FakeRuntime):
        pytest.skip("its volumes hold nothing")
    volume = ids.new_id()
    site.runtime.volumes.create(volume)
    box = site.running_box(mounts=(Mount(guest_path="/data", volume_id=volume),))
    site.run(box, "dd if=/dev/zero of=/data/big bs=1024k count=3 2>/dev/null")
    assert site.runtime.disk_use(box).volumes >= 3 * MIB
    site.runtime.remove(box, force=True)
    site.runtime.volumes.remove(volume)


def test_an_import_ends_when_the_disk_fills_up_meanwhile() -> None:
    full = iter([False, False, True])

    def check() -> None:
        if next(full):
            raise ResourceExhaustedError("no space left")

    requests = (pb.ImportBoxRequest(data=b"x") for _ in range(1000))
    taken: list[bytes] = []
    with pytest.raises(ResourceExhaustedError):
        taken.extend(imported(requests, check))
    assert len(list(requests)) > 900
