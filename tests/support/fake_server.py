"""A server that plays what a test wrote down, and records what the client asked."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

BOX: dict[str, Any] = {
    "box_id": "AbCdEf123456",
    "name": "web",
    "status": "running",
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-02T00:00:00Z",
    "pid": 4242,
    "image": "alpine:latest",
    "cpus": 2,
    "memory_mib": 512,
    "labels": {"team": "a"},
    "exit_code": None,
}
EXECUTION = "8f0c"


def error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "X", "code": code, "request_id": "req_1"}}


class Socket:
    """The server's end of a WebSocket; a write waits until the client reads, as a real command's would."""

    def __init__(self, connection: socket.socket, protocol: ServerProtocol) -> None:
        self._connection = connection
        self._protocol = protocol
        self._frames = self._read()

    def stdout(self, data: bytes) -> None:
        self.binary(b"\x01" + data)

    def stderr(self, data: bytes) -> None:
        self.binary(b"\x02" + data)

    def binary(self, data: bytes) -> None:
        self._protocol.send_binary(data)
        self._flush()

    def text(self, **message: object) -> None:
        self._protocol.send_text(json.dumps(message).encode())
        self._flush()

    def ping(self) -> None:
        self._protocol.send_ping(b"")
        self._flush()

    def exit(self, code: int) -> None:
        self.text(type="exit", exit_code=code)
        self._protocol.send_close(1000)
        self._flush()
        for _ in self._frames:  # the client's close frame
            pass

    def drop(self) -> None:
        """Drop the connection without a close frame."""
        self._connection.shutdown(socket.SHUT_RDWR)

    def receive(self) -> bytes | dict[str, Any]:
        """The next frame: stdin bytes, or a message. Raises StopIteration when the client has gone."""
        return next(self._frames)

    def stdin_until_eof(self) -> bytes:
        data = bytearray()
        while isinstance(frame := self.receive(), bytes):
            data += frame
        assert frame == {"type": "stdin_eof"}
        return bytes(data)

    def _read(self) -> Iterator[bytes | dict[str, Any]]:
        while True:
            data = self._connection.recv(65536)
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            self._flush()
            for frame in self._protocol.events_received():
                if frame.opcode is Opcode.BINARY:
                    yield bytes(frame.data)
                elif frame.opcode is Opcode.TEXT:
                    yield json.loads(bytes(frame.data))
            if not data or self._protocol.close_rcvd is not None:
                return

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._connection.sendall(data)


Script = Callable[[Socket], None]
EventScript = Callable[[Callable[[str, object], None]], None]  # gets a function that sends an event: name and data
Answer = tuple[int, object]


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class FakeServer:
    """`answers`: (method, path) to the answers given in turn, the last one again and again.

    `scripts`: path to what happens at each attach in turn: a function of the socket, or a refusal.
    """

    requests: list[Seen] = field(default_factory=list)
    answers: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    scripts: dict[str, list[Script | Answer]] = field(default_factory=dict)
    watched: dict[str, Callable[[Seen], None]] = field(default_factory=dict)
    failures: list[BaseException] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                fake.connections += 1

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, StopIteration):
                    self.close_connection = True
                except BaseException as failure:
                    fake.failures.append(failure)
                    raise

            def __getattr__(self, name: str) -> Callable[[], None]:
                if name.startswith("do_"):
                    return lambda: fake._handle(self)
                raise AttributeError(name)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def on(self, method: str, path: str, *answers: Answer) -> None:
        self.answers[method, path] = list(answers)

    def on_attach(self, path: str, *scripts: Script | Answer) -> None:
        self.scripts[path] = list(scripts)

    def on_signal(self, box: str, *answers: Answer) -> queue.Queue[int]:
        """The numbers of the signals that are sent to the execution in a box."""
        path, numbers = f"/v1/boxes/{box}/executions/{EXECUTION}/signal", queue.Queue[int]()
        self.on("POST", path, *(answers or [(204, None)]))
        self.watched[path] = lambda seen: numbers.put(seen.body["signal"])
        return numbers

    def on_exec(self, *scripts: Script | Answer, box: str = "web") -> None:
        self.on("POST", f"/v1/boxes/{box}/exec", (201, {"execution_id": EXECUTION}))
        self.on_attach(f"/v1/boxes/{box}/executions/{EXECUTION}/attach", *scripts)

    def on_events(self, script: EventScript, *attached: Script | Answer, box: str = "web") -> None:
        """What happens when a command is run in one request, and when the client then attaches to it."""
        self.on("POST", f"/v1/boxes/{box}/run", (200, script))
        self.on_attach(f"/v1/boxes/{box}/executions/{EXECUTION}/attach", *attached)

    def on_run(self, *scripts: Script | Answer) -> None:
        box = f"/v1/boxes/{BOX['box_id']}"
        self.on("POST", "/v1/boxes", (201, BOX))
        self.on("POST", f"{box}/start", (200, BOX))
        self.on("DELETE", f"{box}?force=true", (204, None))
        self.on_attach(f"{box}/attach", *scripts)

    @property
    def lines(self) -> list[str]:
        return [f"{seen.method} {seen.path}" for seen in self.requests]

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.requests.append(
            Seen(
                handler.command,
                handler.path,
                {key.lower(): value for key, value in handler.headers.items()},
                json.loads(body) if body else None,
            )
        )
        if handler.headers.get("Upgrade"):
            scripts = self.scripts.get(handler.path.partition("?")[0], [(404, error("not_found", "no such execution"))])
            script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
            if callable(script):
                self._play(handler, script)
            else:
                self._answer(handler, *script)
            return
        if watcher := self.watched.get(handler.path):
            watcher(self.requests[-1])
        answers = self.answers.get((handler.command, handler.path), [(404, error("not_found", "no such box"))])
        self._answer(handler, *(answers.pop(0) if len(answers) > 1 else answers[0]))

    def _answer(self, handler: BaseHTTPRequestHandler, status: int, document: object) -> None:
        if callable(document):
            self._stream(handler, document)
            return
        body = document if isinstance(document, bytes) else b"" if document is None else json.dumps(document).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _stream(self, handler: BaseHTTPRequestHandler, script: EventScript) -> None:
        handler.close_connection = True
        handler.send_response(200)
        for name, value in (("Content-Type", "text/event-stream"), ("X-Boxlite-Execution-Id", EXECUTION)):
            handler.send_header(name, value)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()

        def send(event: str, data: object) -> None:
            text = data if isinstance(data, str) else json.dumps(data)
            sent = f": keep-alive\n\nevent: {event}\nid: 1\ndata: {text}\n\n".encode()
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent))

        script(send)

    def _play(self, handler: BaseHTTPRequestHandler, script: Script) -> None:
        handler.close_connection = True
        protocol = ServerProtocol(max_size=None)
        head = [f"GET {handler.path} HTTP/1.1", *(f"{key}: {value}" for key, value in handler.headers.items())]
        protocol.receive_data("\r\n".join([*head, "", ""]).encode())
        (request,) = protocol.events_received()
        assert isinstance(request, Request)
        response = protocol.accept(request)
        response.headers["x-boxlite-execution-id"] = EXECUTION
        protocol.send_response(response)
        websocket = Socket(handler.connection, protocol)
        websocket.ping()
        script(websocket)
