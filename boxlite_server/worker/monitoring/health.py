"""Serves GET /healthz, /readyz and /metrics for monitors of the worker process."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ...errors import BoxliteError
from ...metrics.access import is_holder
from ...metrics.registry import CONTENT_TYPE

log = logging.getLogger(__name__)


class HealthServer:
    """Answers on its own port, from a thread of its own. Raises `BoxliteError` when the port cannot be bound.

    /healthz answers 200 {"status":"ok"} while the process runs. /readyz answers 200 {"status":"ready"}, or
    503 {"status":"not_ready","reason":...} when `not_ready` gives a reason why the worker can do no work. /metrics
    answers with the text that `metrics` gives: to those who send `token` as a Bearer token; where there is no token, to
    clients on this host.
    """

    def __init__(
        self,
        host: str,
        port: int,
        not_ready: Callable[[], str | None],
        metrics: Callable[[], bytes] = bytes,
        token: str | None = None,
    ) -> None:
        class Handler(_Handler):
            reason = staticmethod(not_ready)
            text = staticmethod(metrics)
            expected = token

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


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


class _Handler(BaseHTTPRequestHandler):
    server_version = "boxlite-worker"
    sys_version = ""  # the version of Python is nobody's business

    expected: str | None

    @staticmethod
    def reason() -> str | None:
        raise NotImplementedError

    @staticmethod
    def text() -> bytes:
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
            case "/metrics":
                self._answer_metrics()
            case _:
                self._answer(404, {"status": "not_found"})

    do_HEAD = do_GET

    def _answer_metrics(self) -> None:
        if self.expected is not None:
            if not is_holder(self.headers.get("Authorization"), self.expected):
                self._answer(401, {"status": "refused", "reason": "this takes the token of --metrics-token-file"})
                return
        elif not _is_loopback(self.client_address[0]):
            reason = "only this host may read the metrics of a worker that has no --metrics-token-file"
            self._answer(403, {"status": "refused", "reason": reason})
            return
        self._send(200, CONTENT_TYPE, self.text())

    def _answer(self, status: int, body: dict[str, str]) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _send(self, status: int, content_type: str, data: bytes) -> None:
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)
