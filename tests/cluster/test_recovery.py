"""Engines, workers and coordinators that die, and what is left of boxes when they are back."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import docker
import pytest
from support.cluster import Cluster, Process, wait_until

from boxlite_server import ids
from boxlite_server.local.dockerd import Dockerd
from boxlite_server.worker.docker.labels import container_name
from boxlite_server.worker.runtime import BoxRef

WAIT = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"]


def create(cluster: Cluster, name: str, *, start: bool = True, **fields: Any) -> dict[str, Any]:
    request = {"image": "boxlite-test:latest", "memory_mib": 128, "name": name, "cmd": WAIT, **fields}
    status, _, box = cluster.http("POST", "/v1/boxes", request)
    assert status == 201, box
    if start:
        status, _, box = cluster.http("POST", f"/v1/boxes/{name}/start")
        assert status == 200, box
    return dict(box)


def boxes(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """All boxes by name."""
    return {box["name"]: box for box in cluster.http("GET", "/v1/boxes")[2]["boxes"]}


def statuses(cluster: Cluster) -> dict[str, str]:
    return {name: box["status"] for name, box in boxes(cluster).items()}


def works(cluster: Cluster, name: str) -> bool:
    """Whether a command can be run in the box."""
    return bool(cluster.http("POST", f"/v1/boxes/{name}/exec", {"command": "true"})[0] == 201)


def remove_all(cluster: Cluster) -> None:
    for name in boxes(cluster):
        assert cluster.http("DELETE", f"/v1/boxes/{name}?force=true")[0] == 204
    assert cluster.containers() == []


def reconcile(cluster: Cluster, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boxlite_server", "reconcile", "--coordinator", cluster.url, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def mortal(new_cluster: Callable[..., Cluster], mortal_engine: Dockerd) -> Cluster:
    """A cluster on an engine that may be killed."""
    cluster = new_cluster()
    cluster.start_coordinator("--orphan-grace", "2")
    cluster.start_worker(name="one", docker_host=mortal_engine.docker_host)
    cluster.docker_host = mortal_engine.docker_host
    return cluster


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_boxes_come_back_with_their_engine_as_they_should_be(mortal: Cluster, mortal_engine: Dockerd, end: str) -> None:
    before = [create(mortal, f"runs-{n}") for n in range(5)]
    create(mortal, "stopped")
    assert mortal.http("POST", "/v1/boxes/stopped/stop")[0] == 200
    create(mortal, "ended", cmd=["sh", "-c", "exit 3"])
    create(mortal, "new", start=False)
    wait_until(lambda: statuses(mortal)["ended"] == "stopped", "the end of a command is seen")
    getattr(mortal_engine, end)()
    mortal_engine.start()

    def back() -> bool:
        found = boxes(mortal)
        return all(found[b["name"]]["status"] == "running" and found[b["name"]]["pid"] != b["pid"] for b in before)

    wait_until(back, "the boxes run again")
    expected = {**{box["name"]: "running" for box in before}, "stopped": "stopped", "ended": "stopped"}
    assert statuses(mortal) == {**expected, "new": "configured"}
    found = boxes(mortal)
    assert found["ended"]["exit_code"] == 3
    assert [found[box["name"]]["error_message"] for box in before] == [None] * 5
    assert works(mortal, "runs-0")
    remove_all(mortal)


def test_boxes_outlive_their_worker(mortal: Cluster) -> None:
    runs = create(mortal, "runs")
    ends = create(mortal, "ends", cmd=["sh", "-c", "until [ -e /tmp/end ]; do sleep 0.1; done; exit 4"])
    worker = mortal.workers[0]
    worker.kill()
    client = docker.DockerClient(base_url=mortal.docker_host)
    container = client.containers.list(filters={"label": f"boxlite.box={ends['box_id']}"})[0]
    container.exec_run(["touch", "/tmp/end"])
    container.wait(timeout=30)
    client.close()
    worker.start()
    wait_until(lambda: statuses(mortal)["ends"] == "stopped", "the end of a command is seen")
    assert boxes(mortal)["ends"]["exit_code"] == 4
    assert boxes(mortal)["runs"]["pid"] == runs["pid"]
    assert statuses(mortal) == {"runs": "running", "ends": "stopped"}
    assert works(mortal, "runs")
    remove_all(mortal)


def test_a_box_that_somebody_kills_is_started_again(mortal: Cluster) -> None:
    box = create(mortal, "runs")
    client = docker.DockerClient(base_url=mortal.docker_host)
    client.containers.list(filters={"label": f"boxlite.box={box['box_id']}"})[0].kill()
    client.close()
    wait_until(lambda: boxes(mortal)["runs"]["pid"] not in (box["pid"], None), "the box runs again")
    assert statuses(mortal) == {"runs": "running"}
    remove_all(mortal)


def test_a_coordinator_that_dies_amid_creates_loses_and_leaves_nothing(mortal: Cluster) -> None:
    coordinator = mortal.coordinator
    assert isinstance(coordinator, Process)
    acknowledged: set[str] = set()
    enough = threading.Event()

    def keep_creating(thread: int) -> None:
        for number in range(200):
            name = f"box-{thread}-{number}"
            try:
                status, _, _ = mortal.http(
                    "POST", "/v1/boxes", {"image": "boxlite-test:latest", "memory_mib": 128, "name": name}
                )
            except (OSError, http.client.HTTPException):
                return
            if status == 201:
                acknowledged.add(name)
            if len(acknowledged) >= 12:
                enough.set()

    threads = [threading.Thread(target=keep_creating, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    coordinator.kill()
    for thread in threads:
        thread.join()
    coordinator.start()

    def in_line() -> bool:
        if '"actions": []' not in str(reconcile_answer(mortal)).replace("'", '"'):
            return False
        return len(mortal.containers()) == len(boxes(mortal))

    wait_until(in_line, "rows and containers agree")
    assert acknowledged <= set(boxes(mortal))
    assert set(statuses(mortal).values()) == {"configured"}
    remove_all(mortal)


def reconcile_answer(cluster: Cluster) -> Any:
    status, _, answer = cluster.http("POST", "/v1/admin/reconcile", {"dry_run": True})
    assert status == 200, answer
    return answer


def test_the_operator_sees_what_would_be_done(new_cluster: Callable[..., Cluster], docker_host: str) -> None:
    cluster = new_cluster()
    cluster.start_coordinator("--orphan-grace", "3600")
    cluster.start_worker(name="one")
    worker_id = cluster.http("GET", "/v1/admin/workers")[2]["workers"][0]["id"]
    done = reconcile(cluster, "--dry-run")
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing to do\n", "")
    client = docker.DockerClient(base_url=docker_host)
    create(cluster, "a", start=False)
    labels = client.containers.list(all=True, filters={"label": f"boxlite.worker={worker_id}"})[0].labels
    orphan = ids.new_id()
    name = container_name(BoxRef(orphan, 1))
    stray = client.containers.create("boxlite-test:latest", name=name, labels={**labels, "boxlite.box": orphan})
    foreign = client.containers.create("boxlite-test:latest", labels={**labels, "boxlite.worker": ids.new_id()})
    try:
        for flags in (("--dry-run",), ("--worker", "one"), ("--worker", worker_id)):
            done = reconcile(cluster, *flags)
            lines = done.stdout.splitlines()
            assert (done.returncode, len(lines), done.stderr) == (0, 2, "")
            assert lines[1].split()[:4] == ["one", orphan, "1", "remove_orphan"]
            assert "no box has it" in lines[1]
            assert "not before" in lines[1]
    finally:
        stray.remove()
        foreign.remove()
        client.close()
    done = reconcile(cluster, "--worker", "nobody")
    assert (done.returncode, done.stderr) == (1, "boxlite-server: worker not found: nobody\n")
    cluster.workers[0].kill()
    done = reconcile(cluster)
    assert done.returncode == 1
    assert done.stderr.startswith("one could not be asked: ")
    cluster.workers[0].start()
    remove_all(cluster)
