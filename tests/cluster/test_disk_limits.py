"""The disk_size_gb of boxes on real workers: one refuses it, one watches the boxes, and a GB is a MiB there."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import boxes
from support.cluster import Cluster, wait_until

from boxlite_server.worker import main
from boxlite_server.worker.disk_watch import DiskWatch
from boxlite_server.worker.docker.runtime import DockerRuntime

OVER = "more than the 1 MiB of its disk_size_gb"
BIG = "dd if=/dev/zero of=/big bs=1024k count=3"


@pytest.fixture(scope="module")
def strict(new_shared_cluster: Any) -> Cluster:
    """A cluster of one worker whose operator wants limits enforced, which its engine cannot do."""
    cluster: Cluster = new_shared_cluster()
    cluster.start_coordinator()
    cluster.start_worker("--disk-limit", "enforce", name="strict")
    if boxes.worker(cluster, "strict")["disk_limit"] == "enforced":
        pytest.skip("this engine has quotas")
    return cluster


@pytest.fixture(scope="module")
def refused(strict: Cluster) -> tuple[int, Any]:
    """The answer to a request for a limited box while no worker limits disks."""
    status, _, answer = strict.http("POST", "/v1/boxes", {"image": "alpine:latest", "disk_size_gb": 1})
    return status, answer


@pytest.fixture(scope="module")
def mixed(
    strict: Cluster, refused: Any, docker_host: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """The same cluster with a second worker, in this process, which watches the disks of its boxes."""
    stopping = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "DockerRuntime", functools.partial(DockerRuntime, url=docker_host, gb=1024 * 1024))
        patch.setattr(main, "DiskWatch", functools.partial(DiskWatch, interval=1.0))
        worker = main.Worker(
            main.WorkerConfig(strict.url, tmp_path_factory.mktemp("home"), port=0, health_port=0, name="watching"),
            stopping,
        )
        worker.start()
        wait_until(lambda: len(strict.http("GET", "/v1/admin/workers")[2]["workers"]) == 2, "both are registered")
        yield strict
        worker.shutdown()


def get(cluster: Cluster, box: str) -> dict[str, Any]:
    status, _, found = cluster.http("GET", f"/v1/boxes/{box}")
    assert status == 200, found
    return dict(found)


def await_end(cluster: Cluster, box: str, script: str) -> None:
    execution = boxes.execute(cluster, box, script)
    wait_until(lambda: boxes.state(cluster, box, execution)["status"] != "running", "the command has ended")


def remove(cluster: Cluster, *made: str) -> None:
    for box in made:
        cluster.http("DELETE", f"/v1/boxes/{box}?force=true")


def test_a_limit_is_refused_where_no_worker_can_keep_it(strict: Cluster, refused: tuple[int, Any]) -> None:
    status, answer = refused
    assert (status, answer["error"]["code"]) == (400, "unsupported")
    assert "1 does not limit the disk of a box (disk_size_gb)" in answer["error"]["message"]
    remove(strict, boxes.create(strict, disk_size_gb=None))


def test_the_configuration_and_the_workers_say_how_limits_are_kept(mixed: Cluster) -> None:
    capabilities = mixed.http("GET", "/v1/config")[2]["capabilities"]
    assert (capabilities["disk_limits"], capabilities["max_disk_size_gb"]) == (["watched"], 65536)
    found = {name: boxes.worker(mixed, name)["disk_limit"] for name in ("strict", "watching")}
    assert found == {"strict": "unsupported", "watching": "watched"}


def test_boxes_with_a_limit_go_where_it_is_kept(mixed: Cluster) -> None:
    made = [boxes.create(mixed, disk_size_gb=10) for _ in range(3)]
    assert {(get(mixed, box)["worker"], get(mixed, box)["disk_size_gb"]) for box in made} == {("watching", 10)}
    remove(mixed, *made)


def test_a_box_over_its_limit_is_stopped_says_why_and_can_be_mended(mixed: Cluster) -> None:
    box = boxes.create(mixed, disk_size_gb=1)
    boxes.start(mixed, box)
    boxes.execute(mixed, box, BIG)
    wait_until(lambda: boxes.status_of(mixed, box) == "stopped", "the box is stopped")
    assert OVER in get(mixed, box)["error_message"]
    mixed.http("GET", f"/v1/boxes/{box}/metrics")  # the worker is asked again, and the reason stays
    assert OVER in get(mixed, box)["error_message"]
    await_end(mixed, box, "rm /big")  # which starts the box again
    found = get(mixed, box)
    assert (found["status"], found["error_message"]) == ("running", None)
    await_end(mixed, box, "sleep 3")
    assert boxes.status_of(mixed, box) == "running"
    remove(mixed, box)


def test_copies_of_a_box_keep_its_limit(mixed: Cluster) -> None:
    box = boxes.create(mixed, disk_size_gb=1)
    status, _, clone = mixed.http("POST", f"/v1/boxes/{box}/clone", {})
    assert (status, clone["disk_size_gb"]) == (201, 1)
    status, _, archive = mixed.http("POST", f"/v1/boxes/{box}/export", {})
    assert status == 200
    octets = {"Content-Type": "application/octet-stream"}
    status, _, loaded = mixed.http("POST", "/v1/boxes/import", archive, headers=octets)
    assert (status, loaded["disk_size_gb"], loaded["worker"]) == (201, 1, "watching")
    boxes.start(mixed, loaded["box_id"])
    boxes.execute(mixed, loaded["box_id"], BIG)
    wait_until(lambda: boxes.status_of(mixed, loaded["box_id"]) == "stopped", "the imported box is stopped")
    remove(mixed, box, clone["box_id"], loaded["box_id"])
