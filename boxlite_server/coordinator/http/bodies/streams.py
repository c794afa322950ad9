"""Streamed bodies of requests and answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from .... import errors
from ..errors import RequestTimeoutError

T = TypeVar("T")

log = logging.getLogger(__name__)

# Limits for reading on after a refusal: a client that is interrupted in the middle of its body loses the answer.
DRAIN_SECONDS = 10.0
DRAIN_BYTES = 256 * 1024 * 1024
UNWATCHED_SECONDS = 0.01  # at the beginning of an operation, which is most often over by then


def bounded(receive: Receive, seconds: float) -> Receive:
    """Bound the time between two pieces of a request's body. The `receive` that is returned raises RequestTimeoutError
    after `seconds` without the next piece; how long a whole body takes is not bounded."""
    ended = False

    async def receive_in_time() -> Message:
        nonlocal ended
        if ended:  # what comes next is the end of the connection
            return await receive()
        try:
            async with asyncio.timeout(seconds):
                message = await receive()
        except TimeoutError:
            raise RequestTimeoutError(f"the request's body did not go on for {seconds:g} s") from None
        ended = not message.get("more_body", False)
        return message

    return receive_in_time


async def unless_gone(receive: Receive, act: Awaitable[T]) -> T:
    """Await `act` for a client that has sent its whole request, and cancel it when the client goes away. Raises
    InvalidArgumentError then."""
    acting = asyncio.current_task()
    assert acting is not None
    watching: asyncio.Future[None] | None = None
    has_left = is_over = False

    def leave(watching: asyncio.Future[None]) -> None:
        nonlocal has_left
        if not is_over and not watching.cancelled():
            has_left = True
            acting.cancel()

    def watch() -> None:
        nonlocal watching
        watching = asyncio.ensure_future(_disconnected(receive))
        watching.add_done_callback(leave)

    beginning = asyncio.get_running_loop().call_later(UNWATCHED_SECONDS, watch)
    try:
        return await act
    except asyncio.CancelledError:
        if not has_left or acting.uncancel():
            raise
        raise errors.InvalidArgumentError("the client went away before the answer") from None
    finally:
        is_over = True
        beginning.cancel()
        if watching is not None:
            watching.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def received(body: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """Yield the chunks of an upload that a client sends. Raises InvalidArgumentError when the client disconnects
    before the end."""
    try:
        async for chunk in body:
            yield chunk
    except ClientDisconnect:
        raise errors.InvalidArgumentError("the client went away in the middle of the upload") from None


async def drain(body: AsyncGenerator[bytes, None]) -> None:
    """Read on for a while after a refusal, and discard it, so that the client gets to read the refusal."""
    size = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError, RequestTimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for chunk in body:
                size += len(chunk)
                if size > DRAIN_BYTES:
                    return


class ArchiveResponse(StreamingResponse):
    """Streams an archive. When its source fails, the connection is broken off, because an archive that only ends
    early looks whole. A client that disconnects is not an error."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:
            pass
        except errors.BoxliteError as exc:
            # Nothing more is sent: uvicorn sees that the answer is not complete, and closes the connection.
            log.warning("the answer broke off: %s", exc)
