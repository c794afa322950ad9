"""The worker's health port, and clients that mean it no good."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator

import pytest

from boxlite_server.worker.monitoring import health

MINUTE = 60.0


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(health, "MAX_SECONDS", 0.5)
    server = health.HealthServer("127.0.0.1", 0, lambda: None)
    server.start()
    yield server.port
    server.stop()


def status(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=MINUTE)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_client_that_sends_byte_by_byte_is_cut_off(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=MINUTE) as slow, pytest.raises(OSError):
        for _ in range(10_000):
            slow.sendall(b"G")
            time.sleep(0.01)
    assert status(port) == 200


def test_silent_clients_do_not_keep_the_monitor_out_for_long(port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port), timeout=MINUTE) for _ in range(health.MAX_CONNECTIONS)]
    try:
        deadline = time.monotonic() + MINUTE
        while True:
            try:
                assert status(port) == 200
                break
            except (OSError, http.client.HTTPException):
                assert time.monotonic() < deadline
    finally:
        for connection in silent:
            connection.close()


def test_the_answer_does_not_tell_the_version_of_python(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=MINUTE)
    connection.request("POST", "/readyz")
    response = connection.getresponse()
    assert response.status == 501
    assert "Python" not in (response.getheader("server") or "")
    connection.close()


@pytest.mark.parametrize(
    ("address", "is_here"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.7", False),
        ("::ffff:10.0.0.7", False),
        ("fe80::1%eth0", False),
    ],
)
def test_without_a_token_only_this_host_reads_the_metrics(
    address: str, is_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = health.HealthServer("127.0.0.1", 0, lambda: None, lambda: b"a_metric 1\n")
    accept = server._server.get_request
    monkeypatch.setattr(server._server, "get_request", lambda: (accept()[0], (address, 1)))
    server.start()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=MINUTE)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        if is_here:
            assert (answer.status, answer.read()) == (200, b"a_metric 1\n")
        else:
            assert answer.status == 403
            assert b"--metrics-token-file" in answer.read()
    finally:
        connection.close()
        server.stop()
