"""Bodies of requests and answers that are handed on as they come in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ... import errors
from .errors import REQUEST_ID

log = logging.getLogger(__name__)

SILENCE_SECONDS = 120.0  # after which a client that sends nothing is taken for gone

# What is still read after a refusal: to a client that is interrupted in the middle of its body the answer is lost.
DRAIN_SECONDS = 10.0
DRAIN_BYTES = 256 * 1024 * 1024


async def received(body: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """The chunks of an archive. Raises where the client falls silent, or goes away before the end."""
    try:
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                chunk = await anext(body)
            yield chunk
    except StopAsyncIteration:
        return
    except TimeoutError:
        raise errors.TimedOutError(f"the archive did not go on for {SILENCE_SECONDS:.0f} s") from None
    except ClientDisconnect:
        raise errors.InvalidArgumentError("the client went away in the middle of the archive") from None


async def drain(body: AsyncGenerator[bytes, None]) -> None:
    """Read on for a while after a refusal, so that the client comes to read it."""
    size = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for chunk in body:
                size += len(chunk)
                if size > DRAIN_BYTES:
                    return


class ArchiveResponse(StreamingResponse):
    """Chunks as the answer. Where they break off the connection does too: an archive that ends early looks
    whole. A client that goes away is no fault."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:
            pass
        except errors.BoxliteError as exc:
            # Nothing more is sent: the server sees that the answer is not whole, and closes the connection.
            log.warning("%s: the answer broke off: %s", scope[REQUEST_ID], exc)
