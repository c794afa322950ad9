"""A command's output and input, over a connection that the engine has handed over."""

from __future__ import annotations

import itertools
import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from operator import itemgetter
from typing import IO

from ..commands import END_OF_TRANSMISSION, STDERR, STDOUT
from .engine import Connection

_RECEIVE = 256 * 1024  # bytes at once
_HEADER = 8  # bytes at the beginning of a frame
_MAX_FRAME = 128 * 1024  # bytes that certainly fit the socket's own buffer; the engine's frames are smaller


class Stream:
    """A command's output and input.

    `framed`: output comes in frames of 8 header bytes (stream, 3 zeros, length); otherwise it comes plain, from a
    terminal. Frames are taken off the connection whole, so that another process can go on with it at any moment.
    """

    def __init__(self, connection: Connection, framed: bool) -> None:
        self._connection = connection
        self._framed = framed
        self._buffer = connection.received
        self._pieces: deque[tuple[int, bytes]] = deque()

    @classmethod
    def inherited(cls, descriptor: int, framed: bool) -> Stream:
        """A connection that a former worker process has left. The stream owns the descriptor from now on."""
        connection = socket.socket(fileno=descriptor)
        connection.settimeout(None)
        return cls(Connection(connection), framed)

    def fileno(self) -> int:
        return self._connection.socket.fileno()

    def read(self) -> tuple[int, bytes] | None:
        """The next piece as (STDOUT or STDERR, data); blocks. None at the end."""
        if not self._framed:
            return (STDOUT, self._take()) if self._fill(1) else None
        while not self._pieces:
            frames = self._first_frame() if self._buffer else self._whole_frames()
            if not frames:
                return None
            self._pieces.extend(_joined(frames))
        return self._pieces.popleft()

    def _first_frame(self) -> bytes:
        """The next frame, of which a part came together with the HTTP header; empty: the frame is cut off."""
        for size in (_HEADER, 0):
            size = size or _frame_size(self._buffer)
            while len(self._buffer) < size:  # and not one byte more
                if not self._fill(len(self._buffer) + 1, size - len(self._buffer)):
                    return b""
        return self._take(size)

    def _whole_frames(self) -> bytes:
        """All frames that have come whole, at least one; empty at the end. Peeks, and takes only whole frames."""
        size = _HEADER
        try:
            while True:
                seen = self._connection.socket.recv(max(size, _RECEIVE), socket.MSG_PEEK)
                if len(seen) < size:
                    seen = self._connection.socket.recv(size, socket.MSG_PEEK | socket.MSG_WAITALL)
                if len(seen) < size:
                    return b""  # cut off
                whole = 0
                while len(seen) - whole >= _HEADER:
                    size = _frame_size(seen[whole : whole + _HEADER])
                    if whole + size > len(seen):
                        break
                    whole += size
                if whole or size > _MAX_FRAME:
                    return self._connection.socket.recv(whole or size, socket.MSG_WAITALL)
        except _OutOfStepError:
            # A former process died in the middle of a frame. Discard all output: without a reader the command would
            # wait for ever.
            while self._fill(1):
                self._take()
            return b""
        except OSError:
            return b""

    def _take(self, limit: int = _RECEIVE) -> bytes:
        data, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return data

    def _fill(self, size: int, limit: int = _RECEIVE) -> bool:
        """Receive, at most `limit` bytes at once, until the buffer holds `size` bytes; False if the connection ends
        before."""
        while len(self._buffer) < size:
            try:
                data = self._connection.socket.recv(limit)
            except OSError:
                return False
            if not data:
                return False
            self._buffer += data
        return True

    def readable(self, timeout: float | None, other: int | None = None) -> bool:
        """Whether output, or its end, has come; waits at most `timeout` seconds, None: for ever, and no longer than
        until the descriptor `other` can be read."""
        if self._buffer or self._pieces:
            return True
        poll = select.poll()
        poll.register(self._connection.socket, select.POLLIN)
        if other is not None:
            poll.register(other, select.POLLIN)
        ready = poll.poll(None if timeout is None else timeout * 1000)
        return any(descriptor == self._connection.socket.fileno() for descriptor, _ in ready)

    def write(self, data: bytes, timeout: float) -> int:
        """Send for at most `timeout` seconds. Returns the number of bytes sent. Raises OSError when the other end is
        gone."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._connection.socket, select.POLLOUT)
        view = memoryview(data)
        sent = 0
        while sent < len(data):
            try:
                sent += self._connection.socket.send(view[sent:], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    break
        return sent

    def close_write(self) -> None:
        """End the input; output can still be read."""
        with suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Shut the connection down, which ends a blocked `read`.

        The descriptor is closed with the last reference, so that its number cannot mean something else to a thread
        that still uses it.
        """
        with suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)


def end_input(stream: Stream, tty: bool, timeout: float) -> bool:
    """End a command's input, within `timeout` seconds. Returns whether that was done."""
    if not tty:
        stream.close_write()
        return True
    try:
        return stream.write(END_OF_TRANSMISSION, timeout) == len(END_OF_TRANSMISSION)
    except OSError:
        return True  # the command has ended


def can_be_read(file: IO[bytes]) -> bool:
    """Whether a read would not block now; of a pidfd: whether the process has ended."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))


class _OutOfStepError(OSError):
    """The next bytes are not the beginning of a frame."""


def _frame_size(beginning: bytes) -> int:
    """The size, header included, of the frame with this beginning."""
    if beginning[0] > 2 or beginning[1:4] != b"\0\0\0":
        raise _OutOfStepError
    return _HEADER + int.from_bytes(beginning[4:_HEADER], "big")


def _joined(frames: bytes) -> Iterator[tuple[int, bytes]]:
    """The content of whole frames, neighbours of one stream joined, as (STDOUT or STDERR, data)."""
    pieces: list[tuple[int, memoryview]] = []
    view, at = memoryview(frames), 0
    while at < len(frames):
        end = at + _HEADER + int.from_bytes(view[at + 4 : at + _HEADER], "big")
        pieces.append((STDOUT if frames[at] == 1 else STDERR, view[at + _HEADER : end]))
        at = end
    for stream, group in itertools.groupby(pieces, key=itemgetter(0)):
        if data := b"".join(piece for _, piece in group):
            yield stream, data
