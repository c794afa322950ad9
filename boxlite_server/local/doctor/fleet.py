"""The way to the coordinator and back: connection, certificate, clock, API key, and workers as it sees them."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ...formats import split_join_token
from ...tls.files import client_context
from .findings import Finding, ok, problem, skipped, warning

SECONDS = 10.0  # for a connection, and for an answer
CALL_SECONDS = 90.0  # for an answer that waits until the coordinator has called all workers
CLOCKS = 2.0  # seconds by which clocks of coordinators may differ
SOON = timedelta(days=14)  # in which keys and certificates have to be renewed
MANY_BYTES = 16 << 20  # in an answer

_OPERATOR = "worker:admin"


class Coordinator(NamedTuple):
    """Where it is, and what it is told. `url` is an address with http or https."""

    url: str
    api_key: str | None
    ca_cert: Path | None

    def get(self, path: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers with names in lower case, and JSON; None where the body is none. Raises OSError,
        http.client.HTTPException and InvalidArgumentError."""
        return self._ask("GET", path, None, SECONDS)

    def post(self, path: str, body: dict[str, Any], seconds: float) -> tuple[int, dict[str, str], Any]:
        """What `get` answers, to a request with a body in JSON; `seconds` for the answer."""
        return self._ask("POST", path, json.dumps(body), seconds)

    def _ask(self, method: str, path: str, body: str | None, seconds: float) -> tuple[int, dict[str, str], Any]:
        parts = urlsplit(self.url)
        key = split_join_token(self.api_key)[0]
        host = parts.hostname or ""
        if parts.scheme == "https":
            context = client_context(self.ca_cert) if self.ca_cert else ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port, timeout=seconds, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=seconds)
        with closing(connection):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            if body is not None:
                headers["Content-Type"] = "application/json"
            connection.request(method, parts.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            content = response.read(MANY_BYTES)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        return response.status, {name.lower(): value for name, value in response.getheaders()}, answer


def examine(coordinator: Coordinator) -> Iterator[Finding]:
    """Yield what there is to say of the way to the coordinator, of the key, and, for an operator's key, of the way from
    the coordinator to its workers."""
    try:
        began = time.time()
        status, headers, _ = coordinator.get("/v1/health")
        ended = time.time()
    except (OSError, http.client.HTTPException) as exc:
        yield _no_way(coordinator.url, exc)
        return
    if status != 200:
        yield problem("ports", f"{coordinator.url} answers with {status}: it is no coordinator", "check --coordinator")
        return
    yield ok("ports", f"the coordinator answers at {coordinator.url}")
    yield _clock(headers.get("date", ""), began, ended)
    status, _, principal = coordinator.get("/v1/me")
    if status != 200 or not isinstance(principal, dict):
        yield _refused(coordinator, status, principal)
        return
    yield _key(principal)
    if _OPERATOR in principal.get("scopes", ()):
        yield from _workers(coordinator)
    else:
        text = f"whether the coordinator reaches its workers is shown to keys with {_OPERATOR} alone"
        yield skipped("ports", text)


def _no_way(url: str, exc: Exception) -> Finding:
    if isinstance(exc, ssl.SSLCertVerificationError):
        remedy = (
            "give --ca-cert the authority's ca.crt; boxlite-server certs issue makes the coordinator a new certificate"
        )
        return problem("certificates", f"{url} cannot be trusted: {exc.verify_message}", remedy)
    remedy = "start the coordinator, open its port in the firewalls in between, or check --coordinator"
    return problem("ports", f"the coordinator at {url} cannot be reached: {exc}", remedy)


def _clock(date: str, began: float, ended: float) -> Finding:
    """`date` is in whole seconds, and was written between `began` and `ended`."""
    try:
        other = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return skipped("clock", "the coordinator does not tell the time")
    apart = max(began - other - 1, other - ended, 0.0)
    if apart > CLOCKS:
        text = f"the clocks of this host and of the coordinator differ by {apart:.0f} seconds"
        return problem("clock", text, "timedatectl set-ntp true, on both")
    return ok("clock", "the clocks of this host and of the coordinator agree")


def _refused(coordinator: Coordinator, status: int, answer: Any) -> Finding:
    reason = answer.get("error", {}).get("message", "") if isinstance(answer, dict) else ""
    if coordinator.api_key:
        remedy = (
            "boxlite-server keys list on the coordinator's host shows the keys; keys rotate NAME makes a new secret"
        )
        return problem("keys", f"the coordinator refuses the API key ({status}): {reason}", remedy)
    return problem(
        "keys", f"the coordinator wants an API key ({status}): {reason}", "--api-key-file, or BOXLITE_API_KEY"
    )


def _key(principal: dict[str, Any]) -> Finding:
    ends = principal.get("expires_at")
    if not ends:
        return ok("keys", "the coordinator accepts the API key")
    end = datetime.fromisoformat(str(ends))
    if end - datetime.now(UTC) < SOON:
        return warning(
            "keys", f"the API key ends on {end:%Y-%m-%d}", "boxlite-server keys create, on the coordinator's host"
        )
    return ok("keys", f"the coordinator accepts the API key, until {end:%Y-%m-%d}")


def _workers(coordinator: Coordinator) -> Iterator[Finding]:
    """Have the coordinator call each worker, which changes nothing. Heartbeats say nothing of the way back."""
    status, _, answer = coordinator.get("/v1/admin/workers")
    workers = answer.get("workers", []) if status == 200 and isinstance(answer, dict) else []
    if not workers:
        yield warning("ports", "no worker is registered", f"boxlite-server worker --coordinator {coordinator.url}")
        return
    try:
        lost = _not_called(coordinator)
    except (OSError, http.client.HTTPException) as exc:
        yield problem("ports", f"the coordinator does not say which workers it reaches: {exc}", "read its log")
        return
    for worker in lost:
        yield problem(
            "ports",
            f"the coordinator does not reach worker {worker.get('worker')}: {worker.get('reason')}",
            "start the worker, open its port to the coordinator, or start it with --advertise URL",
        )
    if not lost:
        yield ok("ports", f"the coordinator reaches its workers, {len(workers)} in number")


def _not_called(coordinator: Coordinator) -> list[dict[str, Any]]:
    """The workers that the coordinator cannot call now, each with the reason. Raises OSError and
    http.client.HTTPException."""
    status, _, answer = coordinator.post("/v1/admin/reconcile", {"dry_run": True}, CALL_SECONDS)
    if status != 200 or not isinstance(answer, dict):
        raise http.client.HTTPException(f"it answers with {status}")
    lost: list[dict[str, Any]] = answer.get("unreachable", [])
    return lost
