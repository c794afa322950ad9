"""The worker's reports to its coordinator: registration, then heartbeats while the worker lives, and a goodbye.

A heartbeat shows that the worker is alive, and carries a digest of its boxes. The boxes themselves go along only
when they have changed, when the coordinator asks for them, and once a minute. While the engine does not answer,
the heartbeats report that instead: the worker can start no boxes, and none of its boxes may be taken for lost.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ... import __version__, ids, signatures
from ...errors import (
    AlreadyExistsError,
    BoxliteError,
    EngineError,
    UpstreamUnavailableError,
)
from ..runtime import BoxRuntime
from .coordinator import CoordinatorClient
from .identity import Identity
from .inventory import Inventory, Stocktaking

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between attempts to register
DEFAULT_INTERVAL = 5.0  # seconds between heartbeats
JITTER = 0.1  # fraction by which the interval varies either way
GOODBYE_TIMEOUT = 3.0  # seconds
LEAVE_PATIENCE = 6.0  # seconds to wait for the last heartbeat before the goodbye
INVENTORY_PATIENCE = 5.0  # seconds for one inventory
FULL_INTERVAL = 60.0  # seconds after which a heartbeat carries all boxes even if nothing has changed

_MAX_REASON = 1024  # characters

log = logging.getLogger(__name__)


@dataclass
class Registration:
    """Keeps the worker registered. `run` is the body of a thread; `fatal` is the error that ended it before `stop`."""

    client: CoordinatorClient
    identity: Identity
    runtime: BoxRuntime
    url: str
    epoch: str
    labels: Mapping[str, str]
    max_boxes: int | None
    rng: random.Random
    reserve_memory_mib: int | None = None  # of the machine, for others than boxes; None: `default_reserve` of it
    cpu_overcommit: float = 1.0  # cpus that boxes may reserve for each cpu of the host
    warm_images: Mapping[str, int] = field(default_factory=dict)  # how many warm boxes to have, by image
    network: Callable[[], str] = lambda: "unfiltered"  # what becomes of the network of boxes, for people
    rejoin: bool = False  # register with whatever coordinator answers, also if it does not know this worker
    clock: Callable[[], float] = time.monotonic
    started_at: float = field(default_factory=time.time)  # Unix time; orders the epochs of this worker
    registered: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    fatal: BoxliteError | None = None
    _stopping: bool = False
    _heartbeats: int = 0  # that were sent
    _wake: threading.Event = field(default_factory=threading.Event)
    _sent: str | None = None  # the digest of the boxes that the coordinator has accepted last
    _sent_at: float = 0.0
    _is_asked: bool = False  # the coordinator has asked for the boxes

    def __post_init__(self) -> None:
        self._stocktaking = Stocktaking(self.runtime)

    def report_change(self) -> None:
        """Send a heartbeat at once."""
        self._wake.set()

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stopping = True
        self._wake.set()

    def leave(self) -> None:
        """Make `run` return, and tell the coordinator that the worker is going.

        Takes about `LEAVE_PATIENCE` + `GOODBYE_TIMEOUT` at most.
        """
        is_known = self.registered.is_set()
        self.stop()
        # A heartbeat that arrived after the goodbye would revoke it.
        if is_known and self.ended.wait(LEAVE_PATIENCE):
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        try:
            goodbye = self._signed({"epoch": self.epoch, "leaving": True})
            status, answer = self.client.heartbeat(self.identity.id, goodbye, GOODBYE_TIMEOUT)
            if status != 200:
                log.info("the coordinator refused the goodbye (%d): %s", status, _error(answer)[0])
        except UpstreamUnavailableError as exc:
            log.info("the goodbye failed: %s", exc)

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
        """Try until the coordinator accepts the worker. Gives the heartbeat interval (seconds), or None when
        stopping."""
        ceiling = FIRST_PAUSE
        while not self._stopping:
            try:
                self._check_coordinator()
                held = self._take() if self.identity.cluster_id else None
                if held is None and self.identity.cluster_id:
                    raise EngineError("the container engine has not listed the boxes in time")
                status, answer = self.client.register(self._introduction(held))
                if status == 200:
                    self._note_sent(held)
                    return self._accepted(answer)
                self._refused(status, answer)
            except (UpstreamUnavailableError, EngineError, OSError) as exc:
                # An OSError means that the identity could not be written to a full disk.
                log.warning("not registered yet, trying again: %s", exc)
            # Full jitter: a hundred workers must not come back at the same time.
            self._pause(self.rng.uniform(0, ceiling))
            ceiling = min(ceiling * 2, LONGEST_PAUSE)
        return None

    def _check_coordinator(self) -> None:
        """Have the coordinator prove that it has this worker's secret, before the worker tells it anything and serves
        it. Raises `UpstreamUnavailableError`. Before the first registration there is nothing to prove."""
        if self.identity.cluster_id is None or self.rejoin:
            return
        nonce = ids.secret()
        status, answer = self.client.prove(self.identity.id, nonce)
        expected = signatures.of_coordinator(self.identity.secret, self.identity.id, nonce)
        if status in (200, 401, 403, 404, 405) and not signatures.is_same(answer.get("proof"), expected):
            raise UpstreamUnavailableError(
                f"the server at the coordinator's address does not prove that it belongs to cluster "
                f"{self.identity.cluster_id} ({status}); if it is meant to, start this worker with --rejoin once"
            )
        if status != 200:
            raise UpstreamUnavailableError(f"the coordinator does not answer ({status}): {_error(answer)[0]}")

    def _accepted(self, answer: Mapping[str, Any]) -> float:
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
        """Send heartbeats until the coordinator wants a new registration, or until stopping."""
        while not self._stopping:
            # Cleared first: a change that this heartbeat misses sets it again, and so causes another heartbeat.
            self._wake.clear()
            if self._stopping:
                return
            held, beat = self._beat()
            try:
                status, answer = self.client.heartbeat(self.identity.id, self._signed(beat))
            except UpstreamUnavailableError as exc:
                log.warning("the heartbeat failed: %s", exc)
            else:
                if status in (403, 404, 409):
                    log.warning("the coordinator wants a new registration: %s", _error(answer)[0])
                    return
                if status == 200:
                    interval = _interval(answer)
                    self._is_asked = bool(answer.get("send_inventory"))
                    if "boxes" in beat:
                        self._note_sent(held)
                    elif self._is_asked and held is not None:
                        continue  # send the boxes that the coordinator asks for at once
                else:
                    log.error("heartbeat refused (%d): %s", status, _error(answer)[0])
            self._wake.wait(interval * self.rng.uniform(1 - JITTER, 1 + JITTER))

    def _beat(self) -> tuple[Inventory | None, dict[str, Any]]:
        """The inventory, if there is one, and the body of a heartbeat made of it."""
        beat: dict[str, Any] = {"epoch": self.epoch}
        try:
            held = self._take()
        except EngineError as exc:
            log.warning("cannot list the boxes: %s", exc)
            return None, beat | {"engine_error": exc.message[:_MAX_REASON]}
        if held is None:
            return None, beat
        beat |= {"inventory": held.digest, "engine_life": held.engine_life}
        if self._is_asked or held.digest != self._sent or self.clock() - self._sent_at >= FULL_INTERVAL:
            beat["boxes"] = held.boxes
        return held, beat

    def _signed(self, beat: dict[str, Any]) -> dict[str, Any]:
        self._heartbeats += 1
        beat = {**beat, "number": self._heartbeats}
        return beat | {signatures.SIGNATURE: signatures.of_heartbeat(self.identity.secret, self.identity.id, beat)}

    def _take(self) -> Inventory | None:
        return self._stocktaking.take(INVENTORY_PATIENCE)

    def _note_sent(self, held: Inventory | None) -> None:
        self._sent, self._sent_at = held.digest if held else None, self.clock()

    def _introduction(self, held: Inventory | None) -> dict[str, Any]:
        capacity = self.runtime.capacity()
        return {
            "id": self.identity.id,
            "name": self.identity.name,
            "url": self.url,
            "secret": self.identity.secret,
            "epoch": self.epoch,
            "started_at": self.started_at,
            "heartbeats": self._heartbeats,
            "labels": dict(self.labels),
            "capacity": {
                "cpus": capacity.cpus,
                "memory_mib": max(capacity.memory_mib - self._reserve(capacity.memory_mib), 0),
                "max_boxes": self.max_boxes,
                "cpu_limit": capacity.cpus * self.cpu_overcommit,
            },
            "disk_limit": str(capacity.disk_limit),
            "warm_images": dict(self.warm_images),
            "network": self.network()[:_MAX_REASON],
            "version": __version__,
            "engine_version": capacity.engine_version,
            "engine_life": held.engine_life if held else self.runtime.life(),
            "boxes": held.boxes if held else [],
        }

    def _reserve(self, memory_mib: int) -> int:
        return default_reserve(memory_mib) if self.reserve_memory_mib is None else self.reserve_memory_mib

    def _pause(self, seconds: float) -> None:
        # An earlier change of boxes must not shorten the pause.
        self._wake.clear()
        if not self._stopping:
            self._wake.wait(seconds)


def default_reserve(memory_mib: int) -> int:
    """The memory (MiB) of a machine that is left to its system, the engine and the worker: a tenth, between 256 MiB and
    8 GiB, and never more than half."""
    return min(max(memory_mib // 10, 256), 8192, memory_mib // 2)


def _interval(answer: Mapping[str, Any]) -> float:
    interval = answer.get("heartbeat_interval_seconds")
    return float(interval) if isinstance(interval, int | float) and interval > 0 else DEFAULT_INTERVAL


def _error(answer: Mapping[str, Any]) -> tuple[str, str]:
    """The message and the type of an error answer."""
    error = answer.get("error")
    if not isinstance(error, dict):
        return "no reason given", ""
    return str(error.get("message", "no reason given")), str(error.get("type", ""))
