"""One client attached to one execution: its output, its acknowledgements and its input."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from .... import errors
from ...._gen import worker_pb2 as pb
from ....formats import parse_json
from ...domain.executions import Executions
from ...store import Box
from ..utf8 import Utf8Joiner
from . import frames
from .input_queue import END, InputQueue
from .progress import Progress
from .protocol import PEER, WebSocketProtocol

log = logging.getLogger(__name__)

REPORT_SECONDS = 1.0  # between two reports of acknowledgements to the worker
LAST_REPORT_SECONDS = 5.0  # for the report at the end of a session

CLOSE_NORMAL = 1000
CLOSE_TRY_AGAIN = 1013


@dataclass(frozen=True)
class AttachOptions:
    """How a client is attached."""

    takes_input: bool = True
    channels: bool = True  # output frames begin with a byte that names the stream
    received: int | None = None  # bytes of output that the client says it has; None when it does not say


class Session:
    """Serves one client from the upgrade to the exit frame or the loss of the connection."""

    def __init__(
        self, executions: Executions, socket: WebSocket, box: Box, execution: pb.Execution, options: AttachOptions
    ) -> None:
        self._executions = executions
        self._socket = socket
        self._peer: WebSocketProtocol = socket.scope["state"][PEER]
        self._box = box
        self._id = execution.execution_id
        self._options = options
        self._progress = Progress(execution.delivered, options.received)
        self._reported = execution.delivered.bytes
        self._joiner = Utf8Joiner()
        self._input = InputQueue()

    async def run(self, replaced: asyncio.Event) -> None:
        """Run until the output ends or the client disconnects, or until `replaced` is set because another client
        has been attached instead."""
        parts = (self._send_output(), self._receive(), self._peer.lost.wait(), replaced.wait())
        ends = [asyncio.ensure_future(part) for part in parts]
        helpers = [asyncio.ensure_future(part) for part in (self._feed(), self._report())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*ends, *helpers):
                task.cancel()
            results = await asyncio.gather(*ends, *helpers, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect):
                log.error("fault in an attached session", exc_info=result)
        if replaced.is_set():
            with suppress(WebSocketDisconnect, RuntimeError):  # the socket is closed already
                await self._socket.close(CLOSE_TRY_AGAIN)
        with suppress(errors.BoxliteError, TimeoutError):
            async with asyncio.timeout(LAST_REPORT_SECONDS):
                await self._report_once()

    # ---- to the client --------------------------------------------------------------------------------

    async def _send_output(self) -> None:
        try:
            events = self._executions.read(self._box, self._id, self._progress.start_position)
            async with aclosing(events):
                async for event in events:
                    await self._send(event)
        except errors.BoxliteError as exc:
            await self._socket.send_text(frames.error_frame(exc.message))
            await self._socket.close(CLOSE_TRY_AGAIN)

    async def _send(self, event: pb.OutputEvent) -> None:
        if event.HasField("chunk"):
            await self._send_bytes(event.chunk.stream, self._joiner.push(event.chunk.stream, event.chunk.data))
        elif event.HasField("dropped_bytes"):
            if missed := self._progress.lost(event.dropped_bytes):
                text = f"{missed} bytes of earlier output are lost: nobody read them in time"
                await self._socket.send_text(frames.error_frame(text, dropped_bytes=missed))
        elif event.HasField("gap"):
            self._progress.gap(event.position)
            await self._socket.send_text(frames.error_frame(event.gap))
        else:
            for stream, data in self._joiner.flush():
                await self._send_bytes(stream, data)
            await self._socket.send_text(frames.exit_frame(event.ended))
            await self._socket.close(CLOSE_NORMAL)
            return
        if not self._joiner.holds:
            self._progress.place(event.position)

    async def _send_bytes(self, stream: int, data: bytes) -> None:
        if data := self._progress.passes(data):
            await self._socket.send_bytes(frames.output_frame(stream, data) if self._options.channels else data)
            self._peer.ping(self._progress.sent)

    # ---- acknowledgements ----------------------------------------------------------------------------

    async def _report(self) -> None:
        """Report to the worker what the client has acknowledged, so that a restarted coordinator knows it."""
        while True:
            await self._peer.news.wait()
            with suppress(errors.BoxliteError):  # the output stream reports a lost worker
                await self._report_once()
            await asyncio.sleep(REPORT_SECONDS)

    async def _report_once(self) -> None:
        self._peer.news.clear()
        delivered = self._progress.acknowledge(self._peer.acknowledged)
        if delivered.bytes > self._reported:
            await self._executions.confirm(self._box, self._id, delivered)
            self._reported = delivered.bytes

    # ---- from the client ------------------------------------------------------------------------------

    async def _receive(self) -> None:
        """Receive frames. Input goes to the queue, so that control frames need not wait until the command reads it."""
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("bytes") is None:
                await self._or_complain(self._control(message["text"]))
            elif self._options.takes_input:
                await self._input.put(message["bytes"])
            else:
                await self._complain("this client is attached without input (stdin=0); what it sends is not taken")

    async def _feed(self) -> None:
        while True:
            piece = await self._input.get()
            if piece is END:
                await self._or_complain(self._executions.close_input(self._box, self._id))
            else:
                await self._or_complain(self._executions.write(self._box, self._id, piece))

    async def _control(self, text: str) -> None:
        try:
            frame = parse_json(text)
        except ValueError:
            frame = None
        match frame:
            case {"type": "stdin_eof"}:
                if self._options.takes_input:
                    await self._input.put(END)
            case {"type": "resize", "cols": int(cols), "rows": int(rows)} if is_size(cols) and is_size(rows):
                await self._executions.resize(self._box, self._id, cols, rows)
            case {"type": "signal", "sig": int(number)} if 1 <= number <= 64 and number is not True:
                await self._executions.signal(self._box, self._id, number)
            case _:
                raise errors.InvalidArgumentError(
                    'unknown control frame; known are {"type":"stdin_eof"}, '
                    '{"type":"resize","cols":N,"rows":N} and {"type":"signal","sig":N}'
                )

    async def _or_complain(self, act: Coroutine[Any, Any, None]) -> None:
        """Await `act`, and send its error as a frame. An act that comes after the command's end is ignored: the exit
        frame is on its way."""
        try:
            await act
        except (errors.InvalidStateError, errors.NotFoundError):
            pass
        except errors.BoxliteError as exc:
            await self._complain(exc.message)

    async def _complain(self, text: str) -> None:
        await self._socket.send_text(frames.error_frame(text))


def is_size(number: int) -> bool:
    """Whether a terminal can have this many columns or rows. JSON's `true` is a number to Python, and is none here."""
    return 1 <= number <= 65535 and number is not True
