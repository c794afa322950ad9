"""One life of a coordinator's process, and its sudden end.

Nothing that a dead process still had in mind may happen. Its code goes on to the next `await` and then through
its `finally` and `except` blocks, as code does; but the database and the network are closed to it.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

_current: ContextVar[Life | None] = ContextVar("life", default=None)


class Dead(BaseException):
    """Raised in the code of a dead process, past all that catches exceptions."""


class Life:
    """The process. `on_step` is told of each durable step twice, before it (False) and after it (True); a
    step is a transaction, or a statement outside one, or a call to a worker. It may kill."""

    def __init__(self, on_step: Callable[[str, bool], None] | None = None) -> None:
        self.is_dead = False
        self.tasks: set[asyncio.Task[Any]] = set()
        self._connections: list[_Connection] = []
        self._on_step = on_step

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Within the `with` block, tasks and connections that are made belong to this process."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def check(self) -> None:
        if self.is_dead:
            raise Dead

    def step(self, name: str, is_done: bool) -> None:
        self.check()
        if self._on_step:
            self._on_step(name, is_done)
            self.check()

    def kill(self) -> None:
        self.is_dead = True
        for connection in self._connections:
            connection.rollback()  # this rolls back what was not committed
        for task in self.tasks:
            task.cancel()

    def holds(self, connection: _Connection) -> None:
        connection.life = self
        self._connections.append(connection)


_connect = sqlite3.connect


def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
    """Replaces `sqlite3.connect`."""
    life = _current.get()
    if life is None:
        return _connect(*args, **kwargs)
    connection = _connect(*args, **{**kwargs, "factory": _Connection})
    life.holds(connection)
    return connection


class _Connection(sqlite3.Connection):
    """A connection that its process's death closes."""

    life: Life
    _written: list[str] | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        self.life.check()
        verb = sql.split(None, 1)[0].upper()
        if verb == "BEGIN":
            self._written = []
        elif verb in ("INSERT", "UPDATE", "DELETE"):
            name = _what(sql, parameters)
            if self._written is None:
                return self._durably(name, sql, parameters)
            self._written.append(name)
        elif verb in ("COMMIT", "ROLLBACK"):
            written, self._written = self._written, None
            if written and verb == "COMMIT":
                return self._durably(" and ".join(dict.fromkeys(written)), sql, parameters)
        return super().execute(sql, parameters)

    def _durably(self, name: str, sql: str, parameters: Any) -> _Rows:
        self.life.step(name, False)
        rows = _Rows(super().execute(sql, parameters).fetchall())  # a statement is over with its last row
        self.life.step(name, True)
        return rows


class _Rows(NamedTuple):
    rows: list[Any]

    def fetchall(self) -> list[Any]:
        return self.rows


def _what(sql: str, parameters: Any) -> str:
    """A write in a few words: `insert boxes`, `update boxes to running`, `take lease`."""
    words = [word for word in sql.split() if word.upper() not in ("INTO", "FROM", "OR", "REPLACE", "IGNORE")]
    name = f"{words[0].lower()} {words[1]}"
    name = {"insert leases": "take lease", "delete leases": "give back lease"}.get(name, name)
    if name.startswith("update"):
        for column, said in (("status", " to "), ("state", " to "), ("desired", ", desired ")):
            if found := re.search(rf"\b{column} = \?", sql):
                name += f"{said}{parameters[sql[: found.start()].count('?')]}"
    return name


def task_factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
    """Registers each task with the process that made it."""
    task = asyncio.Task(coro, loop=loop, **kwargs)
    life = _current.get()
    if life is not None:
        life.tasks.add(task)
        task.add_done_callback(life.tasks.discard)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # then asyncio does not log it
        if life.is_dead:
            task.cancel()
    return task
