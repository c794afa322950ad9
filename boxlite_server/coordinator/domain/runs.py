"""One request for one command: what the worker is asked for, and the whole that becomes of its events."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ... import errors
from ..._gen import worker_pb2 as pb
from ..limits import RUN_OUTPUT_BYTES

STDOUT, STDERR = pb.OUTPUT_STREAM_STDOUT, pb.OUTPUT_STREAM_STDERR
UNREAD = "earlier output was dropped: nobody read it in time"


@dataclass
class Result:
    """A command that has ended. `output` and `dropped` (bytes behind the limit) are by stream."""

    ended: pb.Execution = field(default_factory=pb.Execution)
    output: dict[int, bytearray] = field(default_factory=lambda: {STDOUT: bytearray(), STDERR: bytearray()})
    dropped: dict[int, int] = field(default_factory=lambda: {STDOUT: 0, STDERR: 0})
    loss: str = ""  # why output is missing that was not dropped behind the limit


def run_request(
    start: pb.StartExecutionRequest, request: Mapping[str, Any], *, live: bool, kept: bool
) -> pb.RunCommandRequest:
    """The call for a RunCommandRequest of openapi.yaml. Raises UnsupportedError, InvalidArgumentError."""
    if request.get("tty"):
        raise errors.UnsupportedError("a run has no terminal: start the command with POST …/exec and attach to it")
    limit = request.get("max_output_bytes")
    if limit is None:
        limit = 0 if live else RUN_OUTPUT_BYTES
    return pb.RunCommandRequest(start=start, input=_input(request), max_output_bytes=limit, live=live, kept=kept)


def _input(request: Mapping[str, Any]) -> bytes:
    text, encoded = request.get("stdin"), request.get("stdin_base64")
    if encoded is None:
        return (text or "").encode()
    if text is not None:
        raise errors.InvalidArgumentError("give either 'stdin' or 'stdin_base64'")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise errors.InvalidArgumentError(f"'stdin_base64' is not base64: {exc}") from None


async def collect(events: AsyncIterable[pb.OutputEvent]) -> Result:
    """Wait for the end of a run. Raises what the events raise."""
    result = Result()
    async for event in events:
        if event.HasField("chunk"):
            result.output[event.chunk.stream] += event.chunk.data
        elif event.HasField("cut"):
            result.dropped[event.cut.stream] += event.cut.dropped_bytes
        elif event.HasField("ended"):
            result.ended = event.ended
            return result
        else:
            result.loss = event.gap or UNREAD
    raise errors.UpstreamUnavailableError("the worker broke off the call; nobody knows how the command ended")
