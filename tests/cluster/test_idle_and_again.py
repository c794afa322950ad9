"""Boxes that stop and go by themselves, requests that come twice, and measurements: on a real engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.cluster import Cluster, wait_until
from websockets.sync.client import connect

Json = dict[str, Any]


@pytest.fixture
def shared(cluster: Cluster) -> Iterator[Cluster]:
    """The shared cluster; the boxes of the test are removed."""
    yield cluster
    for box in cluster.http("GET", "/v1/boxes")[2]["boxes"]:
        cluster.http("DELETE", f"/v1/boxes/{box['box_id']}?force=true")
    wait_until(lambda: cluster.containers() == [], "all containers are gone")


def create(cluster: Cluster, image: str, *, started: bool = True, **fields: Any) -> str:
    body = {"image": image, "memory_mib": 128, "network": "disabled", **fields}
    status, _, box = cluster.http("POST", "/v1/boxes", body)
    assert status == 201, box
    if started:
        assert cluster.http("POST", f"/v1/boxes/{box['box_id']}/start")[0] == 200
    return str(box["box_id"])


def get(cluster: Cluster, box: str) -> Json:
    found: Json = cluster.http("GET", f"/v1/boxes/{box}")[2]
    return found


def has_status(cluster: Cluster, box: str, status: str) -> None:
    wait_until(lambda: get(cluster, box).get("status") == status, f"the box is {status}")


def execute(cluster: Cluster, box: str, script: str) -> str:
    status, _, body = cluster.http("POST", f"/v1/boxes/{box}/exec", {"command": "sh", "args": ["-c", script]})
    assert status == 201, body
    return str(body["execution_id"])


def await_end(cluster: Cluster, box: str, execution: str) -> Json:
    path = f"/v1/boxes/{box}/executions/{execution}"
    wait_until(lambda: cluster.http("GET", path)[2]["status"] != "running", "the command has ended")
    found: Json = cluster.http("GET", path)[2]
    return found


def test_idle_then_stopped_then_resumed_then_gone(shared: Cluster, test_image: str) -> None:
    box = create(shared, test_image, auto_stop=1)
    assert (get(shared, box)["auto_stop"], get(shared, box)["auto_delete"]) == (1, 0)
    has_status(shared, box, "stopped")
    execution = execute(shared, box, "exit 3")  # a command starts the box again
    assert await_end(shared, box, execution)["exit_code"] == 3
    has_status(shared, box, "stopped")
    other = create(shared, test_image, auto_pause=1, auto_delete=1, auto_resume=False)
    wait_until(lambda: shared.http("GET", f"/v1/boxes/{other}")[0] == 404, "the box is removed")


def test_without_auto_resume_use_is_refused(shared: Cluster, test_image: str) -> None:
    box = create(shared, test_image, auto_stop=1, auto_resume=False)
    has_status(shared, box, "stopped")
    status, _, body = shared.http("POST", f"/v1/boxes/{box}/exec", {"command": "true"})
    assert (status, body["error"]["code"]) == (409, "stopped")
    assert shared.http("POST", f"/v1/boxes/{box}/start")[0] == 200


def test_a_command_that_nobody_watches_keeps_the_box(shared: Cluster, test_image: str) -> None:
    box = create(shared, test_image, auto_stop=1)
    witness = create(shared, test_image, auto_stop=3)
    execution = execute(shared, box, "sleep 4")
    has_status(shared, witness, "stopped")
    assert get(shared, box)["status"] == "running"
    assert await_end(shared, box, execution)["exit_code"] == 0
    has_status(shared, box, "stopped")


def test_an_attached_client_keeps_the_box(shared: Cluster, test_image: str) -> None:
    box = create(shared, test_image, auto_stop=1)
    with connect(f"ws://127.0.0.1:{shared.port}/v1/boxes/{box}/attach"):
        witness = create(shared, test_image, auto_stop=3)
        has_status(shared, witness, "stopped")
        assert get(shared, box)["status"] == "running"
    has_status(shared, box, "stopped")


def test_deadlines_and_commands_outlive_both_processes(new_cluster, test_image: str) -> None:
    cluster = new_cluster()
    coordinator = cluster.start_coordinator("--default-auto-stop", "4", "--default-auto-delete", "600")
    worker = cluster.start_worker()
    idle = create(cluster, test_image)
    busy = create(cluster, test_image)
    never = create(cluster, test_image, auto_stop=0)
    assert (get(cluster, idle)["auto_stop"], get(cluster, idle)["auto_delete"]) == (4, 600)
    execute(cluster, busy, "sleep 600")
    worker.restart()  # the worker has forgotten the command, but its engine has not
    coordinator.kill()
    coordinator.start()
    has_status(cluster, idle, "stopped")
    witness = create(cluster, test_image)
    has_status(cluster, witness, "stopped")
    assert get(cluster, busy)["status"] == "running"
    assert get(cluster, never)["status"] == "running"
    for box in (idle, busy, never, witness):
        assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


def test_concurrent_creates_with_one_key_make_one_box(shared: Cluster, test_image: str) -> None:
    key = {"Idempotency-Key": "one-box"}
    body = {"image": test_image, "memory_mib": 128, "network": "disabled"}
    answers: list[tuple[int, Any]] = []

    def post() -> None:
        status, _, box = shared.http("POST", "/v1/boxes", body, headers=key)
        answers.append((status, box["box_id"]))

    threads = [threading.Thread(target=post) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers)) == 1
    assert answers[0][0] == 201
    assert len(shared.http("GET", "/v1/boxes")[2]["boxes"]) == 1
    status, headers, box = shared.http("POST", "/v1/boxes", body, headers=key)
    assert (status, headers["location"]) == (201, f"/v1/default/boxes/{box['box_id']}")
    assert headers["idempotency-replayed"] == "true"
    status, _, refused = shared.http("POST", "/v1/boxes", {**body, "cpus": 2}, headers=key)
    assert (status, refused["error"]["code"]) == (422, "invalid_argument")


def test_input_with_a_key_is_written_once(shared: Cluster, test_image: str) -> None:
    box = create(shared, test_image)
    execution = shared.http("POST", f"/v1/boxes/{box}/exec", {"command": "cat"})[2]["execution_id"]
    path = f"/v1/boxes/{box}/executions/{execution}"
    for _ in range(3):
        headers = {"Idempotency-Key": "line-1", "Content-Type": "application/octet-stream"}
        assert shared.http("POST", f"{path}/input", iter([b"on", b"ce\n"]), headers=headers)[0] == 204
    assert shared.http("POST", f"{path}/input", b"", headers={"X-Close-Stdin": "true"})[0] == 204
    _, _, events = shared.http("GET", f"{path}/output")
    assert events.count(b"event: stdout") == 1
    assert b"b25jZQo=" in events
    assert await_end(shared, box, execution)["exit_code"] == 0


def test_metrics_of_a_box(shared: Cluster, test_image: str) -> None:
    box = create(shared, test_image, started=False, network="enabled")
    path = f"/v1/boxes/{box}/metrics"
    before = shared.http("GET", path)[2]
    assert (before["memory_bytes"], before["boot_timing"]["box_spawn_ms"]) == (0, None)
    assert shared.http("POST", f"/v1/boxes/{box}/start")[0] == 200
    await_end(shared, box, execute(shared, box, "echo hello; exit 1"))
    assert shared.http("POST", f"/v1/boxes/{box}/exec", {"command": "no-such-command"})[0] == 422
    status, _, metrics = shared.http("GET", path)
    assert status == 200
    assert (metrics["commands_executed_total"], metrics["exec_errors_total"]) == (1, 1)
    assert (metrics["bytes_sent_total"], metrics["bytes_received_total"]) == (0, 6)
    assert metrics["memory_bytes"] > 0
    assert metrics["cpu_percent"] >= 0
    assert metrics["network_bytes_sent"] is not None
    assert metrics["network_tcp_connections"] is None
    timing = metrics["boot_timing"]
    stages = [timing[f"{name}_ms"] for name in ("image_prepare", "box_config", "box_spawn", "container_init")]
    assert timing["total_create_ms"] == sum(stages) > 0
    assert timing["guest_boot_ms"] is None
    assert shared.http("POST", f"/v1/boxes/{box}/stop")[0] == 200
    status, _, after = shared.http("GET", path)
    assert (status, after["memory_bytes"], after["cpu_percent"], after["network_bytes_sent"]) == (200, 0, 0, None)
    assert after["bytes_received_total"] == 6


def test_metrics_of_a_prefix_outlive_the_coordinator(new_cluster, test_image: str) -> None:
    cluster = new_cluster()
    coordinator = cluster.start_coordinator()
    cluster.start_worker()
    box = create(cluster, test_image)
    await_end(cluster, box, execute(cluster, box, "exit 1"))
    assert cluster.http("POST", f"/v1/boxes/{box}/exec", {"command": "no-such-command"})[0] == 422
    assert cluster.http("POST", "/v1/boxes", {"image": "127.0.0.1:9/no/such:image"})[0] == 422
    create(cluster, test_image, cmd=["sh", "-c", "exit 0"])
    expected = {
        "boxes_created_total": 2,
        "boxes_failed_total": 1,
        "boxes_stopped_total": 1,
        "num_running_boxes": 1,
        "total_commands_executed": 1,
        "total_exec_errors": 1,
        "warm_claims_total": 0,
        "warm_misses_total": 0,
    }
    wait_until(lambda: cluster.http("GET", "/v1/metrics")[2] == expected, "the counters are right")
    assert cluster.http("GET", "/v1/acme/metrics")[2]["boxes_created_total"] == 0
    for found in cluster.http("GET", "/v1/boxes")[2]["boxes"]:
        assert cluster.http("DELETE", f"/v1/boxes/{found['box_id']}?force=true")[0] == 204
    coordinator.kill()
    coordinator.start()
    assert cluster.http("GET", "/v1/metrics")[2] == {**expected, "num_running_boxes": 0}


def test_lists_by_status_name_and_label(shared: Cluster, test_image: str) -> None:
    running = create(shared, test_image, name="runs", labels={"team": "blue", "tier": "web"})
    resting = create(shared, test_image, name="rests", started=False, labels={"team": "blue"})
    stopped = create(shared, test_image, labels={"team": "red"})
    assert shared.http("POST", f"/v1/boxes/{stopped}/stop")[0] == 200

    def ids(query: str) -> list[str]:
        return [box["box_id"] for box in shared.http("GET", f"/v1/boxes?{query}")[2]["boxes"]]

    assert ids("") == [running, resting, stopped]
    assert ids("status=running") == [running]
    assert ids("status=configured") == [resting]
    assert ids("status=stopped") == [stopped]
    assert ids("status=paused") == []
    assert ids("name=rests") == [resting]
    assert ids("label=team%3Dblue") == [running, resting]
    assert ids("label=team%3Dblue&label=tier%3Dweb") == [running]
    assert ids("label=team%3Dblue&status=configured") == [resting]


def test_pages_stay_stable_while_boxes_come_and_go(shared: Cluster, test_image: str) -> None:
    made = [create(shared, test_image, started=False) for _ in range(5)]
    first = shared.http("GET", "/v1/boxes?pageSize=2")[2]
    assert [box["box_id"] for box in first["boxes"]] == made[:2]
    for gone in (made[1], made[2]):
        assert shared.http("DELETE", f"/v1/boxes/{gone}")[0] == 204
    late = create(shared, test_image, started=False)
    second = shared.http("GET", f"/v1/boxes?pageSize=2&pageToken={first['next_page_token']}")[2]
    assert [box["box_id"] for box in second["boxes"]] == made[3:]
    third = shared.http("GET", f"/v1/boxes?pageSize=2&pageToken={second['next_page_token']}")[2]
    assert [box["box_id"] for box in third["boxes"]] == [late]
    assert third["next_page_token"] is None
