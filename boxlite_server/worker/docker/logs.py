"""What a container has said, from the engine's own log."""

from __future__ import annotations

import http.client
import socket
from contextlib import suppress
from datetime import datetime
from typing import Any

from ..commands import STDERR, STDOUT
from .engine import CALL_TIMEOUT, Engine, engine_errors

_RECEIVE = 65536


class DockerLog:
    """A `LogReader`. Output comes in frames of 8 header bytes (stream, 3 zeros, length), or plain from a terminal."""

    def __init__(
        self,
        engine: Engine,
        container: dict[str, Any],
        tail: int | None = None,
        follow: bool = False,
        until: float | None = None,
    ) -> None:
        """`until`: in Unix seconds."""
        api = engine.api
        params = {"stdout": 1, "stderr": 1, "follow": int(follow), "tail": "all" if tail is None else tail}
        if until is not None:
            params["until"] = f"{until:.6f}"
        with engine_errors("cannot read the log"):
            # The SDK's own call loses which stream a piece belongs to, or the order of the streams.
            url = f"{api.base_url}/v{api.api_version}/containers/{container['Id']}/logs"
            self._response = api.get(url, params=params, stream=True, timeout=CALL_TIMEOUT)
            api._raise_for_status(self._response)
        self._body: http.client.HTTPResponse = self._response.raw._fp
        self._socket: socket.socket = self._body.fp.raw._sock
        if follow:
            self._socket.settimeout(None)  # it lasts as long as somebody reads
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


def said_before(engine: Engine, container: dict[str, Any]) -> dict[int, int]:
    """How much a running container said in its former runs, in bytes per stream.

    The log tells only the time of each piece, as taken by the engine: a former run's last piece has it shortly
    after that run's end, and this run's first shortly before what is recorded as its start. Halfway is safe.
    """
    sizes = {STDOUT: 0, STDERR: 0}
    finished, started = (unix_time(container["State"][name]) for name in ("FinishedAt", "StartedAt"))
    if finished > 0:
        log = DockerLog(engine, container, until=(finished + started) / 2)
        while (piece := log.read()) is not None:
            sizes[piece[0]] += len(piece[1])
        log.close()
    return sizes


def unix_time(timestamp: str) -> float:
    """Of RFC 3339; negative for the year 1, which means never."""
    return datetime.fromisoformat(timestamp).timestamp()
