"""Two coordinators on one PostgreSQL, as processes: whatever one is asked for, the other knows of."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from support.attach import Attached, attached
from support.boxes import create, execute, start, status_of
from support.cluster import Cluster, Coordinator, call, wait_until
from support.postgresql import Server
from websockets.exceptions import InvalidStatus

from boxlite_server.coordinator.http.attach.session import CLOSE_TRY_AGAIN
from boxlite_server.coordinator.server import GRACE_SECONDS

NewCluster = Callable[..., Cluster]
Reply = tuple[int, dict[str, str], Any]

STUBBORN = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]
ROUNDS = 3


class Pair:
    """A cluster whose worker knows the first coordinator; `other` is the second one."""

    def __init__(self, new_cluster: NewCluster, postgresql: Server) -> None:
        self.cluster = new_cluster(database=postgresql.new_database())
        self.cluster.start_coordinator()
        self.other: Coordinator = self.cluster.add_coordinator()
        self.cluster.start_worker()

    @property
    def ports(self) -> tuple[int, int]:
        return self.cluster.port, self.other.port

    def at_both(self, method: str, path: str, body: Any = None, *, times: int = 1, **headers: str) -> list[Reply]:
        """The same request to both at once, so many times to each."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        with ThreadPoolExecutor(2 * times) as pool:
            asked = [pool.submit(call, port, method, path, body, headers=sent) for port in self.ports * times]
            return [answer.result() for answer in asked]

    def none_left(self) -> None:
        """All leases have been given back: the rows of those that ran out stay for an hour."""
        wait_until(lambda: not self.leases(), "all leases are given back")

    def leases(self) -> list[str]:
        with psycopg.connect(self.cluster.database) as connection:
            return [row[0] for row in connection.execute("SELECT name FROM leases")]


@pytest.fixture(scope="module")
def pair(new_shared_cluster: NewCluster, postgresql: Server, test_image: str) -> Iterator[Pair]:
    """Both of its coordinators live to the end."""
    pair = Pair(new_shared_cluster, postgresql)
    yield pair
    for box in pair.cluster.http("GET", "/v1/boxes")[2]["boxes"]:
        pair.cluster.http("DELETE", f"/v1/boxes/{box['box_id']}?force=true")


@pytest.fixture
def mortal(new_cluster: NewCluster, postgresql: Server, test_image: str) -> Iterator[Pair]:
    """A pair whose second coordinator may be killed, with a box that takes its time to stop."""
    pair = Pair(new_cluster, postgresql)
    yield pair
    for box in pair.cluster.http("GET", "/v1/boxes")[2]["boxes"]:
        pair.cluster.http("DELETE", f"/v1/boxes/{box['box_id']}?force=true")


@pytest.mark.parametrize("number", range(ROUNDS))
def test_one_key_at_both_at_once(pair: Pair, number: int) -> None:
    body = {"image": "alpine:latest", "memory_mib": 128, "labels": {"round": str(number)}}
    replies = pair.at_both("POST", "/v1/boxes", body, times=2, Idempotency_Key=f"key-{number}")
    assert {reply[0] for reply in replies} == {201}, replies
    assert len({reply[2]["box_id"] for reply in replies}) == 1
    assert sum("idempotency-replayed" in reply[1] for reply in replies) == 3
    assert len(pair.cluster.http("GET", f"/v1/boxes?label=round={number}")[2]["boxes"]) == 1
    assert len(pair.cluster.containers()) == len(pair.cluster.http("GET", "/v1/boxes")[2]["boxes"])


@pytest.mark.parametrize("number", range(ROUNDS))
def test_one_name_at_both_at_once(pair: Pair, number: int) -> None:
    body = {"image": "alpine:latest", "memory_mib": 128, "name": f"name-{number}"}
    replies = pair.at_both("POST", "/v1/boxes", body)
    assert sorted(reply[0] for reply in replies) == [201, 409]
    assert [reply[2]["error"]["code"] for reply in replies if reply[0] == 409] == ["already_exists"]


