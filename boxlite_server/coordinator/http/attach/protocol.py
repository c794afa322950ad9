"""The WebSocket protocol below the application: input, pings, acknowledgements, and the detection of dead peers.

A binary message is handed on in pieces as it comes, since it may have any size; a message of text, which controls the
command, is handed on whole.

A pong means that the client has received everything sent before the ping that it answers, whatever proxies stand
between. So each piece of output is followed by a ping that carries the number of bytes sent so far.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State

from .... import errors
from ..connections import Connections, is_silent
from . import frames
from .fragments import Fragmenter

PEER = "peer"  # key of the scope's state: the connection's WebSocketProtocol

PIECE_BYTES = 256 * 1024  # of a binary message, handed on at once
MAX_TEXT_BYTES = 1024 * 1024  # of a message of text
_MAX_BACKLOG = 1024 * 1024  # bytes of pongs that the client does not read
_COUNT = struct.Struct("!Q")  # the payload of a ping after output; uvicorn's own pings have another length


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Pings right after the upgrade, because released clients give up on a socket that is silent for 10 s."""

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._registry = server_state
        self.app_state = {**self.app_state, PEER: self}
        self.unread, self.unread_since = 0, self.loop.time()  # see Connections
        self.lost: asyncio.Future[None] = self.loop.create_future()  # done at the end of the connection
        self.acknowledged = 0  # the highest count that the client has answered with a pong
        self.is_closing = False  # whether the closing handshake has begun, see `close_gently`
        self.news = asyncio.Event()  # set with every change of `acknowledged`
        self._fragmenter = Fragmenter(PIECE_BYTES)
        self.conn.max_message_size, self.conn.max_fragment_size = None, PIECE_BYTES

    @property
    def in_message(self) -> bool:
        """Whether the client has begun a binary message and not ended it."""
        opcode = self._fragmenter.opcode
        goes_on = opcode == Opcode.CONT or self.conn.current_size is not None
        return opcode == Opcode.BINARY or (self.curr_msg_data_type == "bytes" and goes_on)

    @property
    def is_stuck(self) -> bool:
        """Whether the client takes no output while it is in the middle of a large message, as released SDKs do."""
        return self.conn.current_size is not None and not self.writable.is_set()

    def ping(self, count: int) -> None:
        """Ask the client to acknowledge the `count` bytes of output sent so far."""
        if not self.close_sent and not self.is_closing and not self.transport.is_closing():
            self.conn.send_ping(_COUNT.pack(count))
            self.transport.write(b"".join(self.conn.data_to_send()))

    def close_gently(self, code: int) -> None:
        """Begin the closing handshake, and go on handing over what the client sends until it answers."""
        if not self.close_sent and not self.is_closing and not self.transport.is_closing():
            self.is_closing = True
            self.conn.send_close(code)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def is_gone(self) -> bool:
        return False  # `send_keepalive_ping` looks after that

    # ---- overrides ------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Have the connection end, since the server does. A closing handshake that has begun goes on, for as long as
        its timer says; no other one can be begun then."""
        if self.close_sent or not self.handshake_complete or self.conn.state is State.OPEN:
            super().shutdown()
        elif not self.is_closing:
            self.transport.close()

    def handle_bytes(self, event: Frame) -> None:
        self.curr_msg_data_type = "bytes"
        self._hand_on(event)

    def handle_text(self, event: Frame) -> None:
        if self._fits(len(event.data)):
            super().handle_text(event)

    def handle_cont(self, event: Frame) -> None:
        if self.curr_msg_data_type == "bytes":
            self._hand_on(event)
        elif self._fits(sum(map(len, self.frames)) + len(event.data)):
            self._join(event)

    def _hand_on(self, event: Frame) -> None:
        """Give the application a piece of a binary message: `more` says whether the message goes on. No more is read
        from the connection until the application has taken it."""
        if self.close_sent:
            return
        piece: Any = {"type": "websocket.receive", "bytes": bytes(event.data), "more": not event.fin}
        self.queue.put_nowait(piece)
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _fits(self, size: int) -> bool:
        """Whether a message of text may have `size` bytes; if not, the connection is closed."""
        if size > MAX_TEXT_BYTES and not self.close_sent:
            text = f"a message of text has at most {MAX_TEXT_BYTES} bytes; input goes into binary messages"
            self.conn.send_text(frames.error_frame(text).encode())
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG)
            self.handle_parser_exception()
        return size <= MAX_TEXT_BYTES

    def connection_lost(self, exc: Exception | None) -> None:
        self.end()
        super().connection_lost(exc)

    def end(self) -> None:
        """Have the session on this connection end."""
        if not self.lost.done():
            self.lost.set_result(None)

    def handle_connect(self, event: Request) -> None:
        if self.conn.accept(event).status_code == 101:
            super().handle_connect(event)
        else:
            self._refuse(self.conn.handshake_exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(self._fragmenter.push(data) if self.handshake_initiated else data)
        if (
            not self.handshake_initiated and not self.transport.is_closing()
        ):  # the first bytes are a whole head, which HttpProtocol has read already
            self._refuse(self.conn.handshake_exc)

    def _refuse(self, reason: Exception | None) -> None:
        self.handshake_complete = self.close_sent = True
        error = errors.InvalidArgumentError(f"this is not a WebSocket handshake: {reason}")
        self._registry.refuse(self, error)
        self.transport.close()

    def _join(self, event: Frame) -> None:
        """Join the pieces of a message of text as they come: small ones would cost many times their size."""
        if not isinstance(self.frames[0], bytearray):
            self.frames = [bytearray(b"".join(self.frames))]  # type: ignore[list-item]
        self.frames[0] += event.data
        if event.fin:
            self.frames = [bytes(self.frames[0])]
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not _is_utf8(b"".join(self.frames)):
            self.conn.send_close(1007)
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def start_keepalive(self) -> None:
        self.send_keepalive_ping()

    def send_keepalive_ping(self) -> None:
        if is_silent(self.transport.get_extra_info("socket")):
            self.transport.abort()
        elif not self.is_closing:
            super().send_keepalive_ping()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # the upgrade was refused; otherwise uvicorn logs an incomplete handshake

    def handle_pong(self, event: Frame) -> None:
        if len(event.data) == _COUNT.size:
            (count,) = _COUNT.unpack(event.data)
            if count > self.acknowledged:
                self.acknowledged = count
                self.news.set()
        else:
            super().handle_pong(event)

    def handle_ping(self) -> None:
        if self.transport.get_write_buffer_size() > _MAX_BACKLOG:
            self.transport.abort()
        else:
            super().handle_ping()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
