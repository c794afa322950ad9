"""The two sides: this server, as a client with kept connections asks it, and the docker SDK."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import docker
from docker.models.containers import Container
from support.cluster import Cluster

from boxlite_server.local import machine

IMAGE = "boxlite-bench:latest"
MEMORY_MIB = 128
KEPT_SECONDS = 2.0  # for which a connection without requests is kept

_OPCODES = TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class RefusedError(Exception):
    """The server answered with something else than success."""

    def __init__(self, status: int, answer: bytes) -> None:
        super().__init__(f"{status}: {answer.decode(errors='replace')}")
        self.status = status


class Server:
    """This server's REST API. Each thread has a connection of its own, which is kept."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._own = threading.local()

    def request(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> bytes:
        """The body of the answer. `body`: bytes, an iterator of bytes, or what becomes JSON. Raises `RefusedError`."""
        sent = body if body is None or isinstance(body, bytes | Iterator) else json.dumps(body).encode()
        connection = self._connection()
        connection.request(method, path, sent, {"Content-Type": kind} if sent is not None else {})
        response = connection.getresponse()
        answer: bytes = response.read()
        self._own.used = time.monotonic()
        if response.status >= 300:
            raise RefusedError(response.status, answer)
        return answer

    def _connection(self) -> http.client.HTTPConnection:
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection("127.0.0.1", self.cluster.port, timeout=300)
        if time.monotonic() - getattr(self._own, "used", 0) > KEPT_SECONDS:
            self._own.connection.close()  # the server may just be about to; the next request connects again
        return self._own.connection

    def has(self, method: str, path: str, body: Any = None) -> bool:
        """Whether the server knows this operation."""
        try:
            self.request(method, path, body)
        except RefusedError as exc:
            if exc.status in (404, 405, 501):
                return False
            raise
        return True

    def create(self, image: str = IMAGE) -> str:
        box = json.loads(self.request("POST", "/v1/boxes", {"image": image, "memory_mib": MEMORY_MIB}))
        return str(box["box_id"])

    def start(self, box: str) -> None:
        self.request("POST", f"/v1/boxes/{box}/start")

    def remove(self, box: str) -> None:
        self.request("DELETE", f"/v1/boxes/{box}?force=true")

    def boxes(self) -> list[str]:
        """The ids of all boxes, up to 1000."""
        return [box["box_id"] for box in json.loads(self.request("GET", "/v1/boxes?pageSize=1000"))["boxes"]]

    def execute(self, box: str, command: str, *args: str) -> int:
        """Run a command, attached to its end; how many bytes it wrote. It must succeed."""
        answer = self.request("POST", f"/v1/boxes/{box}/exec", {"command": command, "args": args})
        return attached(self.cluster.port, box, json.loads(answer)["execution_id"])

    def upload(self, box: str, path: str, archive: bytes) -> None:
        self.request("PUT", files(box, path), archive, "application/x-tar")

    def download(self, box: str, path: str) -> int:
        """Read an archive and discard it; its bytes."""
        connection = self._connection()
        connection.request("GET", files(box, path))
        response, size = connection.getresponse(), 0
        while piece := response.read1(1 << 20):
            size += len(piece)
        response.read()  # which takes note of the end
        self._own.used = time.monotonic()
        if response.status != 200:
            raise RefusedError(response.status, b"no archive")
        return size

    def pids(self) -> list[int]:
        """The processes of the server: the coordinator and the worker."""
        assert self.cluster.coordinator is not None
        return [self.cluster.coordinator.pid, self.cluster.workers[0].pid]


class Sdk:
    """The docker SDK on the same engine. Containers are made with the options that boxes have."""

    def __init__(self, docker_host: str) -> None:
        self.client = docker.DockerClient(base_url=docker_host, timeout=300, max_pool_size=128)
        # Where boxes have a network of their own, these have one too: the engine starts a server of names for each.
        self._network = "bridge" if machine.cannot_filter() else self.client.networks.create("bench").name

    def create(self) -> Container:
        return self.client.containers.create(
            IMAGE,
            stdin_open=True,
            init=True,
            mem_limit=MEMORY_MIB << 20,
            memswap_limit=MEMORY_MIB << 20,
            shm_size=(MEMORY_MIB << 20) // 2,
            nano_cpus=1_000_000_000,
            pids_limit=4096,
            network=self._network,
            log_config={"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}},
            healthcheck={"Test": ["NONE"]},
            labels={"bench": "1"},
        )

    def start(self) -> Container:
        """A new container that runs."""
        container = self.create()
        container.start()
        return container


def removal(container: Container) -> Callable[[], None]:
    """What removes a container."""
    return lambda: container.remove(force=True)


def files(box: str, path: str) -> str:
    return f"/v1/boxes/{box}/files?path={quote(path, safe='')}"


def attached(port: int, box: str, execution: str) -> int:
    """Read the output of an execution over its WebSocket up to the exit frame, and discard it; its bytes.

    It speaks the protocol itself: a library for all of it costs more than the server.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = [
            f"GET /v1/boxes/{box}/executions/{execution}/attach HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        ]
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        stream = connection.makefile("rb", buffering=1 << 18)
        if not (status := stream.readline()).startswith(b"HTTP/1.1 101"):
            raise AssertionError(f"no upgrade: {status!r}")
        while stream.readline() != b"\r\n":
            pass
        received = 0
        while True:
            opcode, length = _head(stream)
            data = stream.read(length)
            if opcode == BINARY:
                received += length - 1
            elif opcode == PING:  # acknowledges what came before it
                connection.sendall(bytes([0x80 | PONG, 0x80 | length, 0, 0, 0, 0]) + data)
            elif opcode == TEXT and (frame := json.loads(data))["type"] == "exit":
                assert frame["exit_code"] == 0, frame
                return received
            else:
                raise AssertionError(f"unexpected: {opcode} {data!r}")


def _head(stream: Any) -> tuple[int, int]:
    """The opcode and the length of the next frame, which must be a whole message without a mask."""
    first, second = stream.read(2)
    assert first & 0xF0 == 0x80, "a fragment"
    size = {126: 2, 127: 8}.get(second)
    return first & 0x0F, second if size is None else int.from_bytes(stream.read(size), "big")
