"""A coordinator that is asked to end, whatever its clients are in the middle of."""

from __future__ import annotations

import base64
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from support.boxes import create, execute, start
from support.cluster import STOP_SECONDS, Cluster, wait_until

CLOSE = bytes([0x88, 0x82, 0, 0, 0, 0]) + (1000).to_bytes(2, "big")  # a frame with an empty mask


@pytest.fixture(scope="module")
def site(new_shared_cluster: Callable[[], Cluster], test_image: str) -> Cluster:
    cluster = new_shared_cluster()
    cluster.start_coordinator()
    cluster.start_worker()
    return cluster


@contextmanager
def attached(site: Cluster, path: str) -> Iterator[socket.socket]:
    """A client that takes nothing by itself."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(60)
        client.connect(("127.0.0.1", site.port))
        key = base64.b64encode(os.urandom(16)).decode()
        client.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        assert b" 101 " in client.recv(64)
        yield client


def listens(site: Cluster) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", site.port)) == 0


def is_full(client: socket.socket) -> bool:
    """Whether no more comes, since the client takes nothing."""
    before = len(client.recv(1 << 20, socket.MSG_PEEK))
    time.sleep(0.5)
    return before == len(client.recv(1 << 20, socket.MSG_PEEK))


def test_a_client_that_leaves_and_takes_nothing_more_does_not_make_the_end_a_failure(site: Cluster) -> None:
    box = create(site)
    start(site, box)
    execution = execute(site, box, "yes")
    coordinator = site.coordinator
    assert coordinator is not None and coordinator._process is not None
    with attached(site, f"/v1/boxes/{box}/executions/{execution}/attach") as client:
        wait_until(lambda: is_full(client), "output to wait for the client")
        client.sendall(CLOSE)
        os.kill(coordinator.pid, signal.SIGTERM)
        wait_until(lambda: not listens(site), "the coordinator to take no more connections")
    assert coordinator._process.wait(STOP_SECONDS) == 0, coordinator.tail()
    coordinator.start()
    assert site.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204
