"""WebSockets: one client's stdin, stdout, stderr and control of one execution.

The frames are described at `attachExecution` in openapi.yaml. Connexion does not route WebSockets, so the two
paths stand here; everything that can be refused is refused before the upgrade, as a plain HTTP answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from contextlib import aclosing, contextmanager

from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from .. import errors
from .._gen import worker_pb2 as pb
from . import frames, http_errors
from .core import Core
from .executions import Cursor
from .store import Box

log = logging.getLogger(__name__)

_EXECUTION = re.compile(r"/v1/(?P<prefix>[^/]+)/boxes/(?P<box>[^/]+)/executions/(?P<execution>[^/]+)/attach")
_MAIN = re.compile(r"/v1/(?P<prefix>[^/]+)/boxes/(?P<box>[^/]+)/attach")

# In the scope's state: an asyncio.Event that the server sets when the connection is lost. A session that hands
# input to a command which does not read is not receiving, and would not hear of it otherwise.
CONNECTION_LOST = "connection_lost"

CLOSE_NORMAL = 1000
CLOSE_TRY_AGAIN = 1013


class Attach:
    """The ASGI application of all WebSocket paths."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        try:
            box, execution, main = await self._find(scope)
            with self._core.executions.attachment(execution.execution_id) as cursor:
                headers = [(b"x-boxlite-execution-id", execution.execution_id.encode())] if main else []
                await socket.accept(headers=headers)
                await _Session(self._core, socket, box, execution.execution_id, cursor).run()
        except WebSocketDisconnect:
            return
        except Exception as exc:
            await socket.send_denial_response(http_errors.response(scope, exc))

    async def _find(self, scope: Scope) -> tuple[Box, pb.Execution, bool]:
        path, executions = scope["path"], self._core.executions
        if match := _EXECUTION.fullmatch(path):
            box, execution = await executions.get(match["prefix"], match["box"], match["execution"])
            return box, execution, False
        if match := _MAIN.fullmatch(path):
            box, execution = await executions.attach_box(match["prefix"], match["box"])
            return box, execution, True
        raise errors.NotFoundError(f"no such WebSocket path: {path}")


class _Session:
    """One attached client, from the upgrade to the exit frame or the loss of the connection."""

    def __init__(self, core: Core, socket: WebSocket, box: Box, execution_id: str, cursor: Cursor) -> None:
        self._executions = core.executions
        self._socket = socket
        self._box = box
        self._id = execution_id
        self._cursor = cursor

    async def run(self) -> None:
        """Ends with the output's end or the client's, whichever comes first."""
        parts = self._send_output(), self._receive(), self._socket.scope["state"][CONNECTION_LOST].wait()
        done, rest = await asyncio.wait(map(asyncio.ensure_future, parts), return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for task in done:
            if (exc := task.exception()) and not isinstance(exc, WebSocketDisconnect):
                log.error("fault in an attached session", exc_info=exc)

    # ---- to the client --------------------------------------------------------------------------------

    async def _send_output(self) -> None:
        try:
            async with aclosing(self._executions.read(self._box, self._id, self._cursor.position)) as events:
                async for event in events:
                    await self._send(event)
        except errors.BoxliteError as exc:
            await self._socket.send_text(frames.error_frame(exc.message))
            await self._socket.close(CLOSE_TRY_AGAIN)

    async def _send(self, event: pb.OutputEvent) -> None:
        if event.HasField("chunk"):
            if data := self._cursor.joiner.push(event.chunk.stream, event.chunk.data):
                await self._socket.send_bytes(frames.output_frame(event.chunk.stream, data))
        elif event.HasField("dropped_bytes"):
            text = f"{event.dropped_bytes} bytes of earlier output are lost: nobody read them in time"
            await self._socket.send_text(frames.error_frame(text))
        else:
            for stream, data in self._cursor.joiner.flush():
                await self._socket.send_bytes(frames.output_frame(stream, data))
            await self._socket.send_text(frames.exit_frame(event.ended))
            await self._socket.close(CLOSE_NORMAL)
        self._cursor.position = event.position

    # ---- from the client ------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            with self._refusals_as_frames() as refused:
                if message.get("bytes") is not None:
                    await self._executions.write(self._box, self._id, message["bytes"])
                else:
                    await self._control(message["text"])
            if refused:
                await self._socket.send_text(frames.error_frame(refused[0]))

    @contextmanager
    def _refusals_as_frames(self) -> Iterator[list[str]]:
        """Collect the text of a refusal. What comes after the command's end is no fault: the exit frame is
        on its way."""
        refused: list[str] = []
        try:
            yield refused
        except (errors.InvalidStateError, errors.NotFoundError):
            pass
        except errors.BoxliteError as exc:
            refused.append(exc.message)

    async def _control(self, text: str) -> None:
        try:
            frame = json.loads(text)
        except ValueError:
            frame = None
        match frame:
            case {"type": "stdin_eof"}:
                await self._executions.close_input(self._box, self._id)
            case {"type": "resize", "cols": int(cols), "rows": int(rows)} if _is_size(cols, rows):
                await self._executions.resize(self._box, self._id, cols, rows)
            case {"type": "signal", "sig": int(number)} if 1 <= number <= 64:
                await self._executions.signal(self._box, self._id, number)
            case _:
                raise errors.InvalidArgumentError(
                    'unknown control frame; known are {"type":"stdin_eof"}, '
                    '{"type":"resize","cols":N,"rows":N} and {"type":"signal","sig":N}'
                )


def _is_size(cols: int, rows: int) -> bool:
    return 1 <= cols <= 65535 and 1 <= rows <= 65535
