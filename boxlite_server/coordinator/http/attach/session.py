"""One client attached to one execution: its output, its acknowledgements and its input."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from .... import errors
from ...._gen import worker_pb2 as pb
from ....formats import parse_json
from ...domain.executions import Executions
from ...domain.feeding import Feed
from ...store import Box
from ..errors import shown
from ..utf8 import Utf8Joiner
from . import frames
from .input_queue import InputQueue, Mark, Piece
from .progress import Progress
from .protocol import PEER, WebSocketProtocol

log = logging.getLogger(__name__)

REPORT_SECONDS = 1.0  # between two reports of acknowledgements to the worker
LAST_REPORT_SECONDS = 5.0  # for the report at the end of a session
REST_SECONDS = 30.0  # for which a command may take nothing of the input that a client has left behind
LOSS_SECONDS = 60.0  # for telling the worker that input was lost, at the end of a session
STUCK_CALLS = 12  # in a row, 5 s each, in which a command reads nothing because its output is not taken
COMPLAINT_SECONDS = 1.0  # for telling the client
RETRY_SECONDS = 1.0  # between two attempts to tell it

CLOSE_NORMAL = 1000
CLOSE_TRY_AGAIN = 1013


@dataclass(frozen=True)
class AttachOptions:
    """How a client is attached."""

    takes_input: bool = True
    channels: bool = True  # output frames begin with a byte that names the stream
    received: int | None = None  # bytes of output that the client says it has; None when it does not say
    window: int | None = None  # bytes of output that the client takes ahead of its last `received` frame


class Session:
    """Serves one client from the upgrade to the exit frame or the loss of the connection."""

    def __init__(
        self,
        executions: Executions,
        socket: WebSocket,
        box: Box,
        execution: pb.Execution,
        options: AttachOptions,
        events: AsyncIterator[pb.OutputEvent],
    ) -> None:
        """`events`: the output from where `Progress` has the reading begin."""
        self._executions = executions
        self._socket = socket
        self._peer: WebSocketProtocol = socket.scope["state"][PEER]
        self._box = box
        self._id = execution.execution_id
        self._options = options
        self._progress = Progress(execution.delivered, options.received)
        self._events = events
        self._reported = execution.delivered.bytes
        self._joiner = Utf8Joiner()
        self._told = ""  # the reason for lost output, once the client was told
        self._input = InputQueue()
        self._tasks: list[asyncio.Task[None]] = []
        self._feeder: asyncio.Task[None] | None = None  # begun with the first input, for few commands have any
        self._reporter: asyncio.Task[None] | None = None  # begun with the first output
        self._taken = self._progress.sent  # bytes of output that the client has taken, by its last `received` frame
        self._has_taken = asyncio.Event()  # set with every `received` frame
        self._feeding = Feed(is_counted=execution.counts_input)
        self._undelivered = 0  # bytes of input that were received and not handed to the command
        self._sent_before = 0  # bytes of output that were sent when the command stopped reading its input
        self._is_over = False  # whether the command has ended

    async def run(self, replaced: asyncio.Future[None]) -> None:
        """Run until the output ends or the client disconnects, or until `replaced` is done because another client
        has been attached instead. What a client has sent before it disconnected still reaches the command."""
        sender, receiver = self._begin(self._send_output()), self._begin(self._receive())
        try:
            ends = [sender, receiver, self._peer.lost, replaced]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            await self._deliver_rest(receiver, replaced)
        finally:
            for task in self._tasks:
                task.cancel()
            results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect):
                log.error("fault in an attached session", exc_info=result)
        await self._end(replaced)

    def _begin(self, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin a part of the session, which ends with the session."""
        task = asyncio.ensure_future(part)
        self._tasks.append(task)
        return task

    async def _end(self, replaced: asyncio.Future[None]) -> None:
        if replaced.done():
            with suppress(WebSocketDisconnect, RuntimeError):  # the socket is closed already
                await self._socket.close(CLOSE_TRY_AGAIN)
        with suppress(errors.BoxliteError, TimeoutError):
            async with asyncio.timeout(LAST_REPORT_SECONDS):
                await self._report_once()
        if not self._is_over and self._options.takes_input and (self._undelivered or self._peer.in_message):
            with suppress(TimeoutError):
                async with asyncio.timeout(LOSS_SECONDS):
                    await self._lose_input("the client went away in the middle of it")

    # ---- to the client --------------------------------------------------------------------------------

    async def _send_output(self) -> None:
        try:
            async for event in self._events:
                await self._send(event)
        except errors.BoxliteError as exc:
            await self._socket.send_text(frames.error_frame(shown(exc)))
            if self._peer.in_message:  # its rest may be long; such a message is lost
                await self._socket.close(CLOSE_TRY_AGAIN)
            else:
                self._peer.close_gently(CLOSE_TRY_AGAIN)
                await asyncio.wait([self._peer.lost])

    async def _send(self, event: pb.OutputEvent) -> None:
        if event.HasField("chunk"):
            await self._send_bytes(event.chunk.stream, self._joiner.push(event.chunk.stream, event.chunk.data))
        elif event.HasField("dropped_bytes"):
            if missed := self._progress.lost(event.dropped_bytes):
                text = f"{missed} bytes of earlier output are lost: nobody read them in time"
                await self._socket.send_text(frames.error_frame(text, dropped_bytes=missed))
        elif event.HasField("gap"):
            self._progress.gap(event.position)
            self._told = event.gap  # the end repeats it
            await self._socket.send_text(frames.error_frame(event.gap))
        else:
            for stream, data in self._joiner.flush():
                await self._send_bytes(stream, data)
            if event.ended.error_message and event.ended.error_message != self._told:
                await self._socket.send_text(frames.error_frame(event.ended.error_message))
            self._is_over = True
            await self._socket.send_text(frames.exit_frame(event.ended))
            await self._socket.close(CLOSE_NORMAL)
            return
        if not self._joiner.holds:
            self._progress.place(event.position)

    async def _send_bytes(self, stream: int, data: bytes) -> None:
        await self._window_opens()
        if data := self._progress.passes(data):
            await self._socket.send_bytes(frames.output_frame(stream, data) if self._options.channels else data)
            self._peer.ping(self._progress.sent)
            self._reporter = self._reporter or self._begin(self._report())

    async def _window_opens(self) -> None:
        """Wait while the client has as much output before it as it wants to."""
        while self._options.window is not None and self._progress.sent - self._taken >= self._options.window:
            self._has_taken.clear()
            await self._has_taken.wait()

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
        """Receive frames until the client disconnects. Input goes to the queue, so that control frames need not wait
        until the command reads it."""
        while (message := await self._socket.receive())["type"] != "websocket.disconnect":
            if message.get("bytes") is None:
                await self._or_complain(self._control(message["text"]))
            elif self._options.takes_input:
                self._undelivered += len(message["bytes"])
                await self._put(Piece(message["bytes"], message["more"]))
            elif not message["more"]:
                await self._complain("this client is attached without input (stdin=0); what it sends is not taken")
        if self._feeder:
            await self._input.put(Mark.GONE)

    async def _put(self, entry: Piece | Mark) -> None:
        self._feeder = self._feeder or self._begin(self._feed())
        await self._input.put(entry)

    async def _feed(self) -> None:
        """Hand input to the command until the client has gone."""
        while (entry := await self._input.get()) is not Mark.GONE:
            try:
                if isinstance(entry, Piece):
                    await self._executions.write(
                        self._box, self._id, entry.data, self._feeding, more=entry.more, waits=self._may_go_on
                    )
                else:
                    await self._executions.close_input(self._box, self._id, self._feeding)
            except (errors.InvalidStateError, errors.NotFoundError) as exc:
                await self._refused(exc)
            except errors.BoxliteError as exc:
                await self._lose_input(shown(exc))
            if isinstance(entry, Piece):
                self._undelivered -= len(entry.data)

    def _may_go_on(self, idle_calls: int) -> bool:
        """Whether a command that read nothing in so many calls may still go on. It may not if it waits for its output
        to be taken by a client that does not read before the command has taken a large message."""
        if idle_calls == 1:
            self._sent_before = self._progress.sent
        is_stuck = self._progress.sent == self._sent_before and self._peer.is_stuck
        return idle_calls < STUCK_CALLS or not is_stuck

    async def _refused(self, exc: errors.BoxliteError) -> None:
        """Tell the client that the command takes no input, unless the command has ended: the exit frame tells that."""
        with suppress(errors.BoxliteError):
            self._is_over = not await self._executions.is_running(self._box, self._id)
        if not self._is_over:
            await self._complain(shown(exc))

    async def _deliver_rest(self, receiver: asyncio.Task[None], replaced: asyncio.Future[None]) -> None:
        """Hand on what the client has sent before it went away, for as long as the command goes on taking it. In the
        middle of a message that makes no sense any more."""
        self._executions.leave(self._id)
        while not (replaced.done() or self._is_over or self._peer.in_message):
            before = self._undelivered
            busy = [task for task in (receiver, self._feeder) if task and not task.done()]
            if not busy:
                return
            done, _ = await asyncio.wait([*busy, replaced], timeout=REST_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not done and self._undelivered == before and not self._feeding.is_waiting:
                return

    async def _lose_input(self, reason: str) -> None:
        """Tell the worker and the client that input is lost. The worker has the command killed, because it would take
        what it got for the whole."""
        while True:
            try:
                await self._executions.lose_input(self._box, self._id)
                break
            except (errors.InvalidStateError, errors.NotFoundError):
                break  # the command has ended
            except errors.BoxliteError as exc:
                log.warning("execution %s lost input, and its worker cannot be told: %s", self._id, exc.message)
                await asyncio.sleep(RETRY_SECONDS)
        with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):  # the client has gone, or does not read
            async with asyncio.timeout(COMPLAINT_SECONDS):
                await self._complain(f"input is lost: {reason}")

    async def _control(self, text: str) -> None:
        try:
            frame = parse_json(text)
        except ValueError:
            frame = None
        match frame:
            case {"type": "stdin_eof"}:
                if self._options.takes_input:
                    await self._put(Mark.END)
            case {"type": "resize", "cols": int(cols), "rows": int(rows)} if is_size(cols) and is_size(rows):
                await self._executions.resize(self._box, self._id, cols, rows)
            case {"type": "received", "bytes": int(count)} if count >= 0 and count is not True:
                self._taken = max(self._taken, count)
                self._has_taken.set()
            case {"type": "signal", "sig": int(number)} if 1 <= number <= 64 and number is not True:
                await self._executions.signal(self._box, self._id, number)
            case _:
                raise errors.InvalidArgumentError(
                    'unknown control frame; known are {"type":"stdin_eof"}, '
                    '{"type":"resize","cols":N,"rows":N}, {"type":"signal","sig":N} and {"type":"received","bytes":N}'
                )

    async def _or_complain(self, act: Coroutine[Any, Any, None]) -> None:
        """Await `act`, and send its error as a frame. An act that comes after the command's end is ignored: the exit
        frame is on its way."""
        try:
            await act
        except (errors.InvalidStateError, errors.NotFoundError):
            pass
        except errors.BoxliteError as exc:
            await self._complain(shown(exc))

    async def _complain(self, text: str) -> None:
        if not self._peer.is_closing:
            await self._socket.send_text(frames.error_frame(text))


def is_size(number: int) -> bool:
    """Whether a terminal can have this many columns or rows. JSON's `true` is a number to Python, and is none here."""
    return 1 <= number <= 65535 and number is not True
