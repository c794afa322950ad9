"""Tickets: what a browser without a key can open with one, and what nobody can."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support.attach import attached, refusal
from support.boxes import create, execute, start
from support.cluster import Cluster, call, wait_until

from boxlite_server.cli import main

OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Any, test_image: str) -> Cluster:
    """Its requests carry a key of the prefix acme; its coordinator logs all requests."""
    cluster: Cluster = new_shared_cluster()
    cluster.start_with_keys()
    cluster.api_key = cluster.new_key("--prefix", "acme")
    return cluster


@pytest.fixture(scope="module")
def box(cluster: Cluster) -> str:
    box = create(cluster)
    start(cluster, box)
    path = f"/v1/boxes/{box}/files/content?path=/srv/a%20b"
    assert cluster.http("PUT", path, b"content", headers=OCTETS)[0] == 204
    return box


@pytest.fixture
def new_ticket(cluster: Cluster) -> Callable[..., str]:
    def new(path: str, key: str | None = None, **fields: Any) -> str:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        status, _, answer = cluster.http("POST", "/v1/tickets", {"path": path, **fields}, headers=headers)
        assert status == 200, answer
        return str(answer["ticket"])

    return new


@contextmanager
def without_key(cluster: Cluster) -> Iterator[None]:
    key, cluster.api_key = cluster.api_key, None
    yield
    cluster.api_key = key


def opened(cluster: Cluster, path: str, ticket: str, method: str = "GET") -> int:
    """The status of a request that carries a ticket alone."""
    url = f"{path}{'&' if '?' in path else '?'}ticket={ticket}"
    return call(cluster.port, method, url, tls=cluster.tls)[0]


def test_a_download_is_opened_by_its_ticket_and_nothing_else_is(
    cluster: Cluster, box: str, new_ticket: Callable[..., str]
) -> None:
    path = f"/v1/boxes/{box}/files/content?path=%2Fsrv%2Fa%20b"
    ticket = new_ticket(path)
    url = f"/v1/acme/boxes/{box}/files/content?ticket={ticket}&path=/srv/a+b"  # the same, otherwise encoded
    status, _, body = call(cluster.port, "GET", url, tls=cluster.tls)
    assert (status, body) == (200, b"content")
    assert opened(cluster, path, ticket) == 200
    others = [
        f"/v1/boxes/{box}/files/content?path=/etc/hostname",
        f"{path}&path=/etc/hostname",
        f"{path}&a=",
        f"/v1/boxes/{box}/files?path=%2Fsrv%2Fa%20b",
        f"/v1/boxes/{box}",
        "/v1/boxes",
    ]
    assert [opened(cluster, other, ticket) for other in others] == [401] * len(others)
    assert [opened(cluster, path, ticket, method) for method in ("HEAD", "PUT", "DELETE", "POST")] == [401] * 4
    assert opened(cluster, path, ticket[:-1] + ("0" if ticket[-1] != "0" else "1")) == 401
    assert opened(cluster, path, "nonsense") == opened(cluster, path, "") == 401


def test_a_key_counts_more_than_a_ticket_beside_it(cluster: Cluster, box: str, new_ticket: Callable[..., str]) -> None:
    path = f"/v1/boxes/{box}"
    stranger = cluster.new_key("--prefix", "other")
    for key, expected in (("wrong", 401), (stranger, 404)):
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{path}?ticket={new_ticket(path)}"
        assert call(cluster.port, "GET", url, headers=headers, tls=cluster.tls)[0] == expected


def test_a_terminal_is_opened_by_its_ticket(cluster: Cluster, box: str, new_ticket: Callable[..., str]) -> None:
    execution = execute(cluster, box, "echo out; read line; echo $line")
    path = f"{box}/executions/{execution}/attach"
    ticket = new_ticket(f"/v1/boxes/{path}")
    with without_key(cluster):
        with attached(cluster, f"{path}?ticket={ticket}") as terminal:
            terminal.until(b"out")
            terminal.send(b"in\n")
            assert terminal.to_the_end() == 0
        assert refusal(cluster, f"{path}?received=0&ticket={ticket}")[0] == 401
        assert refusal(cluster, f"{box}/attach?ticket={ticket}")[0] == 401
        assert refusal(cluster, path)[0] == 401


def test_a_ticket_ends(cluster: Cluster, box: str, new_ticket: Callable[..., str]) -> None:
    path = f"/v1/boxes/{box}"
    ticket = new_ticket(path, seconds=1)
    wait_until(lambda: opened(cluster, path, ticket) == 401, "the end of the ticket", 30)
    status, _, answer = call(cluster.port, "GET", f"{path}?ticket={ticket}", tls=cluster.tls)
    assert (status, "expired" in answer["error"]["message"]) == (401, True)
    for seconds in (0, 61):
        assert cluster.http("POST", "/v1/tickets", {"path": path, "seconds": seconds})[0] == 400
    assert cluster.http("POST", "/v1/tickets", {"path": "https://elsewhere/"})[0] == 400
    assert cluster.http("POST", "/v1/tickets", {"path": "/v1/other/boxes"})[0] == 404


def test_a_ticket_and_what_it_opened_end_with_its_key(
    cluster: Cluster, box: str, new_ticket: Callable[..., str]
) -> None:
    leaked = cluster.new_key("--prefix", "acme")
    execution = execute(cluster, box, "echo out; sleep 1000")
    path = f"{box}/executions/{execution}/attach"
    ticket = new_ticket(f"/v1/boxes/{path}", leaked)
    read = new_ticket(f"/v1/boxes/{box}", leaked)
    with without_key(cluster), attached(cluster, f"{path}?ticket={ticket}") as terminal:
        terminal.until(b"out")
        assert opened(cluster, f"/v1/boxes/{box}", read) == 200
        assert main.main(["keys", "revoke", leaked.split("_")[1], "--database", cluster.database]) == 0
        began = time.monotonic()
        terminal.to_the_cut()
        assert time.monotonic() - began < 40
        assert opened(cluster, f"/v1/boxes/{box}", read) == 401


def test_a_ticket_opens_no_more_than_its_key(cluster: Cluster, box: str, new_ticket: Callable[..., str]) -> None:
    reader = cluster.new_key("--prefix", "acme", "--scope", "box:read")
    stranger = cluster.new_key("--prefix", "other")
    path = f"/v1/boxes/{box}/files/content?path=/srv/a%20b"
    assert opened(cluster, path, new_ticket(path, reader)) == 403
    assert opened(cluster, path, new_ticket(path, stranger)) == 404
    assert opened(cluster, f"/v1/acme/boxes/{box}", new_ticket(f"/v1/boxes/{box}", stranger)) == 401


def test_no_ticket_is_in_the_log_or_the_audit(cluster: Cluster, box: str, new_ticket: Callable[..., str]) -> None:
    path = f"/v1/boxes/{box}/files/content?path=" + quote("/nosuch file")
    ticket = new_ticket(path)
    assert opened(cluster, path, ticket) == 404
    assert opened(cluster, "/v1/boxes/other/start", ticket, "POST") == 401
    assert opened(cluster, f"/v1/nosuch/{ticket}", ticket) == 401
    signature = ticket.rpartition("_")[2]
    for log in Path(cluster.directory).glob("*.log"):
        assert signature not in log.read_text(errors="replace")


def test_without_keys_a_ticket_is_issued_and_not_needed(new_cluster: Any) -> None:
    cluster: Cluster = new_cluster()
    cluster.start_coordinator()
    status, _, answer = cluster.http("POST", "/v1/tickets", {"path": "/v1/boxes"})
    assert status == 200
    assert opened(cluster, "/v1/boxes", answer["ticket"]) == 200


def test_the_one_key_of_a_small_installation_has_tickets(new_cluster: Any) -> None:
    cluster: Cluster = new_cluster(api_key="k" * 32)
    cluster.start_coordinator()
    status, _, answer = cluster.http("POST", "/v1/tickets", {"path": "/v1/acme/boxes"})
    assert status == 200
    assert opened(cluster, "/v1/acme/boxes", answer["ticket"]) == 200
    assert opened(cluster, "/v1/other/boxes", answer["ticket"]) == 401
