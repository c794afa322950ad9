"""Executions: start, look at, steer; output and input of the oldest clients. WebSockets are in `attach.py`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import connexion

from .... import errors
from ...core import Core
from ...store import Box
from .. import sse, views
from ..attach.frames import Utf8Joiner
from ..errors import UpgradeRequiredError
from ..idempotency import request_key

INPUT_TRIES = 10  # by then the client of one request has given up


async def start_execution(core: Core, prefix: str, box_id: str, body: dict[str, Any]) -> Any:
    box, execution = await core.executions.start(prefix, box_id, body, request_key=request_key())
    location = f"/v1/{prefix}/boxes/{box.id}/executions/{execution.execution_id}"
    return {"execution_id": execution.execution_id}, 201, {"Location": location}


async def get_execution(core: Core, prefix: str, box_id: str, execution_id: str) -> Any:
    _, execution = await core.executions.get(prefix, box_id, execution_id)
    return views.execution(execution)


async def kill_execution(core: Core, prefix: str, box_id: str, execution_id: str) -> Any:
    await core.executions.kill(await core.boxes.get(prefix, box_id), execution_id)
    return None, 204


async def signal_execution(core: Core, prefix: str, box_id: str, execution_id: str, body: dict[str, Any]) -> Any:
    await core.executions.signal(await core.boxes.get(prefix, box_id), execution_id, body["signal"])
    return None, 204


async def resize_execution(core: Core, prefix: str, box_id: str, execution_id: str, body: dict[str, Any]) -> Any:
    await core.executions.resize(await core.boxes.get(prefix, box_id), execution_id, body["cols"], body["rows"])
    return None, 204


async def send_execution_input(core: Core, prefix: str, box_id: str, execution_id: str) -> Any:
    """Input is passed on as it comes in. A command that has ended takes none and needs none: clients say
    goodbye to it with an end of input."""
    box, execution = await core.executions.get(prefix, box_id, execution_id)
    request = connexion.request
    with contextlib.suppress(errors.InvalidStateError):
        async for chunk in request.stream():
            await core.executions.write(box, execution.execution_id, chunk, tries=INPUT_TRIES)
        if request.headers.get("x-close-stdin", "").lower() == "true":
            await core.executions.close_input(box, execution.execution_id)
    return None, 204


async def stream_execution_output(core: Core, prefix: str, box_id: str, execution_id: str) -> Any:
    """Server-sent events from the start of the output, or from behind ``Last-Event-ID``."""
    box, _ = await core.executions.get(prefix, box_id, execution_id)
    last_id = connexion.request.headers.get("last-event-id", "0")
    if not last_id.isascii() or not last_id.isdigit() or int(last_id) >= 2**63:
        raise errors.InvalidArgumentError(f"Last-Event-ID '{last_id}' is none of ours")
    events = _events(core, box, execution_id, int(last_id))
    return sse.stream(events)


async def read_box_logs(core: Core, prefix: str, box_id: str, tail: int | None = None, follow: bool = False) -> Any:
    """Server-sent events of what the box's main command has said."""
    box = await core.boxes.get(prefix, box_id)
    return sse.stream(_log_events(core, box, tail, follow))


async def _log_events(core: Core, box: Box, tail: int | None, follow: bool) -> AsyncIterator[bytes]:
    try:
        async with contextlib.aclosing(core.executions.read_logs(box, tail, follow)) as chunks:
            async for chunk in sse.until_stopping(core, chunks):
                yield sse.keepalive_event() if chunk is None else sse.log_event(chunk.stream, chunk.data)
        if not core.stopping.is_set():
            yield sse.end_event()
    except errors.BoxliteError as exc:
        yield sse.error_event(exc.message)


async def _events(core: Core, box: Box, execution_id: str, position: int) -> AsyncIterator[bytes]:
    joiner = Utf8Joiner()
    try:
        async with contextlib.aclosing(core.executions.read(box, execution_id, position)) as output:
            async for event in sse.until_stopping(core, output):
                if event is None:
                    yield sse.keepalive_event()
                elif event.HasField("chunk"):
                    if data := joiner.push(event.chunk.stream, event.chunk.data):
                        yield sse.output_event(event.chunk.stream, data, event.position)
                elif event.HasField("ended"):
                    for stream, data in joiner.flush():
                        yield sse.output_event(stream, data, event.position)
                    yield sse.exit_event(event.ended, event.position)
    except errors.BoxliteError as exc:
        yield sse.error_event(exc.message)


async def attach_execution(core: Core, prefix: str, box_id: str, execution_id: str) -> Any:
    raise UpgradeRequiredError


async def open_terminal(
    core: Core,
    prefix: str,
    box_id: str,
    command: str = "",
    args: list[str] | None = None,
    cols: int = 0,
    rows: int = 0,
) -> Any:
    raise UpgradeRequiredError


async def attach_box(core: Core, prefix: str, box_id: str) -> Any:
    raise UpgradeRequiredError
