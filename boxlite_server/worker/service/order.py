"""Serializes the calls about one thing, and refuses those that come too late.

A network may deliver a call twice, or after a call that was sent later. Against that, the worker remembers the
newest generation that it has seen of each box, the newest wish, and a tombstone for everything that it was told
to remove. This memory need not outlive the process: a call that was sent to a former process carries another
epoch and is refused for that.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ...errors import InvalidStateError
from ..files.exclusive import Exclusive
from ..runtime import BoxRef

_T = TypeVar("_T")
_REMEMBERED = 20_000  # entries of each kind; the oldest are forgotten first


class BoxOrder:
    """Runs calls about one box one after the other, and calls about different boxes at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exclusive = Exclusive()
        self._newest: OrderedDict[str, tuple[int, int]] = OrderedDict()  # generation and wish, by box id
        self._removed: OrderedDict[str, int] = OrderedDict()  # the last generation that was removed

    @contextmanager
    def turn(
        self,
        box: BoxRef,
        *,
        makes: bool = False,
        wish: int | None = None,
        any_generation: bool = False,
        still_wanted: Callable[[], bool] = lambda: True,
    ) -> Iterator[None]:
        """Wait until no other call about the box is under way, and keep others waiting during the `with` block.

        Raises `InvalidStateError`
        - when a call of a later generation has been seen, unless the call is right for `any_generation`;
        - for a call that `makes` a box, when that generation or a later one was removed;
        - for a call with a `wish` (start, stop and a change of size), when a later wish has been seen;
        - when the caller is no longer waiting: it may have sent another call since, which this one must not follow.
        """
        with self._exclusive.of(box.box_id):
            if not still_wanted():
                raise InvalidStateError(f"box {box.box_id}: the caller gave up while the call waited for its turn")
            if not any_generation:
                self._check(box, makes, wish)
            yield

    def removed(self, box: BoxRef) -> None:
        """Note that this generation of the box and all before it are removed. Call it within the box's turn."""
        with self._lock:
            self._bury(box.box_id, box.generation)

    @contextmanager
    def turn_of(self, kind: str, name: str, *, makes: bool = False, removes: bool = False) -> Iterator[None]:
        """Like `turn`, for things without generations whose names are never reused: volumes and snapshots."""
        key = f"{kind} {name}"
        with self._exclusive.of(key):
            with self._lock:
                if makes and key in self._removed:
                    raise InvalidStateError(f"{key} has been removed; it cannot be made again")
            yield
            if removes:
                with self._lock:
                    self._bury(key, 1)

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
                raise InvalidStateError(
                    f"box {box.box_id}: this start, stop or change came too late, after a newer one"
                )
            last_wish = max(wish or 0, last_wish if box.generation == newest else 0)
            _note(self._newest, box.box_id, (box.generation, last_wish))

    def _bury(self, key: str, generation: int) -> None:
        _note(self._removed, key, max(generation, self._removed.get(key, 0)))


def _note(known: OrderedDict[str, _T], key: str, value: _T) -> None:
    known[key] = value
    known.move_to_end(key)
    while len(known) > _REMEMBERED:
        known.popitem(last=False)
