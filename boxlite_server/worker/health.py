"""Serves GET /healthz and /readyz for monitors of the worker process."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


def _server_class(host: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        daemon_threads = True

    if ":" in host:
        import socket

        Server.address_family = socket.AF_INET6
    return Server


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds that a client may be silent
    server_version = "boxlite-worker"

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
