"""Files: tar archives in and out, streamed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import connexion
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from ... import errors
from ..core import Core

MEDIA_TYPE = "application/x-tar"
SILENCE_SECONDS = 120.0  # after which a client that sends nothing is taken for gone

# What is still read after a refusal: to a client that is interrupted in the middle of its body the answer is lost.
DRAIN_SECONDS = 10.0
DRAIN_BYTES = 256 * 1024 * 1024


async def upload_files(
    core: Core, prefix: str, box_id: str, path: str, overwrite: bool = True, source_is_dir: bool | None = None
) -> Any:
    """Without a parameter `body`, which would have Connexion read it whole."""
    body = connexion.request.stream()
    try:
        await core.files.upload(prefix, box_id, path, _received(body), overwrite=overwrite, source_is_dir=source_is_dir)
    except errors.BoxliteError:
        await _drain(body)
        raise
    return None, 204


async def _received(body: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
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


async def _drain(body: AsyncGenerator[bytes, None]) -> None:
    size = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for chunk in body:
                size += len(chunk)
                if size > DRAIN_BYTES:
                    return


async def download_files(core: Core, prefix: str, box_id: str, path: str, follow_symlinks: bool = False) -> Any:
    """What can be refused is refused before the answer begins; what breaks later breaks the connection, since
    an archive that ends early looks whole."""
    is_dir, chunks = await core.files.download(prefix, box_id, path, follow_symlinks=follow_symlinks)
    headers = {"X-Boxlite-Source-Is-Dir": "true" if is_dir else "false"}
    return StreamingResponse(chunks, media_type=MEDIA_TYPE, headers=headers)
