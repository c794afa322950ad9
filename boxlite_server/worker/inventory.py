"""What the worker holds, as it tells its coordinator."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError
from .runtime import BoxRuntime, BoxState


@dataclass(frozen=True, slots=True)
class Inventory:
    """All boxes at one moment, under which life of the engine, and what tells one such state from another."""

    boxes: list[dict[str, Any]]
    engine_life: str
    digest: str


class Stocktaking:
    """Takes inventories, one at a time."""

    def __init__(self, runtime: BoxRuntime) -> None:
        self._runtime = runtime
        self._under_way: Future[Inventory] | None = None

    def take(self, patience: float) -> Inventory:
        """Raises `EngineError` when the engine fails, or has not answered within `patience` seconds."""
        if self._under_way is None:
            self._under_way = Future()
            # In its own thread: an engine that hangs must not keep the worker from saying so.
            threading.Thread(target=self._take, args=(self._under_way,), name="inventory", daemon=True).start()
        under_way = self._under_way
        try:
            inventory = under_way.result(patience)
        except FutureTimeoutError:
            if under_way.done():
                self._under_way = None
            raise EngineError(f"the container engine has not answered for {patience:.0f} s") from None
        except BaseException:
            self._under_way = None
            raise
        self._under_way = None
        return inventory

    def _take(self, taken: Future[Inventory]) -> None:
        try:
            taken.set_result(inventory(self._runtime))
        except BaseException as exc:
            taken.set_exception(exc)


def inventory(runtime: BoxRuntime) -> Inventory:
    """Raises `EngineError`, also when the engine was restarted meanwhile: its boxes would count for the wrong life."""
    life = runtime.life()
    boxes = sorted(map(_entry, runtime.list_boxes()), key=lambda entry: (entry["box_id"], entry["generation"]))
    if runtime.life() != life:
        raise EngineError("the container engine was restarted just now")
    text = json.dumps([life, boxes], separators=(",", ":"))
    return Inventory(boxes, life, hashlib.sha256(text.encode()).hexdigest()[:32])


def _entry(state: BoxState) -> dict[str, Any]:
    return {
        "box_id": state.box.box_id,
        "generation": state.box.generation,
        "status": str(state.status),
        "pid": state.pid,
        "exit_code": state.exit_code,
        "interrupted": state.interrupted,
    }
