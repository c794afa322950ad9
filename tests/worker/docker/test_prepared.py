"""Prepared boxes of Docker Engine through restarts of the worker and of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from support.sites import Site

from boxlite_server import ids
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.runtime import BoxRef, BoxStatus, Owner


@pytest.fixture
def worker(docker_host: str, tmp_path: Path) -> Iterator[Callable[[], DockerRuntime]]:
    """Makes one runtime after the other, as restarts of one worker do."""
    owner = Owner(ids.new_id(), ids.new_id())
    runtimes: list[DockerRuntime] = []

    def restart() -> DockerRuntime:
        runtimes.append(DockerRuntime(lambda: owner, docker_host, prepared=tmp_path / "prepared.json"))
        return runtimes[-1]

    yield restart
    for state in restart().list_boxes():
        runtimes[-1].remove(state.box, force=True)
    for runtime in runtimes:
        runtime.close()


def test_a_worker_that_is_restarted_still_knows_what_is_prepared(
    worker: Callable[[], DockerRuntime], test_image: str
) -> None:
    box = BoxRef(ids.new_id(), 1)
    worker().prepare(box, Site(worker(), test_image, "", Path()).spec())
    later = worker()
    assert later.inspect(box).status is BoxStatus.CONFIGURED
    started = later.start(box)
    assert started.status is BoxStatus.RUNNING
    assert worker().inspect(box).pid == started.pid


def test_a_prepared_box_that_the_engine_has_ended_is_started_anew(
    worker: Callable[[], DockerRuntime], test_image: str, api: docker.APIClient
) -> None:
    runtime, box = worker(), BoxRef(ids.new_id(), 1)
    runtime.prepare(box, Site(runtime, test_image, "", Path()).spec())
    api.kill(f"boxlite-{box.box_id}-1")
    assert runtime.inspect(box).status is BoxStatus.CONFIGURED
    assert runtime.start(box).status is BoxStatus.RUNNING


def test_a_damaged_record_of_prepared_boxes_keeps_no_worker_from_starting(
    worker: Callable[[], DockerRuntime], test_image: str, tmp_path: Path
) -> None:
    (tmp_path / "prepared.json").write_text("{")
    runtime, box = worker(), BoxRef(ids.new_id(), 1)
    runtime.prepare(box, Site(runtime, test_image, "", Path()).spec())
    assert runtime.inspect(box).status is BoxStatus.CONFIGURED
