"""Warm boxes of a whole cluster, on a real engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import boxes
from support.cluster import Cluster, wait_until


@pytest.fixture(scope="module")
def warm(new_shared_cluster: Callable[[], Cluster], test_image: str) -> Iterator[Cluster]:
    """A cluster whose one worker keeps a warm box of the tests' image for itself, until it is drained."""
    cluster = new_shared_cluster()
    cluster.start_coordinator()
    cluster.start_worker("--warm", f"{test_image}=1", name="one")
    yield cluster
    drained = boxes.worker(cluster, "one")["id"]
    assert cluster.http("PATCH", f"/v1/admin/workers/{drained}/status", {"status": "draining"})[0] == 200
    wait_until(lambda: cluster.containers() == [], "a draining worker has no warm boxes")


def pools(cluster: Cluster) -> dict[str, Any]:
    status, _, body = cluster.http("GET", "/v1/admin/warm")
    assert status == 200
    return dict(body)


def set_pools(cluster: Cluster, *wanted: dict[str, Any]) -> None:
    status, _, body = cluster.http("PUT", "/v1/admin/warm", {"pools": list(wanted)})
    assert status == 200, body


def wait_until_ready(cluster: Cluster) -> None:
    def is_ready() -> bool:
        return all(pool["ready"] == pool["boxes"] for pool in pools(cluster)["pools"])

    wait_until(is_ready, "all warm boxes are ready")


def say(cluster: Cluster, box: str, script: str) -> str:
    """What a command says, once it has ended."""
    execution = boxes.execute(cluster, box, f"{script} > /said")
    wait_until(lambda: boxes.state(cluster, box, execution)["status"] == "completed", f"{script} has ended")
    tar = cluster.http("GET", f"/v1/boxes/{box}/files?path=/said")[2]
    return bytes(tar)[512:].split(b"\0", 1)[0].decode().strip()


def test_a_request_gets_the_warm_box_of_a_worker_and_another_one_is_made(warm: Cluster, test_image: str) -> None:
    wait_until_ready(warm)
    [pool] = pools(warm)["pools"]
    assert (pool["boxes"], pool["ready"], pool["worker"]) == (1, 1, "one")
    [container] = warm.containers()
    assert warm.http("GET", "/v1/boxes")[2]["boxes"] == []
    body = {"image": test_image, "name": "web", "labels": {"team": "blue"}, "start": True}
    status, _, box = warm.http("POST", "/v1/boxes", body)
    assert (status, box["status"], box["name"], box["labels"]) == (201, "running", "web", {"team": "blue"})
    assert container in warm.containers()
    assert say(warm, "web", "echo hello from $(hostname)") == f"hello from {box['box_id']}"
    assert pools(warm)["claimed_total"] >= 1
    wait_until_ready(warm)
    assert warm.http("DELETE", "/v1/boxes/web?force=true")[0] == 204


def test_released_clients_create_first_and_start_later(warm: Cluster, test_image: str) -> None:
    wait_until_ready(warm)
    claimed = pools(warm)["claimed_total"]
    box = boxes.create(warm, image=test_image, memory_mib=512)
    assert boxes.status_of(warm, box) == "configured"
    assert pools(warm)["claimed_total"] == claimed + 1
    boxes.start(warm, box)
    assert boxes.status_of(warm, box) == "running"
    assert say(warm, box, "echo hello") == "hello"
    assert warm.http("POST", f"/v1/boxes/{box}/stop", {"timeout_seconds": 0})[2]["status"] == "stopped"
    boxes.start(warm, box)
    assert say(warm, box, "cat /said; echo again") in ("again", "hello\nagain")
    assert warm.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


def test_a_warm_box_gets_the_environment_and_the_command_of_the_request(warm: Cluster, test_image: str) -> None:
    wait_until_ready(warm)
    [container] = warm.containers()
    body = {"image": test_image, "env": {"OWN": "own"}, "working_dir": "/tmp", "entrypoint": ["sh", "-c"]}
    body |= {"cmd": ["echo $OWN in $PWD > /main; exec tail -f /dev/null"], "start": True}
    status, _, box = warm.http("POST", "/v1/boxes", body)
    assert (status, box["status"], box["supervisor"]) == (201, "running", "init")
    assert container in warm.containers()
    assert say(warm, box["box_id"], "until [ -s /main ]; do sleep 0.02; done; cat /main") == "own in /tmp"
    assert say(warm, box["box_id"], "echo $OWN in $PWD") == "own in /tmp"
    assert warm.http("DELETE", f"/v1/boxes/{box['box_id']}?force=true")[0] == 204


def test_a_main_command_that_does_not_exist_is_refused_like_in_any_other_box(warm: Cluster, test_image: str) -> None:
    wait_until_ready(warm)
    body = {"image": test_image, "entrypoint": ["/not/there"], "start": True}
    status, _, answer = warm.http("POST", "/v1/boxes", body)
    assert (status, answer["error"]["code"]) == (422, "execution_failed")
    assert "not found in the box" in answer["error"]["message"]
    assert warm.http("GET", "/v1/boxes")[2]["boxes"] == []


def test_a_request_that_is_sent_again_gets_its_warm_box_after_the_coordinator_was_killed(
    warm: Cluster, test_image: str
) -> None:
    wait_until_ready(warm)
    body, key = {"image": test_image, "env": {"OWN": "own"}, "start": True}, {"Idempotency-Key": "warm-1"}
    first = warm.http("POST", "/v1/boxes", body, headers=key)[2]["box_id"]
    warm.coordinator.kill()
    warm.coordinator.start()
    wait_until(lambda: boxes.worker(warm, "one")["status"] == "active", "the worker is back")
    status, _, again = warm.http("POST", "/v1/boxes", body, headers=key)
    assert (status, again["box_id"]) == (201, first)
    assert len(warm.http("GET", "/v1/boxes")[2]["boxes"]) == 1
    assert pools(warm)["claimed_total"] >= 1, "counts outlive the coordinator"
    assert warm.http("DELETE", f"/v1/boxes/{first}?force=true")[0] == 204


def test_a_worker_that_was_killed_still_has_its_warm_box(warm: Cluster, test_image: str) -> None:
    wait_until_ready(warm)
    before = set(warm.containers())
    warm.workers[0].kill()
    warm.workers[0].start()
    wait_until(lambda: boxes.worker(warm, "one")["status"] == "active", "the worker is back")
    box = boxes.create(warm, image=test_image, memory_mib=512, start=True)
    assert boxes.status_of(warm, box) == "running"
    assert before & set(warm.containers()) == before
    assert warm.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


def test_the_fleets_pools_are_set_and_emptied_by_request(warm: Cluster, test_image: str) -> None:
    set_pools(warm, {"image": test_image, "boxes": 2, "memory_mib": 128})
    wait_until_ready(warm)
    assert [(pool["boxes"], pool["memory_mib"]) for pool in pools(warm)["pools"]] == [(1, 512), (2, 128)]
    assert len(warm.containers()) == 3
    set_pools(warm)
    wait_until(lambda: len(warm.containers()) == 1, "what no pool wants is removed")
    status, _, body = warm.http("PUT", "/v1/admin/warm", {"pools": [{"image": "NO IMAGE", "boxes": 1}]})
    assert (status, body["error"]["code"]) == (400, "invalid_argument")
    twice = [{"image": "alpine", "boxes": 1}, {"image": "alpine:latest", "boxes": 2}]
    status, _, body = warm.http("PUT", "/v1/admin/warm", {"pools": twice})
    assert (status, "make them one" in body["error"]["message"]) == (400, True)
