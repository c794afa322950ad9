"""The worker's word to its coordinator: registration, then heartbeats, for as long as the worker lives."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import random
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from .. import __version__
from ..errors import AlreadyExistsError, BoxliteError, EngineError, InvalidArgumentError, UpstreamUnavailableError
from .identity import Identity
from .runtime import BoxRuntime, BoxState

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between attempts
DEFAULT_INTERVAL = 5.0
JITTER = 0.1  # of the heartbeat's interval, either way
TIMEOUT = 10.0

log = logging.getLogger(__name__)


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

    def heartbeat(self, worker_id: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        return self._post(f"/v1/admin/workers/{worker_id}/heartbeat", body)

    def _post(self, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON answer; raises `UpstreamUnavailableError` when there is none."""
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(*coordinator_address(self._parts), timeout=TIMEOUT)
        try:
            with contextlib.closing(connection):
                base = self._parts.path.rstrip("/")
                connection.request("POST", base + path, json.dumps(body).encode(), self._headers)
                response = connection.getresponse()
                answer = json.loads(response.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise UpstreamUnavailableError(f"the coordinator does not answer: {exc!r}") from exc
        return response.status, answer if isinstance(answer, dict) else {}


@dataclass
class Registration:
    """Keeps the worker registered. `run` is its thread's body; `fatal` is why it ended before `stop`."""

    client: CoordinatorClient
    identity: Identity
    runtime: BoxRuntime
    url: str
    epoch: str
    labels: Mapping[str, str]
    max_boxes: int | None
    rng: random.Random
    registered: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    fatal: BoxliteError | None = None
    _stopping: bool = False
    _wake: threading.Event = field(default_factory=threading.Event)

    def report_change(self) -> None:
        """Send a heartbeat at once."""
        self._wake.set()

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        try:
            while not self._stopping:
                interval = self._register()
                if interval is not None:
                    self._send_heartbeats(interval)
                self.registered.clear()
        except BoxliteError as exc:
            self.fatal = exc
        except Exception as exc:
            log.exception("registration ended")
            self.fatal = BoxliteError(f"registration ended by a fault: {exc!r}")
        finally:
            self.registered.clear()
            self.ended.set()

    def _register(self) -> float | None:
        """Try until the coordinator agrees; the heartbeat interval, or None when stopping."""
        ceiling = FIRST_PAUSE
        while not self._stopping:
            try:
                status, answer = self.client.register(self._introduction())
            except (UpstreamUnavailableError, EngineError) as exc:
                log.warning("not registered yet, trying again: %s", exc)
            else:
                if status == 200:
                    return self._registered(answer)
                self._refused(status, answer)
            # Full jitter, so that a hundred workers do not come back in step.
            self._pause(self.rng.uniform(0, ceiling))
            ceiling = min(ceiling * 2, LONGEST_PAUSE)
        return None

    def _registered(self, answer: Mapping[str, Any]) -> float:
        self.identity.join(str(answer["cluster_id"]))
        self.registered.set()
        log.info("registered as %s at cluster %s", self.identity.name, self.identity.cluster_id)
        return _interval(answer)

    def _refused(self, status: int, answer: Mapping[str, Any]) -> None:
        message, kind = _error(answer)
        if status == 409 and kind == AlreadyExistsError.type:
            if self.identity.name_given:
                raise AlreadyExistsError(
                    f"the coordinator knows another worker named {self.identity.name}; choose another --name"
                )
            taken = self.identity.name
            self.identity.rename(self.rng)
            log.info("the name %s is taken; trying %s", taken, self.identity.name)
        else:
            log.error("the coordinator refuses this worker (%d), trying again: %s", status, message)

    def _send_heartbeats(self, interval: float) -> None:
        """Until the coordinator wants a new registration, or stopping."""
        while not self._stopping:
            # What changed from here on may be missing in this beat, so it asks for another one.
            self._wake.clear()
            if self._stopping:
                return
            try:
                body = {"epoch": self.epoch, "boxes": self._inventory()}
                status, answer = self.client.heartbeat(self.identity.id, body)
            except (UpstreamUnavailableError, EngineError) as exc:
                # Without an inventory there is no beat: an empty one would declare all boxes lost.
                log.warning("no heartbeat: %s", exc)
            else:
                if status in (403, 404, 409):
                    log.warning("the coordinator wants a new registration: %s", _error(answer)[0])
                    return
                if status == 200:
                    interval = _interval(answer)
                else:
                    log.error("heartbeat refused (%d): %s", status, _error(answer)[0])
            self._wake.wait(interval * self.rng.uniform(1 - JITTER, 1 + JITTER))

    def _introduction(self) -> dict[str, Any]:
        capacity = self.runtime.capacity()
        return {
            "id": self.identity.id,
            "name": self.identity.name,
            "url": self.url,
            "secret": self.identity.secret,
            "epoch": self.epoch,
            "labels": dict(self.labels),
            "capacity": {
                "cpus": capacity.cpus,
                "memory_mib": capacity.memory_mib,
                "max_boxes": self.max_boxes,
            },
            "version": __version__,
            "engine_version": capacity.engine_version,
            "boxes": self._inventory() if self.identity.cluster_id else [],
        }

    def _inventory(self) -> list[dict[str, Any]]:
        return [_inventory_entry(state) for state in self.runtime.list_boxes()]

    def _pause(self, seconds: float) -> None:
        # Changes of boxes are no reason to knock again sooner.
        self._wake.clear()
        if not self._stopping:
            self._wake.wait(seconds)


def _inventory_entry(state: BoxState) -> dict[str, Any]:
    return {
        "box_id": state.box.box_id,
        "generation": state.box.generation,
        "status": str(state.status),
        "pid": state.pid,
        "exit_code": state.exit_code,
    }


def _interval(answer: Mapping[str, Any]) -> float:
    interval = answer.get("heartbeat_interval_seconds")
    return float(interval) if isinstance(interval, int | float) and interval > 0 else DEFAULT_INTERVAL


def _error(answer: Mapping[str, Any]) -> tuple[str, str]:
    """Message and type of an error answer."""
    error = answer.get("error")
    if not isinstance(error, dict):
        return "no reason given", ""
    return str(error.get("message", "no reason given")), str(error.get("type", ""))
