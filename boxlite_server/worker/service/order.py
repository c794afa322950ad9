"""The order of calls about one thing, and which of them come too late.

A network delivers a call twice, or after the one that was sent behind it. What the worker keeps against that is
the newest generation that it has seen of each box, the newest wish, and a tombstone for all that it was told to
remove. They last as long as its process: a call that was meant for a former one carries another epoch and is
refused for that.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ...errors import InvalidStateError
from ..runtime import BoxRef

_T = TypeVar("_T")
_REMEMBERED = 20_000  # boxes, and removed things; the oldest are forgotten first


class BoxOrder:
    """Calls about one box one after the other, calls about different boxes at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[str, tuple[threading.Lock, int]] = {}
        self._newest: OrderedDict[str, tuple[int, int]] = OrderedDict()  # generation and wish
        self._removed: OrderedDict[str, int] = OrderedDict()  # the last generation that is gone

    @contextmanager
    def turn(
        self,
        box: BoxRef,
        *,
        makes: bool = False,
        wish: int | None = None,
        still_wanted: Callable[[], bool] = lambda: True,
    ) -> Iterator[None]:
        """Waits until no other call about the box is under way.

        Raises `InvalidStateError` when a call of a later generation has been seen before; for a call that
        `makes` a box also when that generation was removed, or a later one; for one with a `wish` (start and stop)
        also when a later one has been seen; and when the caller has given up meanwhile: it may have said something
        else since, and this must not come behind it.
        """
        with self._own(box.box_id):
            if not still_wanted():
                raise InvalidStateError(f"box {box.box_id}: the caller gave up while the call waited for its turn")
            self._check(box, makes, wish)
            yield

    def removed(self, box: BoxRef) -> None:
        """The box is gone for good, this generation and those before. Said within its turn."""
        with self._lock:
            self._bury(box.box_id, box.generation)

    @contextmanager
    def turn_of(self, kind: str, name: str, *, makes: bool = False, removes: bool = False) -> Iterator[None]:
        """The same for what has no generations and whose names are never used twice: volumes and snapshots."""
        key = f"{kind} {name}"
        with self._own(key):
            with self._lock:
                if makes and key in self._removed:
                    raise InvalidStateError(f"{key} has been removed; it cannot be made again")
            yield
            if removes:
                with self._lock:
                    self._bury(key, 1)

    @contextmanager
    def _own(self, key: str) -> Iterator[None]:
        with self._lock:
            mine, waiting = self._turns.get(key, (threading.Lock(), 0))
            self._turns[key] = (mine, waiting + 1)
        try:
            with mine:
                yield
        finally:
            with self._lock:
                mine, waiting = self._turns[key]
                if waiting == 1:
                    del self._turns[key]
                else:
                    self._turns[key] = (mine, waiting - 1)

    def _check(self, box: BoxRef, makes: bool, wish: int | None) -> None:
        with self._lock:
            newest, last_wish = self._newest.get(box.box_id, (0, 0))
            if box.generation < newest:
                raise InvalidStateError(
                    f"box {box.box_id}: generation {box.generation} is over, generation {newest} has begun"
                )
            if makes and box.generation <= self._removed.get(box.box_id, 0):
                raise InvalidStateError(f"box {box.box_id}: generation {box.generation} has been removed")
            if wish is not None and box.generation == newest and wish < last_wish:
                raise InvalidStateError(f"box {box.box_id}: this start or stop is late, another one has come before it")
            last_wish = max(wish or 0, last_wish if box.generation == newest else 0)
            _note(self._newest, box.box_id, (box.generation, last_wish))

    def _bury(self, key: str, generation: int) -> None:
        _note(self._removed, key, max(generation, self._removed.get(key, 0)))


def _note(known: OrderedDict[str, _T], key: str, value: _T) -> None:
    known[key] = value
    known.move_to_end(key)
    while len(known) > _REMEMBERED:
        known.popitem(last=False)
