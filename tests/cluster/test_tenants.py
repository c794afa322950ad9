"""Two tenants of one fleet, in real processes: quotas that reach the worker, and what is shown to whom."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.boxes import create, execute, start, state
from support.cluster import Cluster, wait_until

from boxlite_server.cli import main


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Any, test_image: str) -> Cluster:
    """Its requests carry a key of the prefix acme."""
    cluster: Cluster = new_shared_cluster()
    cluster.start_with_keys("--name", "frosty-meadow-42")
    cluster.api_key = cluster.new_key("--prefix", "acme")
    return cluster


@pytest.fixture(scope="module")
def box(cluster: Cluster) -> str:
    box = create(cluster, name="web")
    start(cluster, box)
    return box


@pytest.fixture
def limit(cluster: Cluster) -> Iterator[Callable[..., None]]:
    """Sets quotas of acme for the test."""

    def set_quotas(*flags: str) -> None:
        assert main.main(["quotas", "set", "acme", *flags, "--database", str(cluster.database)]) == 0
        wanted = dict(zip((flag[2:].replace("-", "_") for flag in flags[::2]), map(int, flags[1::2]), strict=True))

        def is_known() -> bool:
            shown = cluster.http("GET", "/v1/me")[2]["quotas"]
            return all(shown[name] == value for name, value in wanted.items())

        wait_until(is_known, "the coordinator knows the quotas")

    yield set_quotas
    assert main.main(["quotas", "remove", "acme", "--database", str(cluster.database)]) == 0


def refused(cluster: Cluster, quota: str, method: str, path: str, body: Any = None, **how: Any) -> None:
    status, headers, answer = cluster.http(method, path, body, **how)
    assert (status, answer["error"]["code"]) == (429, "resource_exhausted"), answer
    assert f"the quota {quota} of prefix 'acme'" in answer["error"]["message"]
    assert int({name.lower(): value for name, value in headers.items()}["retry-after"]) >= 1


def test_commands_are_bounded_by_the_quota_until_they_end(
    cluster: Cluster, box: str, limit: Callable[..., None]
) -> None:
    limit("--executions", "1")
    execution = execute(cluster, box, "sleep 1000")
    command = {"command": "true"}
    refused(cluster, "executions", "POST", f"/v1/boxes/{box}/exec", command)
    refused(cluster, "executions", "POST", f"/v1/boxes/{box}/run", command)
    assert cluster.http("DELETE", f"/v1/boxes/{box}/executions/{execution}")[0] == 204
    wait_until(lambda: state(cluster, box, execution)["status"] == "killed", "the end of the command")
    assert cluster.http("POST", f"/v1/boxes/{box}/run", command)[0] == 200


def test_transfers_are_bounded_by_the_quota(cluster: Cluster, box: str, limit: Callable[..., None]) -> None:
    path = f"/v1/boxes/{box}/files?path=%2Fetc%2Fhosts"
    assert cluster.http("GET", path)[0] == 200
    limit("--transfers", "0")
    refused(cluster, "transfers", "GET", path)


def test_a_tenant_hears_nothing_of_the_worker_and_its_host(cluster: Cluster, box: str) -> None:
    operator = {"Authorization": f"Bearer {cluster.new_key('--prefix', 'acme', '--scope', 'box:read,worker:admin')}"}
    shown = cluster.http("GET", f"/v1/boxes/{box}")[2]
    assert (shown["worker"], shown["pid"], shown["status"]) == (None, None, "running")
    seen = cluster.http("GET", f"/v1/boxes/{box}", headers=operator)[2]
    assert (seen["worker"], seen["pid"] > 0) == ("frosty-meadow-42", True)
    huge = {"image": "alpine", "memory_mib": 1048576}
    status, _, answer = cluster.http("POST", "/v1/boxes", huge)
    assert status == 503
    assert answer["error"]["message"] == "no worker can take the box: some are short of memory"
    assert "frosty" not in json.dumps(cluster.http("GET", "/v1/boxes")[2])
