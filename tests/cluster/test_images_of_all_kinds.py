"""Boxes of images whose configuration asks for something: an init, a health check, a command that ends at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import docker
import pytest
from support import boxes
from support.cluster import Cluster, wait_until

NewImage = Callable[..., str]

NEEDS_PID_1 = ["sh", "-c", "[ $$ = 1 ] || exit 100; exec sleep 999"]
SECOND = 1_000_000_000  # nanoseconds


def run(cluster: Cluster, box: str, script: str) -> dict[str, Any]:
    """Run a command to its end."""
    execution = boxes.execute(cluster, box, script)
    wait_until(lambda: boxes.state(cluster, box, execution)["status"] != "running", "the command has ended")
    return boxes.state(cluster, box, execution)


# ---- inits ----


def test_a_box_of_an_init_image_and_its_import_run(
    cluster: Cluster, new_box: Callable[..., str], new_image: NewImage, api: docker.APIClient
) -> None:
    box = new_box(image=new_image(Entrypoint=NEEDS_PID_1, StopSignal="SIGQUIT"))
    assert run(cluster, box, "test $(cat /proc/1/comm) = sleep")["exit_code"] == 0
    began = time.monotonic()
    assert cluster.http("POST", f"/v1/boxes/{box}/stop", {"timeout_seconds": 60})[0] == 200
    assert time.monotonic() - began < 30
    archive = cluster.http("POST", f"/v1/boxes/{box}/export", {})[2]
    octets = {"Content-Type": "application/octet-stream"}
    status, _, other = cluster.http("POST", "/v1/boxes/import", archive, headers=octets)
    assert status == 201, other
    assert run(cluster, other["box_id"], "test $(cat /proc/1/comm) = sleep")["exit_code"] == 0
    assert api.inspect_container(f"boxlite-{other['box_id']}-1")["Config"]["StopSignal"] == "SIGQUIT"
    assert cluster.http("DELETE", f"/v1/boxes/{other['box_id']}?force=true")[0] == 204


# ---- use ----


def test_a_health_check_does_not_keep_a_box_awake(
    cluster: Cluster, new_box: Callable[..., str], new_image: NewImage
) -> None:
    check = {"Test": ["CMD-SHELL", "sleep 999"], "Interval": SECOND, "Timeout": 999 * SECOND}
    box = new_box(image=new_image(Cmd=["sh"], Healthcheck=check), auto_stop=2)
    boxes.start(cluster, box)
    wait_until(lambda: boxes.status_of(cluster, box) == "stopped", "the idle box is stopped")


def test_commands_that_no_client_started_do_not_keep_a_box_awake(
    cluster: Cluster, new_box: Callable[..., str], api: docker.APIClient
) -> None:
    box = new_box(auto_stop=2)
    boxes.start(cluster, box)
    container = f"boxlite-{box}-1"
    api.exec_create(container, ["true"], stdin=True)  # and never started, as when a worker ends in between
    check = api.exec_create(container, ["sleep", "999"])["Id"]  # as a health check of a box that was made long ago
    api.exec_start(check, detach=True)
    assert len(api.inspect_container(container)["ExecIDs"]) == 2
    wait_until(lambda: boxes.status_of(cluster, box) == "stopped", "the idle box is stopped")


# ---- commands that end ----


@pytest.mark.parametrize("script", ["echo hello; exit 4", "sleep 1; exit 4"], ids=["at once", "a moment later"])
@pytest.mark.parametrize("kind", ["Entrypoint", "Cmd"])
def test_a_command_in_a_box_whose_main_command_ends_is_told_why(
    cluster: Cluster, new_box: Callable[..., str], new_image: NewImage, script: str, kind: str
) -> None:
    box = new_box(image=new_image(**{kind: ["sh", "-c", f"echo run >>/runs; {script}"]}))
    boxes.start(cluster, box)
    wait_until(lambda: boxes.status_of(cluster, box) == "stopped", "the main command has ended")
    body = {"command": "sleep", "args": ["60"]}
    status, _, answer = cluster.http("POST", f"/v1/boxes/{box}/exec", body)
    if status == 201:  # the box was started again and has not ended yet
        path = f"/v1/boxes/{box}/executions/{answer['execution_id']}"
        wait_until(lambda: cluster.http("GET", path)[2]["status"] != "running", "the command ends with its box")
        assert "exit code 4" in cluster.http("GET", path)[2]["error_message"]
        return
    assert (status, answer["error"]["code"]) == (409, "stopped")
    assert "exit 4" in answer["error"]["message"]
    assert "exit code 4" in answer["error"]["message"]
    assert 'entrypoint that goes on, such as ["tail", "-f", "/dev/null"]' in answer["error"]["message"]


def test_what_the_error_advises_works(cluster: Cluster, new_box: Callable[..., str], new_image: NewImage) -> None:
    for kind in ("Entrypoint", "Cmd"):
        box = new_box(image=new_image(**{kind: ["true"]}), entrypoint=["tail", "-f", "/dev/null"])
        assert run(cluster, box, "exit 5")["exit_code"] == 5


def test_a_main_command_that_ends_at_once_runs_once_for_each_command(
    cluster: Cluster, new_box: Callable[..., str], new_image: NewImage, api: docker.APIClient
) -> None:
    box = new_box(image=new_image(Cmd=["echo", "hello"]))
    for number in (1, 2):
        assert cluster.http("POST", f"/v1/boxes/{box}/exec", {"command": "true"})[0] == 409
        assert api.logs(f"boxlite-{box}-1") == b"hello\n" * number


def test_a_box_that_does_not_resume_is_told_the_same(
    cluster: Cluster, new_box: Callable[..., str], new_image: NewImage
) -> None:
    box = new_box(image=new_image(Cmd=["false"]), auto_resume=False)
    boxes.start(cluster, box)
    wait_until(lambda: boxes.status_of(cluster, box) == "stopped", "the main command has ended")
    status, _, answer = cluster.http("POST", f"/v1/boxes/{box}/exec", {"command": "true"})
    assert (status, answer["error"]["code"]) == (409, "stopped")
    assert "exit code 1" in answer["error"]["message"]
    assert "entrypoint that goes on" in answer["error"]["message"]


def test_a_box_with_auto_remove_that_ended_is_told_the_same(
    cluster: Cluster, new_box: Callable[..., str], new_image: NewImage
) -> None:
    box = new_box(image=new_image(Cmd=["true"]), auto_remove=True)
    status, _, answer = cluster.http("POST", f"/v1/boxes/{box}/exec", {"command": "true"})
    assert (status, answer["error"]["code"]) == (409, "stopped")
    assert "(true) ended with exit code 0" in answer["error"]["message"]
