"""The worker's word to its coordinator: registration, then heartbeats for as long as the worker lives, and goodbye.

A beat says that the worker is there, and by a digest whether the coordinator knows what it holds; the boxes
themselves go with a beat only when they have changed, when they are asked for, and once a minute. While the engine
does not answer the beats say that instead: no boxes can be started here, and none of them may be taken for lost.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ... import __version__
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

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between attempts
DEFAULT_INTERVAL = 5.0
JITTER = 0.1  # of the heartbeat's interval, either way
GOODBYE_TIMEOUT = 3.0
LEAVE_PATIENCE = 6.0  # seconds that the last beat has to end
INVENTORY_PATIENCE = 5.0  # seconds that the engine has for one
FULL_INTERVAL = 60.0  # seconds between two beats with all boxes, whatever happens

_MAX_REASON = 1024  # characters

log = logging.getLogger(__name__)


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
    cpu_overcommit: float = 1.0  # cpus that boxes may be promised for each that there is
    clock: Callable[[], float] = time.monotonic
    started_at: float = field(default_factory=time.time)  # so that a word of a former life can be told from ours
    registered: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    fatal: BoxliteError | None = None
    _stopping: bool = False
    _wake: threading.Event = field(default_factory=threading.Event)
    _told: str | None = None  # the digest of the boxes that the coordinator took last
    _told_at: float = 0.0
    _is_asked: bool = False  # for the boxes

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
        """Make `run` return, and tell the coordinator that nobody can be reached here any more. Never takes long."""
        is_known = self.registered.is_set()
        self.stop()
        # A beat that came behind the goodbye would take it back.
        if is_known and self.ended.wait(LEAVE_PATIENCE):
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        try:
            status, answer = self.client.heartbeat(
                self.identity.id, {"epoch": self.epoch, "leaving": True}, GOODBYE_TIMEOUT
            )
            if status != 200:
                log.info("the coordinator took no goodbye (%d): %s", status, _error(answer)[0])
        except UpstreamUnavailableError as exc:
            log.info("no goodbye: %s", exc)

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
                held = self._take() if self.identity.cluster_id else None
                if held is None and self.identity.cluster_id:
                    raise EngineError("the container engine takes its time to tell the boxes")
                status, answer = self.client.register(self._introduction(held))
                if status == 200:
                    self._note_told(held)
                    return self._registered(answer)
                self._refused(status, answer)
            except (UpstreamUnavailableError, EngineError, OSError) as exc:
                # An OSError comes from a disk that has no room for what was learnt.
                log.warning("not registered yet, trying again: %s", exc)
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
            held, beat = self._beat()
            try:
                status, answer = self.client.heartbeat(self.identity.id, beat)
            except UpstreamUnavailableError as exc:
                log.warning("no heartbeat: %s", exc)
            else:
                if status in (403, 404, 409):
                    log.warning("the coordinator wants a new registration: %s", _error(answer)[0])
                    return
                if status == 200:
                    interval = _interval(answer)
                    self._is_asked = bool(answer.get("send_inventory"))
                    if "boxes" in beat:
                        self._note_told(held)
                    elif self._is_asked and held is not None:
                        continue  # it shall not wait for what it has asked for
                else:
                    log.error("heartbeat refused (%d): %s", status, _error(answer)[0])
            self._wake.wait(interval * self.rng.uniform(1 - JITTER, 1 + JITTER))

    def _beat(self) -> tuple[Inventory | None, dict[str, Any]]:
        """What is to be said now, and the inventory that it is made of."""
        beat: dict[str, Any] = {"epoch": self.epoch}
        try:
            held = self._take()
        except EngineError as exc:
            log.warning("the boxes cannot be told: %s", exc)
            return None, beat | {"engine_error": exc.message[:_MAX_REASON]}
        if held is None:
            return None, beat
        beat |= {"inventory": held.digest, "engine_life": held.engine_life}
        if self._is_asked or held.digest != self._told or self.clock() - self._told_at >= FULL_INTERVAL:
            beat["boxes"] = held.boxes
        return held, beat

    def _take(self) -> Inventory | None:
        return self._stocktaking.take(INVENTORY_PATIENCE)

    def _note_told(self, held: Inventory | None) -> None:
        self._told, self._told_at = held.digest if held else None, self.clock()

    def _introduction(self, held: Inventory | None) -> dict[str, Any]:
        capacity = self.runtime.capacity()
        return {
            "id": self.identity.id,
            "name": self.identity.name,
            "url": self.url,
            "secret": self.identity.secret,
            "epoch": self.epoch,
            "started_at": self.started_at,
            "labels": dict(self.labels),
            "capacity": {
                "cpus": capacity.cpus,
                "memory_mib": capacity.memory_mib,
                "max_boxes": self.max_boxes,
                "cpu_limit": capacity.cpus * self.cpu_overcommit,
            },
            "version": __version__,
            "engine_version": capacity.engine_version,
            "engine_life": held.engine_life if held else self.runtime.life(),
            "boxes": held.boxes if held else [],
        }

    def _pause(self, seconds: float) -> None:
        # Changes of boxes are no reason to knock again sooner.
        self._wake.clear()
        if not self._stopping:
            self._wake.wait(seconds)


def _interval(answer: Mapping[str, Any]) -> float:
    interval = answer.get("heartbeat_interval_seconds")
    return float(interval) if isinstance(interval, int | float) and interval > 0 else DEFAULT_INTERVAL


def _error(answer: Mapping[str, Any]) -> tuple[str, str]:
    """Message and type of an error answer."""
    error = answer.get("error")
    if not isinstance(error, dict):
        return "no reason given", ""
    return str(error.get("message", "no reason given")), str(error.get("type", ""))
