"""Requests that no honest client sends: each is answered, and none of them is a fault of the server's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.cluster import Cluster
from support.hostile import answer, hostile_requests, unmake

EXPENSIVE = frozenset({"cloneBox", "exportBox", "createSnapshot"})
# What would reach out to other machines, or take away what the other requests need.
SKIPPED = frozenset({"pullImage", "removeBox", "removeImage"})


def is_hard_for_a_database(text: str) -> bool:
    return any(part in text for part in ("u0000", "%00", "ud8", "99999", "1e999", "1e308", "922337203"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_no_request_is_a_fault_of_the_server(
    new_cluster: Any, test_image: str, database: str, request: pytest.FixtureRequest
) -> None:
    is_sqlite = database == "sqlite"
    site = new_cluster(database=None if is_sqlite else request.getfixturevalue("postgresql").new_database())
    site.start_coordinator()
    site.start_worker()
    box = ""

    def known(operation_id: str) -> dict[str, str]:
        """A box that exists and an execution that runs, whatever has happened to the last ones."""
        nonlocal box
        if site.http("GET", f"/v1/acme/boxes/{box or 'none'}")[0] == 404:  # it may have got a short life
            box = made(site, "/v1/acme/boxes", {"image": test_image, "memory_mib": 128})["box_id"]
        execution = made(site, f"/v1/acme/boxes/{box}/exec", {"command": "sleep", "args": ["1000"]})["execution_id"]
        return {
            "prefix": "acme",
            "box_id": "nosuch" if operation_id in EXPENSIVE else box,
            "execution_id": execution,
            "worker_id": "W0rk3r000001",  # that of the examples in the spec
        }

    texts = (lambda _: True) if is_sqlite else is_hard_for_a_database
    faults = []
    for hostile in hostile_requests(known, SKIPPED, texts):
        status, body = answer(site, hostile)
        if status >= 500 and status != 501:
            faults.append((status, hostile.why, hostile.target[:200], hostile.body[:200], body[:300]))
        if status == 201:
            unmake(site, hostile.target, json.loads(body))
    assert not faults
    for process in site.processes:
        assert "Traceback" not in process.log.read_text(errors="replace"), process.tail()
    assert site.http("DELETE", f"/v1/acme/boxes/{box}?force=true")[0] in (204, 404)
    assert site.containers() == []
    assert site.volumes() == []


def made(cluster: Cluster, path: str, body: dict[str, Any]) -> dict[str, Any]:
    status, _, answered = cluster.http("POST", path, body)
    assert status == 201, answered
    return dict(answered)
