"""Server-sent events: output and logs as a stream of text that ends when the coordinator shuts down."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

from starlette.responses import StreamingResponse

from ... import errors
from ..._gen import worker_pb2 as pb
from ..core import Core
from .attach import frames

_NAMES: dict[int, str] = {pb.OUTPUT_STREAM_STDOUT: "stdout", pb.OUTPUT_STREAM_STDERR: "stderr"}


def output_event(stream: int, data: bytes, position: int) -> bytes:
    """Bytes that are no UTF-8 become replacement characters: clients drop an event that holds any."""
    text = data.decode("utf-8", "replace").encode()
    return _event(_NAMES[stream], {"data": base64.b64encode(text).decode()}, position)


def log_event(stream: int, data: bytes) -> bytes:
    """The bytes as they are."""
    return _event(_NAMES[stream], {"data": base64.b64encode(data).decode()})


def end_event() -> bytes:
    """All has been said."""
    return _event("end", {})


def exit_event(ended: pb.Execution, position: int) -> bytes:
    body: dict[str, Any] = {"exit_code": ended.exit_code, "duration_ms": ended.duration_ms}
    if ended.error_message:
        body["error"] = ended.error_message
    return _event("exit", body, position)


def error_event(message: str) -> bytes:
    """The stream cannot go on; there is no event after it."""
    lines = "".join(f"data: {line}\n" for line in message.splitlines() or [""])
    return f"event: error\n{lines}\n".encode()


def keepalive_event() -> bytes:
    return b": keep-alive\n\n"


def _event(name: str, body: dict[str, Any], position: int | None = None) -> bytes:
    event_id = "" if position is None else f"id: {position}\n"
    return f"event: {name}\n{event_id}data: {json.dumps(body, separators=(',', ':'))}\n\n".encode()


T = TypeVar("T")


def stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def until_stopping(core: Core, output: AsyncGenerator[T, None]) -> AsyncIterator[T | None]:
    """The events, None where none came for a while, and an early end when the coordinator stops."""
    stopping = asyncio.create_task(core.stopping.wait())
    following = asyncio.ensure_future(anext(output, None))
    try:
        while True:
            done, _ = await asyncio.wait(
                {stopping, following}, timeout=frames.PING_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if stopping in done:
                return
            if following not in done:
                yield None
                continue
            event = following.result()
            if event is None:
                return
            yield event
            following = asyncio.ensure_future(anext(output, None))
    finally:
        stopping.cancel()
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError, errors.BoxliteError):
            await following
