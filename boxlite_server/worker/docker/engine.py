"""The connection to Docker Engine: client, errors, and raw streams.

With the other `docker_*.py` the only code that knows docker.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import docker
import docker.errors
import docker.utils

from ...errors import (
    EngineError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    ResourceExhaustedError,
)
from ..runtime import STDERR, STDOUT

CALL_TIMEOUT = 60.0  # seconds that an answer may be silent, unless the call says otherwise
STREAM_TIMEOUT = 300.0  # the same where the client library knows no bound: pulls and events
_POOL = 64  # connections kept; more are opened when needed
_RECEIVE = 256 * 1024
_HEADER = 8  # bytes, of a frame of output
_MAX_FRAME = 128 * 1024  # bytes that certainly fit the socket's own buffer; the engine's frames are smaller


def reason(exc: Exception) -> str:
    """What the engine itself says, without the client library's decoration."""
    if isinstance(exc, docker.errors.APIError) and exc.explanation:
        text = exc.explanation
        return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return str(exc)


def is_full(text: str) -> bool:
    """Whether the engine says that its disk is."""
    return any(part in text.lower() for part in ("no space left", "quota exceeded"))


@contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Turns the engine's and the client library's exceptions into ours; `what` names the attempt."""
    try:
        yield
    except docker.errors.APIError as exc:
        text = f"{what}: {reason(exc)}"
        match exc.status_code:
            case 400:
                raise InvalidArgumentError(text) from exc
            case 404:
                raise NotFoundError(text) from exc
            case 409:
                raise InvalidStateError(text) from exc
            case _ if is_full(text):
                raise ResourceExhaustedError(f"{text} (the disk of the container engine is full)") from exc
            case _:
                raise EngineError(text) from exc
    # The HTTP library's exceptions are OSErrors, as are the socket's own.
    except (docker.errors.DockerException, OSError) as exc:
        raise EngineError(f"{what}: the container engine does not answer: {exc}") from exc


class _Client(docker.APIClient):
    """Every call has a timeout: the library gives some of its streams and its hand-overs none."""

    def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if kwargs.setdefault("timeout", self.timeout) is None:
            kwargs["timeout"] = STREAM_TIMEOUT
        return kwargs

    def request(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self.timeout
        return super().request(*args, **kwargs)


class Engine:
    """Docker Engine as DOCKER_HOST and its companions name it, or at `url`. Connects at first use."""

    def __init__(self, url: str | None = None) -> None:
        self._url = url
        self._client: docker.APIClient | None = None
        self._lock = threading.Lock()

    @property
    def api(self) -> Any:  # its published types are incomplete
        """The `docker.APIClient`; raises `EngineError` while the engine cannot be reached."""
        with self._lock:
            if self._client is None:
                with engine_errors("cannot reach the container engine"):
                    self._client = self._connect()
            return self._client

    @property
    def socket_path(self) -> str | None:
        """Where the engine's Unix socket is, if it has one."""
        path = getattr(getattr(self.api, "_custom_adapter", None), "socket_path", None)
        return path if isinstance(path, str) else None

    def close(self) -> None:
        """Drop the connections."""
        with self._lock:
            if self._client is not None:
                self._client.close()

    def _connect(self) -> docker.APIClient:
        options: dict[str, Any] = {"base_url": self._url} if self._url else {**docker.utils.kwargs_from_env()}
        if options.get("tls") or str(options.get("base_url", "")).startswith(("ssh:", "npipe:", "https:")):
            raise EngineError("the worker's engine must be on the worker's host, at a unix or plain tcp socket")
        return _Client(version="auto", timeout=CALL_TIMEOUT, max_pool_size=_POOL, **options)  # type: ignore[arg-type]


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
