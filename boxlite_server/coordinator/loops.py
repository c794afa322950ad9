"""Keeps background work going: a loop that survives errors, at most one task for each key, and pauses between tries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from .. import errors

log = logging.getLogger(__name__)

Work = Callable[[], Coroutine[Any, Any, None]]


class Loop:
    """One task that runs `act` for ever. `act` returns after how many seconds it runs again. When it raises, the error
    is logged under the name `what`, and `act` runs again after `retry` seconds. `sleep` may return early."""

    def __init__(
        self,
        what: str,
        act: Callable[[], Awaitable[float]],
        *,
        retry: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._what = what
        self._act = act
        self._retry = retry
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None

    def start(self, *, after: float = 0.0) -> None:
        """Run `act` for the first time `after` seconds from now; needs the running event loop."""
        self._task = asyncio.create_task(self._run(after))

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, after: float) -> None:
        if after:
            await self._sleep(after)
        while True:
            try:
                pause = await self._act()
            except errors.BoxliteError as exc:
                log.error("%s, trying again: %s", self._what, exc)
                pause = self._retry
            except Exception:
                log.exception("fault: %s, trying again", self._what)
                pause = self._retry
            await self._sleep(pause)


class Backoff:
    """Pauses between the attempts at each key: `first` seconds, then twice as long each time, up to `longest`. `clock`
    gives seconds."""

    def __init__(self, first: float, longest: float, clock: Callable[[], float]) -> None:
        self._first = first
        self._longest = longest
        self._clock = clock
        self._pauses: dict[str, tuple[float, float]] = {}  # by key: the pause, and when it is over

    def due_at(self, key: str) -> float:
        """When the next attempt is due; 0 for now."""
        return self._pauses.get(key, (0.0, 0.0))[1]

    def failed(self, key: str) -> None:
        """Note an attempt that has failed."""
        now = self._clock()
        pause = min(self._pauses[key][0] * 2, self._longest) if key in self._pauses else self._first
        self._pauses = {k: known for k, known in self._pauses.items() if now < known[1] + self._longest}
        self._pauses[key] = (pause, now + pause)

    def succeeded(self, key: str) -> None:
        """Note an attempt that has succeeded: the next one is due at once."""
        self._pauses.pop(key, None)


class Tasks:
    """At most one task at a time for each key."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, Work] = {}

    def begin(self, key: str, work: Work, *, again: bool = False) -> None:
        """Run `work` as the task of `key`, unless the key has a task. In that case `work` is dropped; with `again` it
        runs once that task ends, or the `work` of a later such call in its place."""
        if key not in self._tasks:
            task = self._tasks[key] = asyncio.create_task(work())
            task.add_done_callback(lambda _: self._ended(key))
        elif again:
            self._again[key] = work

    def __len__(self) -> int:
        return len(self._tasks)

    def _ended(self, key: str) -> None:
        del self._tasks[key]
        if work := self._again.pop(key, None):
            self.begin(key, work)

    async def close(self) -> None:
        """Cancel all tasks, and wait for their ends."""
        self._again.clear()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