def test_one_box_through_both(pair: Pair) -> None:
    box = create(pair.cluster)
    started = pair.at_both("POST", f"/v1/boxes/{box}/start", times=3)
    assert {reply[0] for reply in started} == {200}
    assert len({reply[2]["pid"] for reply in started}) == 1
    for port in pair.ports:
        with attached(pair.cluster, f"{box}/executions/{execute(pair.cluster, box, 'echo hi')}/attach", port=port) as a:
            assert (a.to_the_end(), a.stdout) == (0, b"hi\n")
    assert {reply[0] for reply in pair.at_both("POST", f"/v1/boxes/{box}/stop", times=3)} == {200}
    assert [call(port, "GET", f"/v1/boxes/{box}")[2]["status"] for port in pair.ports] == ["stopped", "stopped"]
    removed = pair.at_both("DELETE", f"/v1/boxes/{box}?force=true")
    assert sorted(reply[0] for reply in removed) == [204, 404]
    pair.none_left()


def test_one_client_is_attached_wherever_it_came(pair: Pair) -> None:
    box = create(pair.cluster)
    start(pair.cluster, box)
    path = f"{box}/executions/{execute(pair.cluster, box, 'echo ready; cat')}/attach"
    with attached(pair.cluster, path) as first:
        first.until(b"ready\n")
        for port in pair.ports:
            with pytest.raises(InvalidStatus, match="409"), attached(pair.cluster, path, port=port):
                pass
        first.send(b"more\n")
        first.until(b"more\n")
        first.settle()

    with attached_at_last(pair.cluster, path, pair.other.port) as second:
        second.send(b"last\n")
        second.say(type="stdin_eof")
        assert (second.to_the_end(), second.stdout) == (0, b"last\n")


@contextmanager
def attached_at_last(cluster: Cluster, path: str, port: int) -> Iterator[Attached]:
    """Attach as soon as nobody else is attached."""
    with ExitStack() as stack:
        clients: list[Attached] = []

        def attach() -> bool:
            try:
                clients.append(stack.enter_context(attached(cluster, path, port=port)))
            except InvalidStatus as refused:
                assert refused.response.status_code == 409
            return bool(clients)

        wait_until(attach, "nobody else is attached")
        yield clients[0]


def test_a_box_that_is_used_through_the_other_is_not_idle(pair: Pair) -> None:
    box = create(pair.cluster, auto_stop=1)
    start(pair.cluster, box)
    with attached(pair.cluster, f"{box}/attach", port=pair.other.port):
        wait_until(lambda: any(name.startswith(f"use/{box}/") for name in pair.leases()), "the box is in use")
        wait_until(lambda: _was_looked_at(pair, box), "the first coordinator looked whether the box is idle")
        assert status_of(pair.cluster, box) == "running"
    wait_until(lambda: status_of(pair.cluster, box) == "stopped", "the box is stopped")


def _was_looked_at(pair: Pair, box: str) -> bool:
    """Whether the keeper has looked at the box: it moves the deadline of a box that is in use."""
    with psycopg.connect(pair.cluster.database) as connection:
        rows = connection.execute(
            "SELECT 1 FROM deadlines JOIN boxes ON id = box_id WHERE id = %s AND due_at > started_at + 2", (box,)
        )
        return rows.fetchone() is not None


