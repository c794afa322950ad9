"""What a container has said, from the engine's own log."""

from __future__ import annotations

import http.client
import socket
from contextlib import suppress
from typing import Any

from .docker_engine import Engine, engine_errors
from .runtime import STDERR, STDOUT

_RECEIVE = 65536


class DockerLog:
    """A `LogReader`. Output comes in frames of 8 header bytes (stream, 3 zeros, length), or plain from a terminal."""

    def __init__(self, engine: Engine, container: dict[str, Any], tail: int | None, follow: bool) -> None:
        api = engine.api
        params = {"stdout": 1, "stderr": 1, "follow": int(follow), "tail": "all" if tail is None else tail}
        with engine_errors("cannot read the log"):
            # The SDK's own call loses which stream a piece belongs to, or the order of the streams.
            url = f"{api.base_url}/v{api.api_version}/containers/{container['Id']}/logs"
            self._response = api.get(url, params=params, stream=True, timeout=None)
            api._raise_for_status(self._response)
        self._body: http.client.HTTPResponse = self._response.raw._fp
        self._socket: socket.socket = self._body.fp.raw._sock
        self._framed = not container["Config"]["Tty"]
        self._source, self._left = STDOUT, 0

    def read(self) -> tuple[int, bytes] | None:
        if self._framed and not self._left:
            header = self._exactly(8)
            if header is None:
                return None
            self._source = STDOUT if header[0] == 1 else STDERR
            self._left = int.from_bytes(header[4:], "big")
        data = self._some(min(self._left, _RECEIVE) if self._framed else _RECEIVE)
        self._left -= len(data)
        return (self._source, data) if data else None

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            piece = self._some(size - len(data))
            if not piece:
                return None
            data += piece
        return data

    def _some(self, size: int) -> bytes:
        try:
            return self._body.read1(size)
        except (OSError, ValueError, http.client.HTTPException):
            return b""  # closed

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
