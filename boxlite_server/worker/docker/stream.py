"""A connection that the engine hands over: a command's output and input."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from contextlib import suppress
from typing import Any

from ..commands import STDERR, STDOUT

_RECEIVE = 256 * 1024
_HEADER = 8  # bytes, of a frame of output
_MAX_FRAME = 128 * 1024  # bytes that certainly fit the socket's own buffer; the engine's frames are smaller


class Stream:
    """A connection that the engine has handed over: a command's output and input.

    `framed`: output comes in frames of 8 header bytes (stream, 3 zeros, length); else plain (a terminal). Frames are
    taken off the connection whole, so that another process can go on with it at any moment.
    """

    def __init__(self, handed_over: Any, framed: bool) -> None:
        # The response must stay referenced: its collection would close the socket. Its reader may hold
        # the first bytes, received together with the HTTP header.
        self._response = handed_over._response
        self._socket: socket.socket = handed_over._sock
        reader = self._response.raw._fp.fp
        self._socket.settimeout(0)
        self._begin(framed, reader.read(len(reader.peek())) or b"")

    @classmethod
    def inherited(cls, descriptor: int, framed: bool) -> Stream:
        """One that a former process of ours has left; it owns the descriptor from now on."""
        stream = cls.__new__(cls)
        stream._response = None
        stream._socket = socket.socket(fileno=descriptor)
        stream._begin(framed, b"")
        return stream

    def _begin(self, framed: bool, first: bytes) -> None:
        self._socket.settimeout(None)
        self._framed = framed
        self._buffer = first
        self._pieces: deque[tuple[int, bytes]] = deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> tuple[int, bytes] | None:
        """The next piece as (STDOUT or STDERR, data); blocks. None at the end."""
        if not self._framed:
            return (STDOUT, self._take()) if self._fill(1) else None
        while not self._pieces:
            frames = self._first_frame() if self._buffer else self._whole_frames()
            if not frames:
                return None
            at = 0
            while at < len(frames):
                end = at + _HEADER + int.from_bytes(frames[at + 4 : at + _HEADER], "big")
                if end > at + _HEADER:
                    self._pieces.append((STDOUT if frames[at] == 1 else STDERR, frames[at + _HEADER : end]))
                at = end
        return self._pieces.popleft()

    def _first_frame(self) -> bytes:
        """The next frame, of which a part came together with the header of the answer; empty: it is cut off."""
        for size in (_HEADER, 0):
            size = size or _frame_size(self._buffer)
            while len(self._buffer) < size:  # no byte more than that
                if not self._fill(len(self._buffer) + 1, size - len(self._buffer)):
                    return b""
        return self._take(size)

    def _whole_frames(self) -> bytes:
        """All frames that have come whole, at least one; empty at the end. Looks before it takes."""
        size = _HEADER
        try:
            while True:
                seen = self._socket.recv(max(size, _RECEIVE), socket.MSG_PEEK)
                if len(seen) < size:
                    seen = self._socket.recv(size, socket.MSG_PEEK | socket.MSG_WAITALL)
                if len(seen) < size:
                    return b""  # cut off
                whole = 0
                while len(seen) - whole >= _HEADER:
                    size = _frame_size(seen[whole : whole + _HEADER])
                    if whole + size > len(seen):
                        break
                    whole += size
                if whole or size > _MAX_FRAME:
                    return self._socket.recv(whole or size, socket.MSG_WAITALL)
        except _OutOfStepError:
            # A former process died in the midst of a frame. The command must not wait for a reader for ever.
            while self._fill(1):
                self._take()
            return b""
        except OSError:
            return b""

    def _take(self, limit: int = _RECEIVE) -> bytes:
        data, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return data

    def _fill(self, size: int, limit: int = _RECEIVE) -> bool:
        """Have at least `size` bytes in the buffer, taking at most `limit` at once; False when they do not come any
        more."""
        while len(self._buffer) < size:
            try:
                data = self._socket.recv(limit)
            except OSError:
                return False
            if not data:
                return False
            self._buffer += data
        return True

    def readable(self, timeout: float) -> bool:
        """Whether output (or its end) has come, waiting at most `timeout` seconds."""
        if self._buffer or self._pieces:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def write(self, data: bytes, timeout: float) -> int:
        """Send for at most `timeout` seconds; the bytes sent. Raises OSError when the other end is gone."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        view = memoryview(data)
        sent = 0
        while sent < len(data):
            try:
                sent += self._socket.send(view[sent:], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    break
        return sent

    def close_write(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Ends a blocked `read`, too. The descriptor itself goes with the last reference, so that no
        other thread can ever use its number for something else."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class _OutOfStepError(OSError):
    """What comes is no frame."""


def _frame_size(beginning: bytes) -> int:
    """Of the frame that begins so."""
    if beginning[0] > 2 or beginning[1:4] != b"\0\0\0":
        raise _OutOfStepError
    return _HEADER + int.from_bytes(beginning[4:_HEADER], "big")
