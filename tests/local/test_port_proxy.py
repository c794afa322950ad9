"""The program that publishes a port of a box: the engine's view of it, and its clients'."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.cluster import free_port

from boxlite_server.local import port_proxy

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="to enter a network namespace takes root")

PATIENCE = 60


@contextmanager
def publish(proto: str, host_port: int, box_port: int) -> Iterator[str]:
    """Run the program as an engine does; what it reports."""
    ours, theirs = os.pipe()
    arguments = ["-proto", proto, "-host-ip", "127.0.0.1", "-host-port", str(host_port)]
    arguments += ["-container-ip", "127.0.0.1", "-container-port", str(box_port), "-use-listen-fd"]
    command = [sys.executable, "-I", "-S", port_proxy.__file__, "/proc/self/ns/net", *arguments]
    process = subprocess.Popen(["sh", "-c", 'exec "$@" 3>&1 >&2', "sh", *command], stdout=theirs)
    os.close(theirs)
    with process, os.fdopen(ours) as pipe:
        try:
            yield pipe.read()
        finally:
            process.kill()


def test_a_connection_is_carried_both_ways_to_its_ends() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as box,
        publish("tcp", port := free_port(), box.getsockname()[1]) as said,
    ):
        assert said == "0\n"
        client = socket.create_connection(("127.0.0.1", port), PATIENCE)
        server, _ = box.accept()
        server.settimeout(PATIENCE)
        with client, server:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            assert server.makefile("rb").read() == b"question"
            server.sendall(b"answer")
            server.close()
            assert client.makefile("rb").read() == b"answer"


def test_datagrams_find_back_to_their_senders() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as box:
        box.bind(("127.0.0.1", 0))
        box.settimeout(PATIENCE)
        with publish("udp", port := free_port(), box.getsockname()[1]) as said:
            assert said == "0\n"
            clients = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
            for number, client in enumerate(clients):
                client.settimeout(PATIENCE)
                client.sendto(b"from %d" % number, ("127.0.0.1", port))
            for _ in clients:
                data, sender = box.recvfrom(100)
                box.sendto(data.replace(b"from", b"to"), sender)
            assert [client.recv(100) for client in clients] == [b"to 0", b"to 1"]
            for client in clients:
                client.close()


def test_a_port_that_is_taken_is_reported_in_the_engines_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with publish("tcp", port, 9) as said:
            assert said == f"1\nlisten tcp 127.0.0.1:{port}: bind: address already in use"
