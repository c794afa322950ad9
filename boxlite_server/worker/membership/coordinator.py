"""The calls that a worker makes to its coordinator, over REST."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ...errors import InvalidArgumentError, UpstreamUnavailableError

TIMEOUT = 10.0


def split_url(url: str) -> SplitResult:
    """The coordinator's address in its parts; raises `InvalidArgumentError` unless it is http or https."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    raise InvalidArgumentError(f"{url!r} is not a coordinator's address; give one like http://coordinator:8200")


def coordinator_address(parts: SplitResult) -> tuple[str, int]:
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def local_address(parts: SplitResult) -> str:
    """This host's address as seen on the way to the coordinator. Sends nothing; raises OSError."""
    host, port = coordinator_address(parts)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


class CoordinatorClient:
    """The two calls of the coordinator's API that a worker makes."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._parts = split_url(url)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def register(self, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        return self._post("/v1/admin/workers", body)

    def heartbeat(
        self, worker_id: str, body: Mapping[str, Any], timeout: float = TIMEOUT
    ) -> tuple[int, dict[str, Any]]:
        return self._post(f"/v1/admin/workers/{worker_id}/heartbeat", body, timeout)

    def _post(self, path: str, body: Mapping[str, Any], timeout: float = TIMEOUT) -> tuple[int, dict[str, Any]]:
        """Status and JSON answer; raises `UpstreamUnavailableError` when there is none."""
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(*coordinator_address(self._parts), timeout=timeout)
        try:
            with contextlib.closing(connection):
                base = self._parts.path.rstrip("/")
                connection.request("POST", base + path, json.dumps(body).encode(), self._headers)
                response = connection.getresponse()
                answer = json.loads(response.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise UpstreamUnavailableError(f"the coordinator does not answer: {exc!r}") from exc
        return response.status, answer if isinstance(answer, dict) else {}
