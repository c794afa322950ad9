"""Input that a worker takes once, also where the worker is killed and restarted in the middle of it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ... import errors
from ..fleet.calls import UNCERTAIN

T = TypeVar("T")

WORKER_SECONDS = 120.0  # for a worker that is being restarted to come back
RETRY_SECONDS = 0.1
_AWAY = (*UNCERTAIN, errors.UpstreamUnavailableError)


class Feed:
    """What one sender sends to one execution.

    `is_counted`: the worker counts what it has handed to the command (`counts_input` of the execution), so that a call
    whose answer was lost is repeated until the worker answers. `is_waiting`: such a call is being repeated now.
    """

    def __init__(self, *, is_counted: bool) -> None:
        self.name = secrets.token_hex(8)
        self.sent = 0  # bytes that the worker has taken
        self.is_waiting = False
        self._is_counted = is_counted

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await `call`, and again while the worker is away. Raises what the last one raises."""
        deadline = asyncio.get_running_loop().time() + WORKER_SECONDS
        try:
            while True:
                try:
                    return await call()
                except _AWAY:
                    if not self._is_counted or asyncio.get_running_loop().time() >= deadline:
                        raise
                self.is_waiting = True
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            self.is_waiting = False
