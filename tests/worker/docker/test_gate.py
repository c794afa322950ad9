"""The bound on starts."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.sites import Site, in_thread

from boxlite_server import ids
from boxlite_server.errors import EngineError, ResourceExhaustedError
from boxlite_server.worker.docker import containers
from boxlite_server.worker.docker.engine import engine_errors
from boxlite_server.worker.docker.gate import Gate
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.runtime import BoxRef, BoxStatus
from boxlite_server.worker.service import servicer


class Crowd:
    """Threads inside a gate until they are let go."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.inside, self.release = threading.Semaphore(0), threading.Event()
        self.threads: list[threading.Thread] = []

    def add(self) -> None:
        def visit() -> None:
            with self._gate.place():
                self.inside.release()
                assert self.release.wait(60)

        self.threads.append(in_thread(visit))


def test_so_many_inside_so_many_waiting_and_no_more() -> None:
    gate = Gate(2, 1, 60, "too many starts")
    crowd = Crowd(gate)
    for _ in range(2):
        crowd.add()
        assert crowd.inside.acquire(timeout=60)
    crowd.add()
    while gate._present < 3:
        crowd.threads[2].join(0.001)
    with pytest.raises(ResourceExhaustedError, match="too many starts under way; try again later"), gate.place():
        pytest.fail("entered")
    crowd.release.set()
    assert crowd.inside.acquire(timeout=60)
    for thread in crowd.threads:
        thread.join(60)
    with gate.place():
        pass


def test_nobody_waits_for_ever() -> None:
    gate = Gate(1, 1, 0.01, "too many starts")
    with gate.place():
        with pytest.raises(ResourceExhaustedError), gate.place():
            pytest.fail("entered")
        with pytest.raises(ResourceExhaustedError), gate.place():
            pytest.fail("entered")


def test_creates_and_starts_pass_the_gate(docker_alone: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = docker_alone.runtime
    assert isinstance(runtime, DockerRuntime)
    former, box = docker_alone.new_box(), docker_alone.new_box()
    with monkeypatch.context() as patch:
        patch.setattr(runtime._containers, "starts", Gate(0, 0, 0, "too many starts of boxes"))
        for verb in (
            lambda: runtime.start(box),
            lambda: runtime.create(BoxRef(ids.new_id(), 1), docker_alone.spec()),
            lambda: runtime.create(BoxRef(former.box_id, 2), docker_alone.spec()),
            lambda: runtime.disks.clone(box, BoxRef(ids.new_id(), 1), docker_alone.spec()),
        ):
            with pytest.raises(ResourceExhaustedError, match="too many starts"):
                verb()
        assert runtime.inspect(former).status is BoxStatus.CONFIGURED, "a refusal costs the box nothing"
    runtime.start(box)
    for ref in (box, former):
        runtime.remove(ref, force=True)


def test_many_starts_at_once_all_come_about(docker_alone: Site) -> None:
    assert containers.MAX_STARTS == 8
    with ThreadPoolExecutor(12) as pool:
        boxes = list(pool.map(lambda _: docker_alone.running_box(), range(12)))
    assert {docker_alone.runtime.inspect(box).status for box in boxes} == {BoxStatus.RUNNING}
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda box: docker_alone.runtime.remove(box, force=True), boxes))


def test_five_hundred_starts_at_once_wait_for_their_turn(docker_alone: Site) -> None:
    runtime = docker_alone.runtime
    assert isinstance(runtime, DockerRuntime)
    starts, arrived, all_arrived = runtime._containers.starts, itertools.count(1), threading.Event()

    def enter(_: int) -> None:
        if next(arrived) == 500:
            all_arrived.set()
        with starts.place():
            assert all_arrived.wait(60)

    with ThreadPoolExecutor(500) as pool:
        list(pool.map(enter, range(500)))


def test_waiting_starts_leave_threads_to_the_other_calls() -> None:
    waiting = containers.MAX_STARTS + containers.MAX_WAITING_STARTS
    long_ones = servicer.MAX_READERS + servicer.MAX_RUNS + servicer.MAX_TRANSFERS
    assert servicer.MAX_CALLS - long_ones - waiting >= 100


def test_a_full_disk_of_the_engine_is_exhaustion(docker_alone: Site, tmp_path: Path) -> None:
    import docker.errors
    import requests

    full = requests.Response()
    full.status_code = 500
    text = "mkdir /var/lib/docker/overlay2/x: no space left on device"
    with pytest.raises(ResourceExhaustedError, match="disk of the container engine is full"), engine_errors("create"):
        raise docker.errors.APIError("", full, text)
    with pytest.raises(EngineError), engine_errors("create"):
        raise docker.errors.APIError("", full, "something else")
