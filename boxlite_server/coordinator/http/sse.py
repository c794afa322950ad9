"""Server-sent events: the output of an execution, the logs of a box, and what happens, as streams of text.

A stream ends early when the coordinator shuts down, and carries comment lines while there is nothing to send.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ... import errors
from ..._gen import worker_pb2 as pb
from ..core import Core
from ..events import Gap, Reader
from ..limits import KEEPALIVE_SECONDS
from ..store import Box, Event
from .errors import shown
from .utf8 import Utf8Joiner

T = TypeVar("T")

# A proxy such as nginx would otherwise hold events back until its buffer is full.
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
UNREAD = "earlier output was dropped: nobody read it in time"
FORGOTTEN = "events that came before this one are no longer kept: read anew what they may have been about"
RETRY_MS = 1000  # after which a client whose stream has ended asks again
EXECUTION_ID = "X-Boxlite-Execution-Id"
_NAMES: dict[int, str] = {pb.OUTPUT_STREAM_STDOUT: "stdout", pb.OUTPUT_STREAM_STDERR: "stderr"}


def parse_event_id(text: str) -> int:
    """The id in a Last-Event-ID. Raises InvalidArgumentError."""
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) >= 2**63:
        raise errors.InvalidArgumentError(f"Last-Event-ID '{text[:40]}' is not an event id of this stream")
    return int(text)


# ---- streams --------------------------------------------------------------------------------------------


def stream_output(core: Core, box: Box, execution_id: str, position: int) -> StreamingResponse:
    """Answer with the output of an execution behind `position`, then its exit; a failure is the last event."""
    return _response(_output(core, core.executions.read(box, execution_id, position)))


def stream_run(
    core: Core, execution_id: str, events: AsyncGenerator[pb.OutputEvent, None], *, raw: bool
) -> StreamingResponse:
    """Answer with the events of a run, like those of an execution. `raw`: output is sent byte for byte."""
    headers = {**_HEADERS, EXECUTION_ID: execution_id}
    return _ClosingResponse(events, _output(core, events, raw=raw, is_run=True), headers)


def stream_logs(core: Core, chunks: AsyncGenerator[pb.OutputChunk, None]) -> StreamingResponse:
    """Answer with the output of a box's main command; a stream without an `end` or `error` event was cut off."""
    return _response(_logs(core, chunks))


def stream_events(core: Core, reader: Reader, view: Callable[[Event], dict[str, Any]]) -> StreamingResponse:
    """Answer with the events of a reader, as JSON by `view`."""
    return _ClosingResponse(reader, _events(core, reader, view), _HEADERS)


class _Closable(Protocol):
    def aclose(self) -> Awaitable[object]: ...


class _ClosingResponse(StreamingResponse):
    """Closes the `source` of the content in the end, also where the client went away before the first piece of it."""

    def __init__(self, source: _Closable, content: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._source):
            await super().__call__(scope, receive, send)


def _response(events: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers=_HEADERS)


async def _output(
    core: Core, output: AsyncGenerator[pb.OutputEvent, None], *, raw: bool = False, is_run: bool = False
) -> AsyncIterator[bytes]:
    joiner = Utf8Joiner()
    try:
        async with _until_stopping(core, output) as events:
            async for event in events:
                if event is None:
                    yield keepalive_event()
                    continue
                position = event.position or (None if is_run else 0)  # only the log of a run that is kept has positions
                if event.HasField("chunk"):
                    if data := joiner.push(event.chunk.stream, event.chunk.data):
                        yield output_event(event.chunk.stream, data, position, raw=raw)
                elif event.HasField("dropped_bytes"):
                    yield lost_event(UNREAD, position, event.dropped_bytes)
                elif event.HasField("gap"):
                    yield lost_event(event.gap, position)
                elif event.HasField("cut"):
                    rest = b"" if raw else joiner.pop(event.cut.stream)
                    yield cut_event(event.cut.stream, event.cut.dropped_bytes + len(rest))
                elif event.HasField("ended"):
                    for stream, data in joiner.flush():
                        yield output_event(stream, data, position, raw=raw)
                    yield exit_event(event.ended, position)
    except errors.BoxliteError as exc:
        yield error_event(shown(exc))


async def _logs(core: Core, chunks: AsyncGenerator[pb.OutputChunk, None]) -> AsyncIterator[bytes]:
    try:
        async with _until_stopping(core, chunks) as pieces:
            async for chunk in pieces:
                yield keepalive_event() if chunk is None else log_event(chunk.stream, chunk.data)
        if not core.stopping.is_set():
            yield end_event()
    except errors.BoxliteError as exc:
        yield error_event(shown(exc))


