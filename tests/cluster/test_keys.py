"""Two tenants and a worker, each with a key of its own, and what becomes of connections whose key ends."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.attach import attached, refusal
from support.boxes import create, execute, start, state
from support.cluster import Cluster, call, wait_until
from support.postgresql import Server
from websockets.exceptions import ConnectionClosed

from boxlite_server.cli import main

REVOKED_SECONDS = 10.0  # in which a revocation reaches all
SLACK_SECONDS = 20.0  # for a machine that is busy


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Any, test_image: str) -> Cluster:
    """Its requests carry a key of the prefix acme."""
    cluster: Cluster = new_shared_cluster()
    cluster.start_with_keys()
    cluster.api_key = cluster.new_key("--prefix", "acme")
    return cluster


@pytest.fixture(scope="module")
def other(cluster: Cluster) -> dict[str, str]:
    """The headers of another tenant."""
    return {"Authorization": f"Bearer {cluster.new_key('--prefix', 'other')}"}


@pytest.fixture
def box(cluster: Cluster) -> Iterator[str]:
    box = create(cluster, name="web")
    start(cluster, box)
    yield box
    assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


def test_a_tenant_finds_its_own_boxes_and_no_other(cluster: Cluster, box: str, other: dict[str, str]) -> None:
    for path in ("/v1/boxes", "/v1/acme/boxes", "/v1/default/boxes"):
        assert [found["box_id"] for found in cluster.http("GET", path)[2]["boxes"]] == [box]
    assert cluster.http("GET", "/v1/boxes", headers=other)[2]["boxes"] == []
    for path in ("/v1/acme/boxes", f"/v1/acme/boxes/{box}", f"/v1/boxes/{box}", "/v1/default/boxes/web"):
        assert cluster.http("GET", path, headers=other)[0] == 404
    me = cluster.http("GET", "/v1/me", headers=other)[2]
    assert (me["path_prefix"], "box:exec" in me["scopes"]) == ("other", True)


def test_a_tenant_cannot_register_a_worker(cluster: Cluster) -> None:
    status, _, answer = cluster.http("POST", "/v1/admin/workers", {})
    assert (status, answer["error"]["code"]) == (403, "permission_denied")
    assert cluster.http("GET", "/v1/admin/workers")[0] == 403


def test_connections_end_with_their_key_and_the_command_goes_on(cluster: Cluster, box: str) -> None:
    execution, followed = execute(cluster, box, "echo ready; sleep 1000"), execute(cluster, box, "echo x; sleep 1000")
    mine = cluster.api_key
    assert mine
    leaked = cluster.new_key("--prefix", "acme")
    stream = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=REVOKED_SECONDS + SLACK_SECONDS)
    path = f"{box}/executions/{execution}/attach"
    cluster.api_key = leaked
    with attached(cluster, path) as thief:
        cluster.api_key = mine
        thief.until(b"ready")
        headers = {"Authorization": f"Bearer {leaked}"}
        stream.request("GET", f"/v1/boxes/{box}/executions/{followed}/output", headers=headers)
        answer = stream.getresponse()
        assert answer.readline()
        with attached(cluster, f"{box}/exec/tty?command=sh", channels=False) as owner:
            began = time.monotonic()
            revoke(cluster, leaked)
            with pytest.raises(ConnectionClosed) as closed:
                thief.connection.recv(timeout=REVOKED_SECONDS + SLACK_SECONDS)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, "key" in closed.value.rcvd.reason) == (1008, True)
            with pytest.raises(http.client.IncompleteRead):
                answer.read()
            assert time.monotonic() - began < REVOKED_SECONDS + SLACK_SECONDS
            assert call(cluster.port, "GET", "/v1/boxes", headers=headers)[0] == 401
            owner.send(b"echo $((40 + 2))\n")
            owner.until(b"42")
    stream.close()
    assert state(cluster, box, execution)["status"] == "running"
    with attached(cluster, path) as back:
        assert back.connection.ping()


def test_another_tenant_and_a_wrong_key_open_no_websocket(cluster: Cluster, box: str, other: dict[str, str]) -> None:
    execution = execute(cluster, box, "sleep 1000")
    mine, cluster.api_key = cluster.api_key, other["Authorization"].removeprefix("Bearer ")
    assert refusal(cluster, f"{box}/executions/{execution}/attach")[0] == 404
    cluster.api_key = "wrong"
    assert refusal(cluster, f"{box}/executions/{execution}/attach")[0] == 401
    cluster.api_key = mine


def revoke(cluster: Cluster, key: str) -> None:
    assert main.main(["keys", "revoke", key.split("_")[1], "--database", cluster.database]) == 0


def test_a_key_and_its_tokens_are_the_same_at_every_coordinator_and_end_everywhere(
    new_cluster: Any, postgresql: Server
) -> None:
    cluster: Cluster = new_cluster(database=postgresql.new_database())
    cluster.start_coordinator()
    ports = [cluster.port, cluster.add_coordinator().port]
    key = cluster.new_key("--prefix", "acme")

    def statuses(credential: str) -> list[int]:
        headers = {"Authorization": f"Bearer {credential}"} if credential else {}
        return [call(port, "GET", "/v1/acme/boxes", headers=headers)[0] for port in ports]

    wait_until(lambda: statuses("") == [401, 401], "nobody gets in without a key", REVOKED_SECONDS + SLACK_SECONDS)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    body = f"grant_type=client_credentials&client_id=me&client_secret={key}".encode()
    token = call(ports[1], "POST", "/v1/oauth/tokens", body, headers=form)[2]["access_token"]
    assert statuses(key) == statuses(token) == [200, 200]
    revoke(cluster, key)
    for credential in (key, token):
        wait_until(
            lambda text=credential: statuses(text) == [401, 401], "it has ended", REVOKED_SECONDS + SLACK_SECONDS
        )
