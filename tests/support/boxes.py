"""Requests on boxes and executions of a cluster, each of which must succeed."""

from __future__ import annotations

from typing import Any

from support.cluster import Cluster
from support.secrets import PLANTED, VARIABLE


def create(cluster: Cluster, **fields: Any) -> str:
    """Make a box, with a secret in its environment; `Cluster.close` looks for it."""
    body = {"image": "alpine:latest", "memory_mib": 128, "env": {VARIABLE: PLANTED}, **fields}
    status, _, box = cluster.http("POST", "/v1/boxes", body)
    assert status == 201, box
    return str(box["box_id"])


def start(cluster: Cluster, box: str) -> None:
    assert cluster.http("POST", f"/v1/boxes/{box}/start")[0] == 200


def execute(cluster: Cluster, box: str, script: str, **fields: Any) -> str:
    """Start a command, with a secret in its environment; see `create`."""
    body = {"command": "sh", "args": ["-c", script], "env": {VARIABLE: PLANTED}, **fields}
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