async def _events(core: Core, reader: Reader, view: Callable[[Event], dict[str, Any]]) -> AsyncIterator[bytes]:
    yield f"retry: {RETRY_MS}\n".encode() + position_event(reader.position)
    try:
        async with _until_stopping(core, reader.items()) as events:
            async for event in events:
                if event is None:
                    yield keepalive_event() + position_event(reader.position)
                elif isinstance(event, Gap):
                    yield _event("gap", {"id": event.id, "message": FORGOTTEN}, event.id)
                else:
                    yield _event(event.kind, view(event), event.id)
    except errors.BoxliteError as exc:
        yield error_event(shown(exc))


@contextlib.asynccontextmanager
async def _until_stopping(core: Core, source: AsyncGenerator[T, None]) -> AsyncIterator[AsyncIterator[T | None]]:
    """What `_following` yields, for the duration of the `with` block. Nothing reads the `source` any more when it is
    closed in the end."""
    async with contextlib.aclosing(source), contextlib.aclosing(_following(core, source)) as items:
        yield items


async def _following(core: Core, source: AsyncGenerator[T, None]) -> AsyncGenerator[T | None, None]:
    """Yield the items of `source`, and None after KEEPALIVE_SECONDS without one; stop when the coordinator stops."""
    stopping = asyncio.create_task(core.stopping.wait())
    following = asyncio.ensure_future(anext(source, None))
    try:
        while True:
            done, _ = await asyncio.wait(
                {stopping, following}, timeout=KEEPALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if stopping in done:
                return
            if following not in done:
                yield None
                continue
            item = following.result()
            if item is None:
                return
            yield item
            following = asyncio.ensure_future(anext(source, None))
    finally:
        stopping.cancel()
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError, errors.BoxliteError):
            await following


# ---- events ---------------------------------------------------------------------------------------------


def output_event(stream: int, data: bytes, position: int | None, *, raw: bool = False) -> bytes:
    """Build an output event. Unless it is `raw`, bytes that are not UTF-8 become U+FFFD: clients drop an event that
    holds any."""
    sent = data if raw else data.decode("utf-8", "replace").encode()
    return _event(_NAMES[stream], {"data": base64.b64encode(sent).decode()}, position)


def exit_event(ended: pb.Execution, position: int | None) -> bytes:
    body: dict[str, Any] = {"exit_code": ended.exit_code, "duration_ms": ended.duration_ms}
    if ended.error_message:
        body["error"] = ended.error_message
    return _event("exit", body, position)


def lost_event(message: str, position: int | None, dropped_bytes: int | None = None) -> bytes:
    """Build the event that says that output before `position` is missing. Clients that do not know it ignore it."""
    body: dict[str, Any] = {"message": message}
    if dropped_bytes is not None:
        body["dropped_bytes"] = dropped_bytes
    return _event("lost", body, position)


def cut_event(stream: int, dropped_bytes: int) -> bytes:
    """Build the event that says how much of a stream was dropped behind the client's own limit."""
    message = f"{_NAMES[stream]} was longer than max_output_bytes"
    return _event("lost", {"message": message, "stream": _NAMES[stream], "dropped_bytes": dropped_bytes})


def log_event(stream: int, data: bytes) -> bytes:
    """Build a log event; it carries the bytes unchanged."""
    return _event(_NAMES[stream], {"data": base64.b64encode(data).decode()})


def end_event() -> bytes:
    """Build the event that says that the log is complete."""
    return _event("end", {})


def error_event(message: str) -> bytes:
    """Build the event that says why the stream cannot go on; it is the last one."""
    lines = "".join(f"data: {line}\n" for line in message.splitlines() or [""])
    return f"event: error\n{lines}\n".encode()


def position_event(position: int) -> bytes:
    """Build the lines that say where a reader stands: no event for the client, but its next Last-Event-ID."""
    return f"id: {position}\n\n".encode()


def keepalive_event() -> bytes:
    return b": keep-alive\n\n"


def _event(name: str, body: dict[str, Any], position: int | None = None) -> bytes:
    event_id = "" if position is None else f"id: {position}\n"
    return f"event: {name}\n{event_id}data: {json.dumps(body, separators=(',', ':'))}\n\n".encode()
