"""Bounds what open connections may cost: their number, and the time that each may be silent."""

from __future__ import annotations

import resource
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from uvicorn.server import ServerState

from ... import errors, ids
from .errors import raw_response

MAX_CONNECTIONS = 10_000
SPARE_CONNECTIONS = 64  # beyond the limit, each of which is answered with a refusal

# A client whose host acknowledges no segment for this long is gone. The kernel's own TCP_USER_TIMEOUT would also
# end a client that is alive but does not read, and a deadline for pongs would end a client whose input the command
# does not read.
SILENCE_MS = 25_000

# A client over TLS answers the end of the encrypted connection, once all that was sent has come. Who does not is given
# up after this long.
GOODBYE_SECONDS = 10.0


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections there may be, and how long, in seconds, a connection may be silent."""

    count: int = MAX_CONNECTIONS
    head: float = 30.0  # from the first byte of a request to the last one of its headers
    body: float = 120.0  # between two pieces of a request's body
    idle: float = 75.0  # between two requests, and before the first one
    unread: float = 300.0  # while the client takes nothing of what was sent to it


class Connection(Protocol):
    """What the protocols of HTTP and WebSocket have in common."""

    transport: Any
    client: tuple[str, int] | None  # the address of its other end
    unread: int  # bytes that the last sweep found unsent
    unread_since: float  # when the client last took any of them

    def is_gone(self) -> bool: ...


class IdleConnection(Connection, Protocol):
    """A connection without a request under way."""

    idle_since: float
    head_since: float | None  # the first byte of an incomplete head; None when there is none

    def time_out(self) -> None: ...


Refused = Callable[[str, int, str], None]  # hears the client's address, the status (0: no answer), the request's id


class Connections(ServerState):
    """All open connections of the server. Times are those of the event loop's clock. `refused` hears of what has come
    that is no request."""

    def __init__(self, limits: ConnectionLimits, refused: Refused = lambda *_: None) -> None:
        super().__init__()
        self.limits = limits
        self.refused = refused
        self.idle: dict[IdleConnection, None] = {}  # the longest idle first
        self._ending: dict[Any, float] = {}  # connections of which nothing is left but the client's goodbye, since when
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = limits.count if files == resource.RLIM_INFINITY else min(limits.count, max(files * 3 // 4, 1))

    def has_room(self) -> bool:
        """Whether one more connection, which is counted already, may be served. Where the limit is reached, the
        connection that has been idle for longest is closed for it."""
        if len(self.connections) <= self._most:
            return True
        for longest in self.idle:
            del self.idle[longest]
            transport = longest.transport
            (transport.abort if transport.get_extra_info("sslcontext") else transport.close)()
            return True
        return False

    def is_overrun(self) -> bool:
        """Whether there are too many connections even to refuse them with an answer."""
        return len(self.connections) > self._most + SPARE_CONNECTIONS

    def refuse(self, connection: Connection, error: errors.BoxliteError, *, in_request: bool = False) -> None:
        """Answer what is not a request, or with `in_request` not the rest of one; the connection has to be closed
        then."""
        request_id = ids.request_id()
        connection.transport.write(raw_response(error, request_id))
        if not in_request:
            self.refused(connection.client[0] if connection.client else "", error.status, request_id)

    def abort_idle(self) -> None:
        for idle in list(self.idle):
            idle.transport.abort()

    def sweep(self, now: float) -> None:
        """End the connections that have been silent for too long."""
        for idle in list(self.idle):
            if idle.head_since is not None and now - idle.head_since > self.limits.head:
                idle.time_out()
            elif now - idle.idle_since > self.limits.idle:
                idle.transport.close()
        for connection in list(self.connections):
            if self._is_lost(connection, now):  # type: ignore[arg-type]
                connection.transport.abort()
        self._ending = {each: self._ending.get(each, now) for each in self.connections if _says_goodbye(each)}
        for ending, since in self._ending.items():
            if now - since > GOODBYE_SECONDS:
                ending.transport.abort()

    def _is_lost(self, connection: Connection, now: float) -> bool:
        unread = connection.transport.get_write_buffer_size()
        if not unread or unread < connection.unread or not connection.unread:
            connection.unread_since = now
        connection.unread = unread
        return now - connection.unread_since > self.limits.unread or connection.is_gone()


def _says_goodbye(connection: Any) -> bool:
    return bool(connection.transport.is_closing()) and not connection.transport.get_write_buffer_size()


def is_silent(connection: Any) -> bool:
    """Whether the peer has left several segments, or probes of its closed window, unanswered for SILENCE_MS."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
    # Fields of struct tcp_info in linux/tcp.h.
    retransmits, probes = info[2], info[3]
    (last_ack_ms,) = struct.unpack_from("=I", info, 56)
    return bool(max(retransmits, probes) >= 2 and last_ack_ms > SILENCE_MS)
