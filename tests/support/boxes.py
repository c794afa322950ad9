"""Requests on boxes and executions of a cluster, each of which must succeed."""

from __future__ import annotations

from typing import Any

from support.cluster import Cluster


def create(cluster: Cluster, **fields: Any) -> str:
    status, _, box = cluster.http("POST", "/v1/boxes", {"image": "alpine:latest", "memory_mib": 128, **fields})
    assert status == 201, box
    return str(box["box_id"])


def start(cluster: Cluster, box: str) -> None:
    assert cluster.http("POST", f"/v1/boxes/{box}/start")[0] == 200


def execute(cluster: Cluster, box: str, script: str, **fields: Any) -> str:
    body = {"command": "sh", "args": ["-c", script], **fields}
    status, _, execution = cluster.http("POST", f"/v1/boxes/{box}/exec", body)
    assert status == 201, execution
    return str(execution["execution_id"])


def state(cluster: Cluster, box: str, execution: str) -> dict[str, Any]:
    status, _, found = cluster.http("GET", f"/v1/boxes/{box}/executions/{execution}")
    assert status == 200, found
    return dict(found)


def status_of(cluster: Cluster, box: str) -> str:
    return str(cluster.http("GET", f"/v1/boxes/{box}")[2]["status"])


def worker(cluster: Cluster, name: str) -> dict[str, Any]:
    """What the coordinator says of the worker of that name."""
    workers = cluster.http("GET", "/v1/admin/workers")[2]["workers"]
    return next(found for found in workers if found["name"] == name)
