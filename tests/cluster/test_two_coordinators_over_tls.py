"""Two coordinators on one PostgreSQL, each with a certificate of its own, and a worker that has joined by the first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.attach import attached
from support.boxes import create, execute, start
from support.cluster import Cluster, Coordinator, call, wait_until
from support.postgresql import Server
from support.tls_peer import serial

PATIENCE = 60.0


class Pair:
    """Requests are those of the tenant acme; `other` is the second coordinator."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        cluster.use_tls()
        cluster.issue("--coordinator", "127.0.0.1", "--name", "second")
        token = cluster.join_token()
        key = cluster.new_key("--prefix", "acme")
        cluster.start_coordinator()
        self.other: Coordinator = cluster.add_coordinator(certificate="second")
        self.worker = cluster.start_worker("--join", token)
        cluster.api_key = key

    def ask(self, port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.cluster.api_key}"}
        status, _, answer = call(port, method, path, body, headers=headers, tls=self.cluster.tls)
        return status, answer

    def echoes(self, port: int, box: str) -> None:
        """A command that one coordinator is asked for runs in the box."""
        status, answer = self.ask(port, "POST", f"/v1/boxes/{box}/run", {"command": "echo", "args": ["hi"]})
        assert (status, answer.get("stdout")) == (200, "hi\n"), answer


@pytest.fixture(scope="module")
def pair(new_shared_cluster: Any, postgresql: Server, test_image: str) -> Pair:
    return Pair(new_shared_cluster(database=postgresql.new_database()))


@pytest.fixture
def box(pair: Pair) -> Iterator[str]:
    box = create(pair.cluster)
    start(pair.cluster, box)
    yield box
    assert pair.cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


def test_both_reach_the_worker_with_their_own_certificates(pair: Pair, box: str) -> None:
    ports = [pair.cluster.port, pair.other.port]
    first, second = (serial(port, pair.cluster) for port in ports)
    assert first != second
    for port in ports:
        pair.echoes(port, box)
        path = f"{box}/executions/{execute(pair.cluster, box, 'read line; echo got $line', stdin=True)}/attach"
        with attached(pair.cluster, path, port=port) as client:
            client.send(b"it\n")
            assert (client.to_the_end(), client.stdout) == (0, b"got it\n")


def test_a_renewed_certificate_of_one_is_of_no_concern_to_the_other(pair: Pair, box: str) -> None:
    port, other = pair.cluster.port, pair.other.port
    kept, before = serial(port, pair.cluster), serial(other, pair.cluster)
    path = f"{box}/executions/{execute(pair.cluster, box, 'read line; echo got $line', stdin=True)}/attach"
    with attached(pair.cluster, path, port=other) as client:
        pair.cluster.issue("--coordinator", "127.0.0.1", "--name", "second")
        wait_until(lambda: serial(other, pair.cluster) != before, "the new certificate is served")
        for each in (port, other):
            pair.echoes(each, box)
        client.send(b"it\n")
        client.until(b"got it\n")
    assert serial(port, pair.cluster) == kept


def test_a_key_that_is_revoked_ends_at_both(pair: Pair, box: str) -> None:
    mine, leaked = pair.cluster.api_key, pair.cluster.new_key("--prefix", "acme")
    ports = (pair.cluster.port, pair.other.port)

    def statuses() -> list[int]:
        headers = {"Authorization": f"Bearer {leaked}"}
        return [call(port, "GET", f"/v1/boxes/{box}", headers=headers, tls=pair.cluster.tls)[0] for port in ports]

    assert statuses() == [200, 200]
    pair.cluster.run("keys", "revoke", leaked.split("_")[1], "--database", pair.cluster.database)
    wait_until(lambda: statuses() == [401, 401], "it has ended", PATIENCE)
    assert pair.cluster.api_key == mine
    pair.echoes(pair.other.port, box)


def test_the_other_goes_on_when_the_coordinator_of_the_worker_is_killed(pair: Pair, box: str) -> None:
    """The worker has heard of the first one alone. What it holds is reached by the other, and again by the first one
    when that is back."""
    assert pair.cluster.coordinator
    pair.cluster.coordinator.kill()
    try:
        pair.echoes(pair.other.port, box)
    finally:
        pair.cluster.coordinator.start()
    wait_until(lambda: pair.ask(pair.cluster.port, "GET", f"/v1/boxes/{box}")[0] == 200, "the first is back", PATIENCE)
    pair.echoes(pair.cluster.port, box)
