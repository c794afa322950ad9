"""One request through a whole cluster: its id is in the audit and in the logs of coordinator and worker."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest
from support.boxes import start
from support.cluster import Cluster, wait_until

from boxlite_server import ids
from boxlite_server.cli import main


@pytest.fixture
def audit(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The command, on the database that the coordinator is using."""

    def run(*flags: str) -> Any:
        capsys.readouterr()
        assert main.main(["audit", "--database", cluster.database, "--format", "json", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def logged(cluster: Cluster, request_id: str) -> list[str]:
    """What the worker has logged for a request."""
    [worker] = cluster.workers
    return [line.partition(f"{request_id}: ")[2] for line in worker.log.read_text().splitlines() if request_id in line]


def test_a_request_is_followed_from_the_audit_into_the_workers_log(
    cluster: Cluster, new_box: Callable[..., str], audit: Callable[..., Any]
) -> None:
    box = new_box()
    start(cluster, box)
    request_id = ids.request_id()
    path = f"/v1/boxes/{box}/run"
    status, _, answer = cluster.http("POST", path, {"command": "true"}, headers={"X-Request-Id": request_id})
    assert (status, answer["exit_code"]) == (200, 0)
    wait_until(lambda: len(audit("--request-id", request_id)) == 1, "the line is written")
    [line] = audit("--request-id", request_id)
    assert (line["action"], line["status"], line["address"]) == ("runCommand", 200, "127.0.0.1")
    assert line["target"] == f"/v1/default/boxes/{box}/run"
    [entry] = logged(cluster, request_id)
    assert entry.startswith("RunCommand: done in ")
    assert cluster.coordinator is not None
    of_coordinator = [line for line in cluster.coordinator.log.read_text().splitlines() if request_id in line]
    assert [json.loads(text[text.index("{") :]) for text in of_coordinator] == [line]


def test_bytes_that_are_no_request_have_a_line(cluster: Cluster, audit: Callable[..., Any]) -> None:
    with socket.create_connection(("127.0.0.1", cluster.port)) as connection:
        connection.sendall(b"\x16\x03\x01 rubbish \x1b[2J\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    [request_id] = re.findall(rb"(?i)x-request-id: (\S+)", answer)
    wait_until(lambda: audit("--request-id", request_id.decode()) != [], "the line is written")
    [line] = audit("--request-id", request_id.decode())
    assert (line["action"], line["status"], line["address"]) == ("noRequest", 400, "127.0.0.1")
    assert (line["key_id"], line["prefix"], line["target"]) == ("", "", "")


def test_what_failed_at_the_worker_is_in_its_log_under_the_requests_id(
    cluster: Cluster, new_box: Callable[..., str]
) -> None:
    box = new_box()
    start(cluster, box)
    request_id = ids.request_id()
    body = {"command": "/nosuch"}
    assert cluster.http("POST", f"/v1/boxes/{box}/exec", body, headers={"X-Request-Id": request_id})[0] == 422
    [entry] = logged(cluster, request_id)
    assert entry.startswith("StartExecution: execution_failed: ")


def test_a_background_thread_has_nobodys_request_id(cluster: Cluster, new_box: Callable[..., str]) -> None:
    box = new_box()
    request_id = ids.request_id()
    assert cluster.http("POST", f"/v1/boxes/{box}/start", {}, headers={"X-Request-Id": request_id})[0] == 200
    assert [entry.split(":")[0] for entry in logged(cluster, request_id)] == ["StartBox"]
    assert cluster.http("GET", f"/v1/boxes/{box}/metrics")[0] == 200
    assert len(logged(cluster, request_id)) == 1
