"""The worker's client of the coordinator's REST API, and the coordinator's address."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ...errors import InvalidArgumentError, UpstreamUnavailableError

TIMEOUT = 10.0  # seconds for one call
MAX_ANSWER = 1024 * 1024  # bytes; some answers are read before it is known who gives them


class CoordinatorClient:
    """The calls that a worker makes. Each gives the HTTP status and the JSON answer, and raises
    `UpstreamUnavailableError` when there is no answer. `context` gives the settings of HTTPS for each call; None: the
    authorities that the host trusts."""

    def __init__(self, url: str, api_key: str | None, context: Callable[[], ssl.SSLContext] | None = None) -> None:
        self._parts = split_url(url)
        self._context = context
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def register(self, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        return self._post("/v1/admin/workers", body)

    def prove(self, worker_id: str, nonce: str) -> tuple[int, dict[str, Any]]:
        """Ask the coordinator to prove that it has the worker's secret. No API key goes with this call: whoever answers
        is not known yet."""
        return self._post("/v1/admin/proof", {"worker_id": worker_id, "nonce": nonce}, with_key=False)

    def authorities(self) -> tuple[int, dict[str, Any]]:
        """Ask for the authorities of the cluster. No API key goes with this call."""
        return self._ask("GET", "/v1/admin/authorities", None, with_key=False)

    def certify(self, worker_id: str, csr: str, signature: str) -> tuple[int, dict[str, Any]]:
        """Ask for a certificate of the worker."""
        return self._post(f"/v1/admin/workers/{worker_id}/certificate", {"csr": csr, "signature": signature})

    def heartbeat(
        self, worker_id: str, body: Mapping[str, Any], timeout: float = TIMEOUT
    ) -> tuple[int, dict[str, Any]]:
        return self._post(f"/v1/admin/workers/{worker_id}/heartbeat", body, timeout)

    def _post(
        self, path: str, body: Mapping[str, Any], timeout: float = TIMEOUT, *, with_key: bool = True
    ) -> tuple[int, dict[str, Any]]:
        return self._ask("POST", path, json.dumps(body).encode(), timeout, with_key=with_key)

    def _ask(
        self, method: str, path: str, body: bytes | None, timeout: float = TIMEOUT, *, with_key: bool = True
    ) -> tuple[int, dict[str, Any]]:
        headers = {key: value for key, value in self._headers.items() if with_key or key != "Authorization"}
        try:
            with contextlib.closing(self._connection(timeout)) as connection:
                base = self._parts.path.rstrip("/")
                connection.request(method, base + path, body, headers)
                response = connection.getresponse()
                answer = json.loads(response.read(MAX_ANSWER) or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise UpstreamUnavailableError(f"the coordinator does not answer: {exc!r}") from exc
        return response.status, answer if isinstance(answer, dict) else {}

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        host, port = host_and_port(self._parts)
        if self._parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout)
        context = self._context() if self._context else None
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)


def split_url(url: str) -> SplitResult:
    """Split the coordinator's URL. Raises `InvalidArgumentError` unless it is an http or https URL with a host."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    raise InvalidArgumentError(f"{url!r} is not a coordinator's address; give one like http://coordinator:8200")


def host_and_port(parts: SplitResult) -> tuple[str, int]:
    """The host and the port of the coordinator's URL."""
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def local_address(parts: SplitResult) -> str:
    """The address of this host on the route to the coordinator. Sends nothing. Raises OSError."""
    host, port = host_and_port(parts)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
