"""Callers and connections without the worker's secret: they hold up nobody who has it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support.calls import SECRET, Client, service_of
from support.sites import Site

from boxlite_server import rpc
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.worker.service import servicer
from boxlite_server.worker.service.servicer import make_server

SERVICE = "boxlite.worker.v1.WorkerService"
CALLS = 4


@contextlib.contextmanager
def worker(site: Site, spool: Path) -> Iterator[int]:
    """Serve a worker, and yield its port."""
    server = make_server(service_of(site, spool), SECRET)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@contextlib.contextmanager
def client_of(port: int) -> Iterator[Client]:
    client = Client(f"127.0.0.1:{port}")
    try:
        yield client
    finally:
        client.channel.close()


@pytest.mark.parametrize("metadata", [None, rpc.with_secret("another"), rpc.with_secret("")])
def test_half_open_calls_without_the_secret_take_no_place(
    fake_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: tuple[tuple[str, str], ...] | None
) -> None:
    monkeypatch.setattr(servicer, "MAX_CALLS", CALLS)
    released = threading.Event()

    def nothing() -> Iterator[bytes]:
        """The messages of a caller who sends none and never ends."""
        released.wait(60)
        yield from ()

    with worker(fake_site, tmp_path) as port, client_of(port) as stranger, client_of(port) as client:
        half_open = [
            stranger.channel.stream_stream(f"/{SERVICE}/{method}")(nothing(), metadata=metadata, timeout=60)
            for method in ("ListBoxes", "ReadOutput", "PutFiles", "RunCommand")
            for _ in range(2 * CALLS)
        ]
        try:
            for call in half_open:
                with pytest.raises(grpc.RpcError) as refused:
                    next(call)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert client.ListBoxes(pb.Empty()) is not None
        finally:
            released.set()
            for call in half_open:
                call.cancel()


def test_calls_without_the_secret_are_in_the_log_and_do_not_fill_it(
    fake_site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "TOLD_AT_ONCE", 3)
    monkeypatch.setattr(rpc, "TOLD_SECONDS", 3600.0)
    with worker(fake_site, tmp_path) as port, client_of(port) as stranger:
        for _ in range(10):
            with pytest.raises(grpc.RpcError):
                stranger.stub.ListBoxes(pb.Empty(), metadata=rpc.with_secret("guess"))
    lines = [record.getMessage() for record in caplog.records if "without this worker's secret" in record.message]
    assert len(lines) == 3
    assert all("127.0.0.1:" in line and "guess" not in line for line in lines)


def test_later_lines_count_the_calls_that_had_none(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "TOLD_AT_ONCE", 1)
    now = [0.0]
    gate = rpc.SecretInterceptor("secret", lambda: now[0])
    for _ in range(5):
        gate.refused("ipv4:10.0.0.9:1")
    now[0] += rpc.TOLD_SECONDS
    gate.refused("ipv4:10.0.0.9:1")
    assert [record.getMessage().partition("it came from ")[2] for record in caplog.records] == [
        "ipv4:10.0.0.9:1",
        "ipv4:10.0.0.9:1, after 4 that have no line",
    ]


def is_closed(connection: socket.socket) -> bool:
    """Whether the worker closes the connection long before its pings would."""
    connection.settimeout(25)
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def silent(port: int, opened: contextlib.ExitStack) -> list[socket.socket]:
    """Forty connections that send nothing."""
    return [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(40)]


def test_connections_are_limited(fake_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(servicer, "HANDSHAKE_SECONDS", 600.0)
    with worker(fake_site, tmp_path) as port, contextlib.ExitStack() as opened:
        served = 0  # the worker speaks first to those that it serves
        waiting = opened.enter_context(selectors.DefaultSelector())
        for connection in silent(port, opened):
            waiting.register(connection, selectors.EVENT_READ)
        while waiting.get_map():
            ready = waiting.select(60)
            assert ready
            for key, _ in ready:
                waiting.unregister(key.fileobj)
                served += answers(key.fileobj)
        assert served == 8


def answers(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(4096))
    except ConnectionError:
        return False


def test_connections_that_say_nothing_make_room(
    fake_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(servicer, "HANDSHAKE_SECONDS", 1.0)
    with worker(fake_site, tmp_path) as port, contextlib.ExitStack() as opened:
        silent(port, opened)
        with client_of(port) as client:
            assert client.stub.ListBoxes(pb.Empty(), metadata=rpc.with_secret(SECRET), timeout=30, wait_for_ready=True)


def test_a_connection_without_calls_ends(fake_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer, "IDLE_SECONDS", 0.5)
    with worker(fake_site, tmp_path) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")  # an empty SETTINGS frame
        assert is_closed(connection)


def test_a_coordinator_goes_on_over_connections_that_ended(
    fake_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "CONNECTION_SECONDS", 0.2)
    monkeypatch.setattr(servicer, "IDLE_SECONDS", 0.2)
    with worker(fake_site, tmp_path) as port, client_of(port) as client:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            client.ListBoxes(pb.Empty())
