"""The inventory of a worker's boxes, as it is reported to the coordinator."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ...errors import EngineError
from ..runtime import BoxRuntime, BoxState

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Inventory:
    """All boxes at one moment, the life of the engine that they were seen in, and a digest of both."""

    boxes: list[dict[str, Any]]
    engine_life: str
    digest: str


class Stocktaking:
    """Takes inventories, one at a time."""

    def __init__(self, runtime: BoxRuntime) -> None:
        self._inventory = _Question("inventory", lambda: inventory(runtime))
        self._life = _Question("engine", lambda: runtime.life())  # looked up at each call

    def take(self, patience: float) -> Inventory | None:
        """Take an inventory within `patience` seconds.

        Returns None when that takes longer although the engine is well: the engine does not answer about a box
        while it reads or writes the box's disk. Raises `EngineError` when the engine fails, or answers no other
        question within another `patience` seconds.
        """
        with contextlib.suppress(TimeoutError):
            return self._inventory.answer(patience)
        try:
            self._life.answer(patience)
        except TimeoutError:
            raise EngineError(f"the container engine has not answered for {patience:.0f} s") from None
        return None


class _Question(Generic[T]):
    """A question to the engine, asked in a thread of its own: the worker must be able to report an engine that
    hangs. While a question is unanswered, it is not asked again."""

    def __init__(self, name: str, ask: Callable[[], T]) -> None:
        self._name = name
        self._ask = ask
        self._under_way: Future[T] | None = None

    def answer(self, patience: float) -> T:
        """The answer. Raises TimeoutError when there is none within `patience` seconds, and what `ask` raises."""
        if self._under_way is None:
            self._under_way = Future()
            threading.Thread(target=self._put, args=(self._under_way,), name=self._name, daemon=True).start()
        done, _ = wait([self._under_way], patience)
        if not done:
            raise TimeoutError
        answered, self._under_way = self._under_way, None
        return answered.result()

    def _put(self, under_way: Future[T]) -> None:
        try:
            under_way.set_result(self._ask())
        except BaseException as exc:
            under_way.set_exception(exc)


def inventory(runtime: BoxRuntime) -> Inventory:
    """Take an inventory of all boxes in one life of the engine. Raises `EngineError`."""
    states, life = in_one_life(runtime, runtime.list_boxes)
    boxes = sorted(map(_entry, states), key=lambda entry: (entry["box_id"], entry["generation"]))
    text = json.dumps([life, boxes], separators=(",", ":"))
    return Inventory(boxes, life, hashlib.sha256(text.encode()).hexdigest()[:32])


def in_one_life(runtime: BoxRuntime, look: Callable[[], T]) -> tuple[T, str]:
    """What `look` returns, and the life of the engine that it holds for.

    Raises `EngineError` when the engine was restarted meanwhile: what is seen in one life must not count for another.
    """
    life = runtime.life()
    seen = look()
    if runtime.life() != life:
        raise EngineError("the container engine was restarted just now; try again")
    return seen, life


def _entry(state: BoxState) -> dict[str, Any]:
    return {
        "box_id": state.box.box_id,
        "generation": state.box.generation,
        "status": str(state.status),
        "pid": state.pid,
        "exit_code": state.exit_code,
        "interrupted": state.interrupted,
        **({"reason": state.reason} if state.reason else {}),
    }
