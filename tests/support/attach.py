"""A client of the WebSocket paths that shows each frame, and a TCP proxy that loses connections."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from support.boxes import execute
from support.cluster import Cluster

WAIT = 60.0  # seconds; far more than anything here takes


class _Connection(ClientConnection):
    """Keeps what came in one piece with pings that it cannot answer any more, some of which it may have answered: the
    library would drop all of that. That the connection is lost, the next read tells."""

    def send_data(self) -> None:
        with contextlib.suppress(OSError):
            super().send_data()


@dataclass
class Attached:
    """One socket, and what has come over it. `channels`: whether output frames name their stream."""

    connection: ClientConnection
    channels: bool = True
    stdout: bytes = b""
    stderr: bytes = b""
    complaints: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def execution_id(self) -> str:
        assert self.connection.response is not None
        return str(self.connection.response.headers["x-boxlite-execution-id"])

    @property
    def received(self) -> int:
        return len(self.stdout) + len(self.stderr) + sum(c.get("dropped_bytes", 0) for c in self.complaints)

    def send(self, data: bytes) -> None:
        self.connection.send(data)

    def say(self, **frame: object) -> None:
        self.connection.send(json.dumps(frame))

    def step(self) -> None:
        """Take one frame; raises ConnectionClosed at the end of the socket, TimeoutError when none comes."""
        frame = self.connection.recv(timeout=WAIT)
        if isinstance(frame, bytes):
            if not self.channels:
                self.stdout += frame
            elif frame[0] == 1:
                self.stdout += frame[1:]
            else:
                assert frame[0] == 2
                self.stderr += frame[1:]
            return
        message = json.loads(frame)
        if message["type"] == "exit":
            self.exit_code = message["exit_code"]
        else:
            assert message["type"] == "error", message
            self.complaints.append(message)

    def until(self, text: bytes) -> None:
        """Read until stdout holds `text`."""
        while text not in self.stdout:
            self.step()

    def settle(self) -> None:
        """Wait until the server knows that we have what we have: its ping came before our first one's answer,
        and our answer to that arrives before our second one."""
        for _ in range(2):
            assert self.connection.ping().wait(WAIT)

    def to_the_end(self) -> int:
        """Read until the exit frame and the orderly close behind it. Returns the exit code."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.step()
        assert self.exit_code is not None, "the socket died without an exit frame"
        return self.exit_code

    def to_the_cut(self) -> None:
        """Read until the connection is lost."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.step()


@contextlib.contextmanager
def attached(
    cluster: Cluster, path: str, *, port: int | None = None, channels: bool = True, **options: Any
) -> Iterator[Attached]:
    """Attach at a path below `/v1/boxes/`. Raises InvalidStatus when it is refused."""
    headers = {"Authorization": f"Bearer {cluster.api_key}"} if cluster.api_key else {}
    with connect(
        f"{'wss' if cluster.certs else 'ws'}://127.0.0.1:{port or cluster.port}/v1/boxes/{path}",
        ssl=cluster.tls,
        additional_headers=headers,
        compression=None,
        max_size=None,
        proxy=None,
        create_connection=_Connection,
        ping_interval=None,  # or this client, too, would close a socket that the test does not read
        **options,
    ) as connection:
        yield Attached(connection, channels)


def refusal(cluster: Cluster, path: str) -> tuple[int, dict[str, Any]]:
    """Status and error of an attach that must be refused."""
    try:
        with attached(cluster, path):
            raise AssertionError(f"{path} was not refused")
    except InvalidStatus as refused:
        return refused.response.status_code, json.loads(refused.response.body or b"")["error"]


def free(cluster: Cluster, path: str) -> bool:
    """Whether nobody is attached; asks without attaching."""
    try:
        with attached(cluster, f"{path}?received={2**62}"):
            return True
    except Exception as refused:
        assert "409" in str(refused), refused
        return False


def run(cluster: Cluster, box: str, script: str) -> str:
    with attached(cluster, f"{box}/executions/{execute(cluster, box, script)}/attach") as client:
        client.to_the_end()
    return client.stdout.decode()


class Proxy:
    """Stands between clients and a port. `cut` loses all connections; `limit`: the bytes from the server
    after which a connection is lost, whatever is under way; `tripwire`: what the server must say for all of
    them to be lost, once and with what it says; `resets`: a cut also ends a client that is sending."""

    def __init__(
        self, target: int, limit: int | None = None, tripwire: bytes | None = None, *, resets: bool = False
    ) -> None:
        self._target = target
        self._limit = limit
        self._tripwire = tripwire
        self._resets = resets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def cut(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
                if self._resets:
                    end.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for end in self._open:
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                for source, sink, limit in ((client, server, None), (server, client, self._limit)):
                    threading.Thread(target=self._copy, args=(source, sink, limit), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._tripwire is not None and self._tripwire in data:
                    self._tripwire = None
                    self.cut()
                    return
                if limit is not None:
                    data, limit = data[:limit], limit - len(data)
                sink.sendall(data)
                if limit is not None and limit <= 0:
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
