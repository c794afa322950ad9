"""The metrics of a cluster: their numbers are those of what was done, and strangers do not read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import scrape
from support.attach import attached
from support.boxes import create, execute, start
from support.cluster import Cluster, call, wait_until
from support.postgresql import Server
from support.scrape import Scrape

from boxlite_server.cli.main import main

BOXES, RUNS, FAILED_RUNS, OUTPUT = 3, 7, 2, "twelve bytes"
TOO_LARGE = {"image": "alpine:latest", "memory_mib": 1_000_000_000 // 1024}


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Callable[..., Cluster], test_image: str) -> Cluster:
    """A cluster that did the things which the tests count, and no other."""
    cluster = new_shared_cluster()
    cluster.start_coordinator()
    cluster.start_worker()
    return cluster


@pytest.fixture(scope="module")
def done(cluster: Cluster) -> Iterator[tuple[Scrape, Scrape]]:
    """What coordinator and worker show afterwards."""
    boxes = [create(cluster, name=f"box-{number}") for number in range(BOXES)]
    assert cluster.http("POST", "/v1/boxes", TOO_LARGE)[0] == 503
    start(cluster, boxes[0])
    for _ in range(RUNS):
        body = {"command": "cat", "stdin": OUTPUT}
        assert cluster.http("POST", f"/v1/boxes/{boxes[0]}/run", body)[2]["stdout"] == OUTPUT
    for _ in range(FAILED_RUNS):
        assert cluster.http("POST", f"/v1/boxes/{boxes[0]}/run", {"command": "/no/such"})[0] == 422
    execution = execute(cluster, boxes[1], "printf 123")
    with attached(cluster, f"{boxes[1]}/executions/{execution}/attach") as client:
        client.to_the_end()
    assert cluster.http("GET", "/v1/boxes/no-such-box")[0] == 404
    worker = cluster.workers[0]
    wait_until(lambda: ended(scrape.of_worker(worker)) == RUNS + 1, "all commands have ended")
    yield scrape.of_coordinator(cluster), scrape.of_worker(worker)
    for box in boxes:
        cluster.http("DELETE", f"/v1/boxes/{box}?force=true")


def ended(shown: Scrape) -> float:
    return shown.value("boxlite_worker_command_duration_seconds_count", status="completed")


def test_requests_are_counted_by_operation_and_status(done: tuple[Scrape, Scrape]) -> None:
    shown, _ = done
    of_operations = {
        key: value for key, value in shown.values("boxlite_requests_total").items() if key[0] in OF_OPERATIONS
    }
    assert of_operations == {
        ("createBox", "201"): BOXES,
        ("createBox", "503"): 1,
        ("startBox", "200"): 1,
        ("runCommand", "200"): RUNS,
        ("runCommand", "422"): FAILED_RUNS,
        ("startExecution", "201"): 1,
        ("attachExecution", "101"): 1,
        ("getBox", "404"): 1,
    }
    for operation in OF_OPERATIONS:
        took = shown.value("boxlite_request_duration_seconds_count", operation=operation)
        assert took == sum(value for key, value in of_operations.items() if key[0] == operation)


OF_OPERATIONS = ("createBox", "startBox", "runCommand", "startExecution", "attachExecution", "getBox")


def test_boxes_and_commands_are_counted(done: tuple[Scrape, Scrape]) -> None:
    shown, _ = done
    assert shown.value("boxlite_boxes_created_total") == BOXES
    assert shown.value("boxlite_boxes_failed_total") == 0
    assert shown.value("boxlite_commands_total") == RUNS + 1
    assert shown.value("boxlite_command_errors_total") == FAILED_RUNS
    boxes = {key[0]: value for key, value in shown.values("boxlite_boxes").items() if value}
    assert boxes == {"running": 2, "configured": BOXES - 2}
    assert shown.value("boxlite_workers", state="active") == 1
    assert shown.value("boxlite_memory_reserved_bytes") == BOXES * 128 * 2**20


def test_placements_tell_why_no_worker_was_found(done: tuple[Scrape, Scrape]) -> None:
    shown, _ = done
    assert shown.value("boxlite_placements_total", what="box", result="placed") == BOXES
    assert shown.value("boxlite_placements_total", what="box", result="refused") == 1
    refusals = {key: value for key, value in shown.values("boxlite_placement_refusals_total").items() if value}
    assert refusals == {("memory",): 1}


def test_stages_are_measured(done: tuple[Scrape, Scrape]) -> None:
    shown, of_worker = done
    create_stages = {key[0]: value for key, value in shown.values("boxlite_create_stage_seconds_count").items()}
    assert create_stages == {"claim": 0, "place": BOXES + 1, "make": BOXES, "write": BOXES}
    exec_stages = {key[0]: value for key, value in shown.values("boxlite_exec_stage_seconds_count").items()}
    assert exec_stages == {"box": RUNS + FAILED_RUNS + 1, "start": 1, "run": RUNS + FAILED_RUNS}
    box_stages = {key[0]: value for key, value in of_worker.values("boxlite_worker_box_stage_seconds_count").items()}
    assert box_stages == {"image_prepare": BOXES, "box_config": BOXES, "box_spawn": 2, "container_init": 2}


def test_coordinator_and_worker_count_the_same_calls(done: tuple[Scrape, Scrape]) -> None:
    shown, of_worker = done
    ours, theirs = (
        {key: value for key, value in values.items() if key[1] in ("CreateBox", "StartBox", "RunCommand")}
        for values in (
            shown.values("boxlite_rpc_client_calls_total"),
            of_worker.values("boxlite_rpc_server_calls_total"),
        )
    )
    assert ours == theirs
    assert ours[("ok", "RunCommand")] == RUNS
    assert ours[("execution_failed", "RunCommand")] == FAILED_RUNS


def test_a_worker_counts_commands_and_their_bytes(done: tuple[Scrape, Scrape]) -> None:
    _, shown = done
    assert ended(shown) == RUNS + 1
    assert shown.value("boxlite_worker_command_errors_total") == FAILED_RUNS
    assert shown.value("boxlite_worker_command_input_bytes_total") == RUNS * len(OUTPUT)
    assert shown.value("boxlite_worker_command_output_bytes_total") == RUNS * len(OUTPUT) + len("123")
    assert shown.value("boxlite_worker_slots", kind="executions") == 2000
    assert shown.value("boxlite_worker_registered") == 1
    started = {key[0]: value for key, value in shown.values("boxlite_worker_command_start_seconds_count").items()}
    reasons = sum(shown.values("boxlite_worker_commands_by_engine_total").values())
    assert sum(started.values()) == RUNS + 1
    assert started["engine"] == reasons


def test_warm_hits_and_misses_are_counted(cluster: Cluster) -> None:
    before = scrape.of_coordinator(cluster)
    pool = {"image": "alpine:latest", "memory_mib": 160, "boxes": 1}
    assert cluster.http("PUT", "/v1/admin/warm", {"pools": [pool]})[0] == 200
    try:
        wait_until(lambda: scrape.of_coordinator(cluster).value("boxlite_warm_boxes_ready") == 1, "a box is warm")
        boxes = [create(cluster, memory_mib=160, env={}), create(cluster, memory_mib=160, env={})]
        after = scrape.of_coordinator(cluster)
    finally:
        cluster.http("PUT", "/v1/admin/warm", {"pools": []})
    for box in boxes:
        cluster.http("DELETE", f"/v1/boxes/{box}?force=true")
    wait_until(lambda: not any(warm_boxes(scrape.of_coordinator(cluster))), "no box is warm")
    counted = {
        what: after.value(f"boxlite_warm_{what}_total") - before.value(f"boxlite_warm_{what}_total")
        for what in ("claims", "misses")
    }
    assert counted["claims"] >= 1  # the second request finds another warm box, or none yet
    assert sum(counted.values()) == len(boxes)
    assert after.value("boxlite_create_stage_seconds_count", stage="claim") == counted["claims"]


def warm_boxes(shown: Scrape) -> tuple[float, float]:
    return shown.value("boxlite_warm_boxes_wanted"), shown.value("boxlite_warm_boxes_ready")


def test_no_label_is_a_name_from_outside(cluster: Cluster) -> None:
    name = "a-name-from-outside"
    box = create(cluster, name=name, labels={name: name})
    cluster.http("POST", f"/v1/{name}/boxes", {"image": f"{name}:latest", "name": name})
    cluster.http("GET", f"/{name}")
    cluster.http(name.upper().replace("-", ""), "/v1/boxes")
    worker = cluster.workers[0]
    for shown in (scrape.of_coordinator(cluster), scrape.of_worker(worker)):
        assert name not in shown.text.lower()
        assert name.replace("-", "") not in shown.text.lower()
        assert box not in shown.text
        assert worker.name not in shown.label_values()
    cluster.http("DELETE", f"/v1/boxes/{box}?force=true")


# ---- who may read them ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(new_shared_cluster: Callable[..., Cluster], tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A cluster with keys, and with a token for its metrics."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN + "\n")
    cluster = new_shared_cluster()
    cluster.secrets.add(TOKEN)
    key = cluster.new_key("--worker")
    cluster.start_coordinator("--metrics-token-file", str(token))
    cluster.start_worker("--metrics-token-file", str(token), "--api-key", key)
    return cluster


TOKEN = "a-token-of-monitoring"


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def test_with_keys_only_the_token_and_keys_of_operators_read_those_of_the_coordinator(guarded: Cluster) -> None:
    before = scrape.of_coordinator(guarded, bearer(TOKEN))
    tenant = guarded.new_key("--prefix", "acme")
    assert guarded.http("GET", "/metrics")[0] == 401
    assert guarded.http("GET", "/metrics", headers=bearer("no-such-key"))[0] == 401
    assert guarded.http("GET", "/metrics", headers=bearer(tenant))[0] == 403
    operator = guarded.new_key("--prefix", "ops", "--scope", "worker:admin")
    assert guarded.http("GET", "/metrics", headers=bearer(operator))[0] == 200
    after = scrape.of_coordinator(guarded, bearer(TOKEN))
    refused = {
        reason: after.value("boxlite_refused_requests_total", reason=reason)
        - before.value("boxlite_refused_requests_total", reason=reason)
        for reason in ("missing", "wrong", "ended", "forbidden")
    }
    assert refused == {"missing": 1, "wrong": 1, "ended": 0, "forbidden": 1}
    assert after.value("boxlite_requests_total", operation="getPrometheusMetrics", status="401") == 2


def test_the_token_opens_nothing_else(guarded: Cluster) -> None:
    for path in ("/v1/boxes", "/v1/admin/workers", "/v1/admin/coordinator/metrics", "/v1/metrics", "/v1/me"):
        assert guarded.http("GET", path, headers=bearer(TOKEN))[0] == 401


def test_with_a_token_only_its_holder_reads_those_of_the_worker(guarded: Cluster) -> None:
    port = guarded.workers[0].health_port
    for headers in ({}, bearer("another"), {"Authorization": TOKEN}):
        status, answered, body = call(port, "GET", "/metrics", headers=headers)
        assert (status, answered["www-authenticate"]) == (401, "Bearer")
        assert "--metrics-token-file" in body["reason"]
    assert scrape.of_worker(guarded.workers[0], bearer(TOKEN)).value("boxlite_worker_registered") == 1
    assert call(port, "GET", "/healthz")[0] == 200


def test_without_its_database_a_coordinator_still_tells_how_it_is(
    new_cluster: Callable[..., Cluster], postgresql: Server, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    cluster = new_cluster(database=postgresql.new_database())
    cluster.start_coordinator("--metrics-token-file", str(tmp_path / "token"))
    assert scrape.of_coordinator(cluster, bearer(TOKEN)).value("boxlite_database_up") == 1
    postgresql.stop()
    try:
        assert cluster.http("GET", "/v1/boxes")[0] == 503
        shown = scrape.of_coordinator(cluster, bearer(TOKEN))
    finally:
        postgresql.start()
    assert shown.value("boxlite_database_up") == 0
    assert "boxlite_boxes" not in shown.names
    assert shown.value("boxlite_requests_total", operation="listBoxes", status="503") == 1


@pytest.mark.parametrize("role", ["coordinator", "worker"])
def test_a_token_file_that_cannot_be_used_is_named(role: str, tmp_path: Path, capsys: Any) -> None:
    place = {"coordinator": ["--port", "0"], "worker": ["--coordinator", "http://127.0.0.1:1", "--home", str(tmp_path)]}
    token = tmp_path / "token"
    for content, told in ((None, "cannot read the token from"), ("short", "fewer than 16 can be guessed")):
        if content:
            token.write_text(content)
        assert main([role, *place[role], "--metrics-token-file", str(token)]) == 1
        assert told in capsys.readouterr().err
