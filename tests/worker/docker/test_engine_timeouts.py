"""An engine that takes every call and then says nothing more."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from support.sites import in_thread

from boxlite_server.errors import BoxliteError, EngineError, ImageError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker import engine, files
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.docker.storage import bases
from boxlite_server.worker.runtime import BoxRef, BoxSpec, Owner

CONTAINER = {
    "Id": "c" * 64,
    "Name": "/boxlite-b-1",
    "Config": {
        "Labels": {"boxlite.cluster": "c", "boxlite.worker": "w", "boxlite.box": "b", "boxlite.generation": "1"},
        "Tty": False,
        "User": "",
        "Env": [],
        "WorkingDir": "",
        "Entrypoint": None,
        "Cmd": ["sh"],
    },
    "State": {"Running": True, "Paused": False, "Restarting": False, "Pid": 1, "Status": "running", "ExitCode": 0}
    | {"Error": "", "Dead": False, "StartedAt": "2026-01-01T00:00:00Z", "FinishedAt": "0001-01-01T00:00:00Z"},
    "HostConfig": {},
    "ExecIDs": None,
}


class SilentEngine(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    calls = 0
    ended: threading.Event


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[SilentEngine]:
    """An engine that describes itself and one container; its streams begin and bring nothing."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.client_address = ("", 0)
            super().handle_one_request()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            server.calls += 1
            if path == "/version":
                self.answer({"ApiVersion": "1.41", "MinAPIVersion": "1.12"})
            elif path.endswith("/boxlite-b-1/json"):
                self.answer(CONTAINER)
            elif path.endswith(("/events", "/logs", "/images/create")):
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                ended.wait()
            elif "/images/some" in path and self.command == "GET":
                self.answer({"message": "no such image"}, 404)
            else:
                ended.wait()

        do_POST = do_HEAD = do_PUT = do_DELETE = do_GET

        def answer(self, body: object, status: int = 200) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None: ...

    server = SilentEngine(str(tmp_path / "s"), Handler)
    server.ended = ended
    in_thread(server.serve_forever)
    yield server
    ended.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def runtime(silent: SilentEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerRuntime]:
    for module, name in (
        (engine, "CALL_TIMEOUT"),
        (engine, "STREAM_TIMEOUT"),
        (bases, "COPY_TIMEOUT"),
        (files, "UNPACK_TIMEOUT"),
    ):
        monkeypatch.setattr(module, name, 0.2)
    runtime = DockerRuntime(lambda: Owner("c", "w"), f"unix://{silent.server_address!s}")
    yield runtime
    runtime.close()


BOX = BoxRef("b", 1)
SPEC = BoxSpec("some:image")


def exported(runtime: DockerRuntime) -> None:
    with runtime.disks.export(BOX) as export:
        b"".join(export.tar)


VERBS: dict[str, Callable[[DockerRuntime], object]] = {
    "ping": lambda runtime: runtime.ping(),
    "life": lambda runtime: runtime.life(),
    "list": lambda runtime: runtime.list_boxes(),
    "create": lambda runtime: runtime.create(BoxRef("other", 1), SPEC),
    "stop": lambda runtime: runtime.stop(BOX, 0),
    "remove": lambda runtime: runtime._containers.delete(BOX, force=True),
    "spawn": lambda runtime: runtime.spawn(BOX, ExecSpec(("true",))),
    "readopt": lambda runtime: runtime.readopt(BOX, "exec"),
    "attach": lambda runtime: runtime.attach_main(BOX),
    "measure": lambda runtime: runtime.measure(BOX),
    "snapshot": lambda runtime: runtime.disks.snapshot(BOX, "s"),
    "export": exported,
    "pull": lambda runtime: list(runtime.images.pull("some:image")),
    "images": lambda runtime: runtime.images.list(),
    "volumes": lambda runtime: runtime.volumes.list(),
    "stat": lambda runtime: runtime.files(BOX).stat("/x"),
    "put": lambda runtime: runtime.files(BOX).put("/x", [b"data"]),
    "get": lambda runtime: runtime.files(BOX).get("/x"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_call_ends(runtime: DockerRuntime, verb: str) -> None:
    with pytest.raises(BoxliteError) as raised:
        VERBS[verb](runtime)
    assert isinstance(raised.value, EngineError | ImageError), raised.value


def test_a_log_that_is_not_followed_ends_and_one_that_is_lasts_until_it_is_closed(runtime: DockerRuntime) -> None:
    assert runtime.read_logs(BOX, None, follow=False).read() is None
    log = runtime.read_logs(BOX, None, follow=True)
    reader = in_thread(log.read)
    reader.join(0.6)
    assert reader.is_alive()
    log.close()
    reader.join(60)
    assert not reader.is_alive()


def test_events_are_asked_for_again_when_none_come(runtime: DockerRuntime, silent: SilentEngine) -> None:
    asked, stopping = threading.Semaphore(0), threading.Event()
    watcher = in_thread(lambda: runtime.watch(asked.release, stopping))
    for _ in range(2):
        assert asked.acquire(timeout=60)
    stopping.set()
    watcher.join(60)
    assert not watcher.is_alive()