def test_the_other_takes_over_from_one_that_is_killed(mortal: Pair) -> None:
    cluster = mortal.cluster
    box = create(cluster, cmd=STUBBORN)
    start(cluster, box)
    path = f"{box}/executions/{execute(cluster, box, 'echo ready; cat')}/attach"
    with attached(cluster, path, port=mortal.other.port) as client, ThreadPoolExecutor() as pool:
        client.until(b"ready\n")
        stop = ("POST", f"/v1/boxes/{box}/stop", {"timeout_seconds": 3})
        key = {"Idempotency-Key": "stop"}
        pool.submit(call, mortal.other.port, *stop, headers=key)
        wait_until(lambda: status_of(cluster, box) == "stopping", "the stop is under way")
        assert {name.partition("/")[0] for name in mortal.leases()} >= {"box", "key", "attach"}
        mortal.other.kill()
        # The same request goes on elsewhere, as soon as it is sure that nobody else is at it.
        status, headers, answer = cluster.http(*stop, headers=key)
        assert (status, answer["status"]) == (200, "stopped")
        assert "idempotency-replayed" not in headers
    start(cluster, box)
    with attached(cluster, f"{box}/executions/{execute(cluster, box, 'echo hi')}/attach") as client:
        assert client.to_the_end() == 0
    assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204
    mortal.other.start()
    assert call(mortal.other.port, "GET", f"/v1/boxes/{box}")[0] == 404


def test_one_that_is_stopped_for_a_while_does_not_write_over_the_other(mortal: Pair) -> None:
    cluster = mortal.cluster
    box, attached_box = create(cluster, cmd=STUBBORN), create(cluster)
    for each in (box, attached_box):
        start(cluster, each)
    path = f"{attached_box}/executions/{execute(cluster, attached_box, 'echo ready; cat')}/attach"
    with ThreadPoolExecutor() as pool, attached(cluster, path, port=mortal.other.port) as old:
        old.until(b"ready\n")
        old.settle()
        stopping = pool.submit(call, mortal.other.port, "POST", f"/v1/boxes/{box}/stop", {"timeout_seconds": 3})
        wait_until(lambda: status_of(cluster, box) == "stopping", "the stop is under way")
        os.kill(mortal.other.pid, signal.SIGSTOP)
        try:
            assert cluster.http("POST", f"/v1/boxes/{box}/start")[0] == 200
            with attached_at_last(cluster, path, cluster.port) as new:
                os.kill(mortal.other.pid, signal.SIGCONT)
                old.to_the_cut()
                assert old.connection.close_code == CLOSE_TRY_AGAIN
                new.send(b"more\n")
                new.say(type="stdin_eof")
                assert (new.to_the_end(), new.stdout) == (0, b"more\n")
        finally:
            os.kill(mortal.other.pid, signal.SIGCONT)
        status, _, answer = stopping.result()
        assert (status, answer["error"]["code"]) == (503, "upstream_unavailable")
    assert status_of(cluster, box) == "running"


def test_what_is_under_way_is_finished_before_the_end(mortal: Pair) -> None:
    cluster = mortal.cluster
    box = create(cluster, cmd=STUBBORN)
    start(cluster, box)
    with ThreadPoolExecutor() as pool:
        stopping = pool.submit(call, mortal.other.port, "POST", f"/v1/boxes/{box}/stop", {"timeout_seconds": 2})
        wait_until(lambda: status_of(cluster, box) == "stopping", "the stop is under way")
        mortal.other.stop()
        assert stopping.result()[0] == 200
    mortal.none_left()
    assert status_of(cluster, box) == "stopped"


def test_what_takes_too_long_is_handed_on(mortal: Pair) -> None:
    cluster = mortal.cluster
    box = create(cluster, cmd=STUBBORN)
    start(cluster, box)
    with ThreadPoolExecutor() as pool:
        timeout = GRACE_SECONDS + 5
        stopping = pool.submit(call, mortal.other.port, "POST", f"/v1/boxes/{box}/stop", {"timeout_seconds": timeout})
        wait_until(lambda: status_of(cluster, box) == "stopping", "the stop is under way")
        mortal.other.stop()
        mortal.none_left()
        assert cluster.http("POST", f"/v1/boxes/{box}/start")[0] == 200
        status, _, answer = stopping.result()
        assert (status, answer["error"]["code"]) == (503, "upstream_unavailable")
        assert "shutting down" in answer["error"]["message"]
    assert status_of(cluster, box) == "running"
