"""Threads that are used again: to start one costs more than most commands' output."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import copy_context
from functools import partial
from typing import Any

MAX_IDLE = 64  # threads that wait for the next function; others end

log = logging.getLogger(__name__)
_own = threading.local()


def afterwards(function: Callable[[], object]) -> None:
    """Have this thread call a function, with the present context, when it has done what it does now, such as answering
    a call. A thread that is none of `Threads` calls it at once."""
    waiting: list[Callable[[], object]] | None = getattr(_own, "waiting", None)
    if waiting is None:
        function()
    else:
        waiting.append(partial(copy_context().run, function))


class _Place:
    """Where an idle thread gets its next function."""

    def __init__(self) -> None:
        self._given = threading.Lock()
        self._given.acquire()
        self._next: tuple[str, Callable[[], object]] | None = None

    def give(self, name: str, function: Callable[[], object]) -> None:
        self._next = name, function
        self._given.release()

    def take(self) -> tuple[str, Callable[[], object]]:
        self._given.acquire()
        assert self._next is not None
        taken, self._next = self._next, None
        return taken


class Threads(Executor):
    """Runs functions at once, each in a thread that has the function's name and does nothing else meanwhile.

    As an executor it has no bound of its own: who submits to it limits how much runs at a time. The thread that has
    just become idle gets the next function, and no other is woken: the standard library's executor wakes a second
    thread for each function, which finds nothing to do.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Place] = []

    def run(self, name: str, function: Callable[[], object]) -> None:
        with self._lock:
            place = self._idle.pop() if self._idle else None
        if place:
            place.give(name, function)
        else:
            threading.Thread(target=self._work, args=(name, function), daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def settle() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as exc:
                future.set_exception(exc)

        self.run("call", settle)
        return future

    def _work(self, name: str, function: Callable[[], object]) -> None:
        thread, place = threading.current_thread(), _Place()
        waiting = _own.waiting = [function]
        del function  # and what it refers to
        while True:
            thread.name = name
            while waiting:
                _call(waiting.pop(0))
            thread.name = "idle"
            with self._lock:
                if len(self._idle) == MAX_IDLE:
                    return
                self._idle.append(place)
            name, function = place.take()
            waiting.append(function)
            del function


def _call(function: Callable[[], object]) -> None:
    try:
        function()
    except Exception:
        log.exception("fault in a thread")
