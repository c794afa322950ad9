"""How long a worker may be silent in the middle of a stream before the call is given up.

Only the worker's silence counts: a client that reads or sends slowly is another matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from ... import errors

T = TypeVar("T")


async def within(answer: Awaitable[T], idle: float | None, worker: str) -> T:
    """The answer, if it comes within `idle` seconds. Raises TimedOutError."""
    async with _bounded(idle, worker):
        return await answer


@asynccontextmanager
async def taking(
    requests: AsyncIterator[T], idle: float | None, worker: str
) -> AsyncGenerator[AsyncGenerator[T, None], None]:
    """Gives the `requests` to send. Inside, the worker has `idle` seconds to take each of them, and as long to
    accept the call before the first and to answer it after the last. Raises TimedOutError."""
    clock = asyncio.get_running_loop().time

    async def watched() -> AsyncGenerator[T, None]:
        while True:
            bound.reschedule(None)
            try:
                request = await anext(requests)
            except StopAsyncIteration:
                return
            finally:
                bound.reschedule(None if idle is None else clock() + idle)
            yield request

    async with _bounded(idle, worker) as bound:
        yield watched()


@asynccontextmanager
async def _bounded(idle: float | None, worker: str) -> AsyncGenerator[asyncio.Timeout, None]:
    bound = asyncio.timeout(idle)
    try:
        async with bound:
            yield bound
    except TimeoutError:
        if not bound.expired():
            raise  # somebody else's
        raise errors.TimedOutError(f"worker {worker} was silent for {idle or 0:.0f} s; the call is given up") from None


# What is the worker's trouble and not the box's.
TRY_ELSEWHERE = (errors.UpstreamUnavailableError, errors.ResourceExhaustedError, errors.EngineError)

# Afterwards nobody knows whether it was done; any other error says that it was not.
UNCERTAIN = (errors.UnreachableError, errors.TimedOutError, errors.EngineError)
