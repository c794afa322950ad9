"""Serves GET /healthz and /readyz for monitors of the worker process."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..errors import BoxliteError

log = logging.getLogger(__name__)


class HealthServer:
    """Answers on its own port, from a thread of its own. Raises `BoxliteError` when the port cannot be bound.

    /healthz answers 200 {"status":"ok"} while the process runs. /readyz answers 200 {"status":"ready"}, or
    503 {"status":"not_ready","reason":...} when `not_ready` gives a reason why the worker can do no work.
    """

    def __init__(self, host: str, port: int, not_ready: Callable[[], str | None]) -> None:
        class Handler(_Handler):
            reason = staticmethod(not_ready)

        try:
            self._server = _server_class(host)((host, port), Handler)
        except OSError as exc:
            raise BoxliteError(f"cannot serve health on {host or '*'}:{port}: {exc.strerror}") from exc
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


MAX_CONNECTIONS = 32  # at a time; further ones are closed
MAX_SECONDS = 10.0  # for a request and its answer


def _server_class(host: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        daemon_threads = True
        room = threading.BoundedSemaphore(MAX_CONNECTIONS)

        def process_request(self, request: Any, client_address: Any) -> None:
            if not self.room.acquire(blocking=False):
                self.shutdown_request(request)
                return
            super().process_request(request, client_address)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            # A client that sends byte by byte is never silent, so the whole connection is bounded.
            cut = threading.Timer(MAX_SECONDS, _cut, [request])
            cut.daemon = True
            cut.start()
            try:
                super().process_request_thread(request, client_address)
            finally:
                cut.cancel()
                self.room.release()

        def handle_error(self, request: Any, client_address: Any) -> None:
            log.debug("a client of the health port went away", exc_info=True)

    if ":" in host:
        Server.address_family = socket.AF_INET6
    return Server


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server_version = "boxlite-worker"
    sys_version = ""  # the version of Python is nobody's business

    @staticmethod
    def reason() -> str | None:
        raise NotImplementedError

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/healthz":
                self._answer(200, {"status": "ok"})
            case "/readyz":
                reason = self.reason()
                if reason is None:
                    self._answer(200, {"status": "ready"})
                else:
                    self._answer(503, {"status": "not_ready", "reason": reason})
            case _:
                self._answer(404, {"status": "not_found"})

    do_HEAD = do_GET

    def _answer(self, status: int, body: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)
