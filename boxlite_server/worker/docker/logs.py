"""What a container's main command has said, from the engine's own log."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ..commands import STDERR, STDOUT
from .engine import Engine, engine_errors

_RECEIVE = 65536  # bytes at once


class DockerLog:
    """The `LogReader` of a container.

    Output comes in frames of 8 header bytes (stream, 3 zeros, length), or plain if the container has a terminal.
    """

    def __init__(
        self,
        engine: Engine,
        container: dict[str, Any],
        tail: int | None = None,
        follow: bool = False,
        *,
        since: float | None = None,
        until: float | None = None,
        timestamps: bool = False,
    ) -> None:
        """`tail`: only so many of the last lines. `since`, `until`: only what was said between these Unix times. With
        `timestamps`, each line begins with its time."""
        params = {"stdout": 1, "stderr": 1, "follow": int(follow), "tail": "all" if tail is None else tail}
        params["timestamps"] = int(timestamps)
        params |= {key: f"{time:.6f}" for key, time in (("since", since), ("until", until)) if time is not None}
        with engine_errors("cannot read the log"):
            # The client library's own call loses which stream a piece belongs to, or the order of the streams.
            self._answer = engine.call("GET", f"/containers/{container['Id']}/logs", params, stream=True).check()
        if follow:
            self._answer.never_time_out()  # the log lasts as long as somebody reads it
        self._framed = not container["Config"]["Tty"]
        self._source, self._left = STDOUT, 0

    def read(self) -> tuple[int, bytes] | None:
        if self._framed and not self._left:
            header = self._exactly(8)
            if header is None:
                return None
            self._source = STDOUT if header[0] == 1 else STDERR
            self._left = int.from_bytes(header[4:], "big")
        data = self._answer.read(min(self._left, _RECEIVE) if self._framed else _RECEIVE)
        self._left -= len(data)
        return (self._source, data) if data else None

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            piece = self._answer.read(size - len(data))
            if not piece:
                return None
            data += piece
        return data

    def close(self) -> None:
        self._answer.abort()


def said_before(engine: Engine, container: dict[str, Any]) -> dict[int, int]:
    """How many bytes a running container said in its former runs, by stream.

    The log holds the time of each piece, as taken by the engine. The last piece of a former run may be dated shortly
    after the recorded end of that run, and the first piece of the present run shortly before its recorded start. So
    this counts what was said up to the middle between that end and that start.
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
    """The Unix time of a timestamp in RFC 3339; negative for the year 1, by which the engine means never."""
    return datetime.fromisoformat(timestamp).timestamp()
