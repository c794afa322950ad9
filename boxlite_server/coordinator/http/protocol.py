"""HTTP below the application: answers to bytes that are not a request, which no ASGI application gets to see, and the
bounds of a connection's time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from h11._readers import ChunkedReader, ContentLengthReader
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from ... import errors, ids
from .connections import Connections, is_silent
from .errors import REQUEST_ID, HeadTooLargeError, RequestTimeoutError, error_response

MAX_HEAD_BYTES = 64 * 1024
WRITE_BYTES = 64 * 1024  # that wait for a client over TLS before the application does
AHEAD_BYTES = 512 * 1024  # of a body, read while the application is busy with what came before

# Where h11's readers of bodies count the bytes that are still to come: of the body, or of its chunk.
_LEFT = {ContentLengthReader: "_remaining", ChunkedReader: "_bytes_in_chunk"}


class _Connection(h11.Connection):
    """Refuses a request whose end two readers may see in different places, as RFC 9112 (6.1, 6.3) has it: a proxy in
    front may take for a request what this server takes for a body, or the other way round.

    The head of an answer goes out together with what follows it. `on_head` is called when there is a head, which
    `take_head` returns if nothing has followed it yet.
    """

    def __init__(self, on_head: Callable[[], object]) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._on_head = on_head
        self._head = b""

    def take_head(self) -> bytes:
        head, self._head = self._head, b""
        return head

    def send(self, event: Any) -> bytes | None:  # type: ignore[override]
        data: bytes | None = super().send(event)
        if type(event) is h11.Response:
            self._head = data or b""
            self._on_head()
            return b""
        return self.take_head() + data if self._head and data is not None else data

    def next_event(self) -> Any:
        event = super().next_event()
        if type(event) is h11.Request:
            names = [name for name, _ in event.headers]
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
                self._process_error(self.their_role)
                raise h11.RemoteProtocolError("the length of the body is ambiguous")
        return event


class HttpProtocol(H11Protocol):
    """HTTP/1.1 whose refusals carry the API's error body, and whose connections are bounded by `server_state`."""

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn: _Connection = _Connection(lambda: self.loop.call_soon(self._send_head))
        self._registry = server_state
        self._is_refused = False
        self.idle_since = self.unread_since = self.loop.time()
        self.head_since: float | None = None
        self.unread = 0

    def send_400_response(self, msg: str) -> None:
        """Answer and close. Uvicorn says only that h11 refused the request; the size of the buffer tells why."""
        error: errors.BoxliteError = errors.InvalidArgumentError("this is not an HTTP/1.1 request")
        if len(self.conn.trailing_data[0]) > MAX_HEAD_BYTES:
            error = HeadTooLargeError(f"request line and headers are larger than {MAX_HEAD_BYTES} bytes")
        self._refuse(error)

    def time_out(self) -> None:
        """Answer a client that does not finish the head of its request, or the rest of a body that was refused."""
        self._refuse(RequestTimeoutError(f"the request was not complete within {self._registry.limits.head:g} s"))

    def is_gone(self) -> bool:
        """Whether the client of a long answer has vanished."""
        return self._is_answering() and is_silent(self.transport.get_extra_info("socket"))

    def _send_head(self) -> None:
        """Send the head of an answer whose body comes later."""
        if head := self.conn.take_head():
            self.transport.write(head)

    def _refuse(self, error: errors.BoxliteError) -> None:
        self._registry.idle.pop(self, None)
        if self._is_answering():
            self.transport.abort()
            return
        if self._is_busy():  # the application is told that the client is gone
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else the answer to this request has gone out
            self._registry.refuse(self, error, in_request=self._is_busy())
        self.transport.close()

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_answering(self) -> bool:
        return self._is_busy() and self.cycle.response_started

    # ---- overrides ------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Have the connection end, since the server does. h11 knows nothing of a refusal, after which the connection
        ends anyway."""
        if not self.transport.is_closing():
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Hand what is only a body on to the application as it is: on its way through h11 it would be copied five
        times. h11 counts it as read."""
        reader, count = self.conn._reader, len(data)
        left = getattr(reader, _LEFT.get(type(reader), ""), 0)
        if count < left and not self.conn.trailing_data[0] and self._is_busy() and not self.cycle.disconnected:
            setattr(reader, _LEFT[type(reader)], left - count)
            self.cycle.body = self.cycle.body + data if self.cycle.body else data  # type: ignore[assignment]
            if len(self.cycle.body) > AHEAD_BYTES:
                self.flow.pause_reading()
            self.cycle.message_event.set()
        else:
            super().data_received(data)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if transport.get_extra_info("sslcontext"):
            _tame(transport)
        super().connection_made(transport)
        if self._registry.has_room():
            self._registry.idle[self] = None
        elif self._registry.is_overrun():
            transport.abort()
        else:
            self._is_refused = True
            self.app = _answer_that_it_is_full
            self._registry.idle[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.idle.pop(self, None)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self._is_busy():
            self._registry.idle.pop(self, None)
            self.head_since = None
        elif self.head_since is None and (self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]):
            self.head_since = self.loop.time()

    def on_response_complete(self) -> None:
        self.head_since = None
        super().on_response_complete()
        if not self._is_busy() and not self.transport.is_closing():
            self.idle_since = self.loop.time()
            self._registry.idle[self] = None

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        if self._is_refused:
            self._refuse(_full())
            return
        self._registry.idle.pop(self, None)
        super().handle_websocket_upgrade(event)


def _tame(transport: Any) -> None:
    """Have a transport of asyncio's TLS behave as one of TCP: it buffers as much, and may be closed twice. By itself it
    loses its connection at the second `close`, and every question after that fails."""
    transport.set_write_buffer_limits(high=WRITE_BYTES)
    close = transport.close
    transport.close = lambda: None if transport.is_closing() else close()


def _full() -> errors.BoxliteError:
    return errors.BusyError("this coordinator has as many connections as it can serve; try again")


async def _answer_that_it_is_full(scope: Scope, receive: Receive, send: Send) -> None:
    response = error_response({**scope, REQUEST_ID: ids.request_id()}, _full())
    response.headers.update({"Connection": "close", "Retry-After": "5"})
    await response(scope, receive, send)
