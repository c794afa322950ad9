"""Executions: start, get, kill, signal, resize; input and output without a WebSocket. `attach/` serves WebSockets."""

from __future__ import annotations

import json
from typing import Any

import connexion
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from .... import errors
from ....formats import unix_time
from ...core import Core
from ...domain.feeding import Feed
from .. import sse, views
from ..bodies.streams import drain, unless_gone
from ..errors import UpgradeRequiredError
from ..idempotency import request_key

MAX_LISTED = 1000  # executions in one answer
INPUT_CALLS = 10  # in a row in which a command may read nothing; by then, the client has given up on its request


async def start_execution(core: Core, prefix: str, box_id: str, body: dict[str, Any]) -> Any:
    box, execution = await core.executions.start(prefix, box_id, body, request_key=request_key())
    location = f"/v1/{prefix}/boxes/{box.id}/executions/{execution.execution_id}"
    return {"execution_id": execution.execution_id}, 201, {"Location": location}


async def run_command(core: Core, prefix: str, box_id: str, body: dict[str, Any]) -> Any:
    """Answer with what becomes of a command, or with a stream of its events. A command that no Idempotency-Key stands
    for belongs to this request: it is killed when the client goes away."""
    key, raw = request_key(), body.get("encoding") == "base64"
    accept = connexion.request.headers.get("accept", "")
    if "text/event-stream" in accept and "application/json" not in accept:  # a client that takes both gets JSON
        execution_id, events = await core.executions.run_live(prefix, box_id, body, request_key=key)
        return sse.stream_run(core, execution_id, events, raw=raw)
    running = core.executions.run(prefix, box_id, body, request_key=key)
    result = await (running if key else unless_gone(connexion.request.receive, running))
    text = json.dumps(views.run(result, raw=raw), ensure_ascii=False)
    return Response(f"{text}\n", media_type="application/json")


async def list_executions(
    core: Core, prefix: str, box_id: str, page_size: int | None = None, page_token: str | None = None
) -> Any:
    after = views.decode_token(page_token, int, str) if page_token else (0, "")
    if not -(2**63) <= after[0] < 2**63:
        raise views.foreign_token()
    page = await core.executions.list(prefix, box_id, after=after, count=page_size or MAX_LISTED)
    token = None
    if page.more and page.executions:
        last = page.executions[-1]
        token = views.encode_token((last.started_at_ms, last.execution_id))
    return {"executions": [views.execution(each) for each in page.executions], "next_page_token": token}


async def get_execution(core: Core, prefix: str, box_id: str, execution_id: str) -> Any:
    _, execution = await core.executions.get(prefix, box_id, execution_id)
    return views.execution(execution)


async def kill_execution(core: Core, prefix: str, box_id: str, execution_id: str) -> Any:
    await core.executions.kill(await core.boxes.get(prefix, box_id), execution_id)
    return None, 204


async def signal_execution(core: Core, prefix: str, box_id: str, execution_id: str, body: dict[str, Any]) -> Any:
    await core.executions.signal(await core.boxes.get(prefix, box_id), execution_id, body["signal"])
    return None, 204


async def signal_box(core: Core, prefix: str, box_id: str, body: dict[str, Any]) -> Any:
    await core.executions.signal_box(prefix, box_id, body["signal"])
    return None, 204


async def resize_execution(core: Core, prefix: str, box_id: str, execution_id: str, body: dict[str, Any]) -> Any:
    await core.executions.resize(await core.boxes.get(prefix, box_id), execution_id, body["cols"], body["rows"])
    return None, 204


async def send_execution_input(core: Core, prefix: str, box_id: str, execution_id: str) -> Any:
    """Pass input on as it arrives. Input for a command that has ended is ignored, since clients end the input of
    a command that has exited. A body that breaks off is input that the command has lost."""
    executions, request = core.executions, connexion.request
    box, execution = await executions.get(prefix, box_id, execution_id)
    feed = Feed(is_counted=execution.counts_input)
    body = request.stream()
    try:
        async for chunk in body:
            await executions.write(box, execution_id, chunk, feed, more=True, waits=_waits)
        await executions.write(box, execution_id, b"", feed)
        if request.headers.get("x-close-stdin", "").lower() == "true":
            await executions.close_input(box, execution_id, feed, waits=_waits)
    except ClientDisconnect:
        await executions.lose_input(box, execution_id)
        raise errors.InvalidArgumentError("the client went away in the middle of the input") from None
    except errors.BoxliteError as exc:
        await drain(body)
        if not isinstance(exc, errors.InvalidStateError) or await executions.is_running(box, execution_id):
            raise
    return None, 204


def _waits(idle_calls: int) -> bool:
    return idle_calls < INPUT_CALLS


async def stream_execution_output(core: Core, prefix: str, box_id: str, execution_id: str) -> Any:
    """Answer with the output as server-sent events, from its start or from after ``Last-Event-ID``."""
    box, _ = await core.executions.get(prefix, box_id, execution_id)
    position = sse.parse_event_id(connexion.request.headers.get("last-event-id", "0"))
    return sse.stream_output(core, box, execution_id, position)


async def read_box_logs(
    core: Core,
    prefix: str,
    box_id: str,
    tail: int | None = None,
    follow: bool = False,
    since: str | None = None,
    timestamps: bool = False,
) -> Any:
    """Answer with the output of the box's main command as server-sent events."""
    box = await core.boxes.get(prefix, box_id)
    begin = None if since is None else max(unix_time("since", since), 0)
    return sse.stream_logs(core, core.executions.read_logs(box, tail, follow, begin, timestamps))


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
