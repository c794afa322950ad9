"""What clients and operators see of the supervisors in boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest
from support import boxes
from support.attach import attached
from support.cluster import Cluster

NEEDS_PID_1 = ["sh", "-c", "[ $$ = 1 ] || exit 100; exec sleep 999"]


@pytest.fixture(scope="module")
def init_image(docker_host: str, test_image: str) -> Iterator[str]:
    """An image whose entrypoint has to be process 1."""
    client = docker.APIClient(base_url=docker_host, version="auto")
    base = client.create_container(test_image)["Id"]
    client.commit(base, "boxlite-test-supervisors", "latest", conf={"Entrypoint": NEEDS_PID_1})
    yield "boxlite-test-supervisors:latest"
    client.remove_container(base)
    client.remove_image("boxlite-test-supervisors:latest", force=True)
    client.close()


def supervisor(cluster: Cluster, box: str) -> Any:
    return cluster.http("GET", f"/v1/boxes/{box}")[2]["supervisor"]


def said(cluster: Cluster, box: str, script: str) -> tuple[bytes, int | None]:
    execution = boxes.execute(cluster, box, script)
    with attached(cluster, f"{box}/executions/{execution}/attach") as client:
        code = client.to_the_end()
    return client.stdout, code


def test_a_running_box_says_what_runs_its_commands(
    cluster: Cluster, new_box: Callable[..., str], init_image: str
) -> None:
    box = new_box()
    assert supervisor(cluster, box) is None
    boxes.start(cluster, box)
    assert supervisor(cluster, box) == "init"
    assert said(cluster, box, "cat /proc/1/comm; exit 3") == (b"init\n", 3)
    assert cluster.http("POST", f"/v1/boxes/{box}/stop")[2]["supervisor"] is None
    own_init = new_box(image=init_image)
    boxes.start(cluster, own_init)
    assert supervisor(cluster, own_init) == "exec"
    assert said(cluster, own_init, "cat /proc/1/comm; exit 4") == (b"sleep\n", 4)


def test_a_worker_without_supervisors_says_so_and_runs_commands_all_the_same(
    new_cluster: Callable[..., Cluster], test_image: str
) -> None:
    cluster = new_cluster()
    cluster.start_coordinator()
    worker = cluster.start_worker("--no-supervisor")
    box = boxes.create(cluster, image=test_image)
    boxes.start(cluster, box)
    assert supervisor(cluster, box) == "none: the worker was started without supervisors"
    assert said(cluster, box, "echo on; exit 5") == (b"on\n", 5)
    # With supervisors from now on: the box that was made without goes on as before.
    worker.stop()
    again = cluster.start_worker(home=worker.home)
    assert said(cluster, box, "echo still; exit 6") == (b"still\n", 6)
    new = boxes.create(cluster, image=test_image)
    boxes.start(cluster, new)
    assert supervisor(cluster, new) == "init"
    # And without again: a box that was made with a supervisor keeps it as its init.
    again.stop()
    cluster.start_worker("--no-supervisor", home=worker.home)
    assert said(cluster, new, "cat /proc/1/comm; exit 7") == (b"init\n", 7)
    for each in (box, new):
        assert cluster.http("DELETE", f"/v1/boxes/{each}?force=true")[0] == 204
