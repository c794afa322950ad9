"""One request for one command: what the worker is asked for."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from ... import errors
from ..._gen import worker_pb2 as pb
from ..limits import MAX_RUN_OUTPUT_BYTES, RUN_OUTPUT_BYTES


def run_request(
    start: pb.StartExecutionRequest, request: Mapping[str, Any], *, kept: bool, live: bool = False
) -> pb.RunCommandRequest:
    """The call for a RunCommandRequest of openapi.yaml; `live`: for output as it comes. Raises UnsupportedError,
    InvalidArgumentError."""
    if request.get("tty"):
        raise errors.UnsupportedError("a run has no terminal: start the command with POST …/exec and attach to it")
    limit = min(request.get("max_output_bytes") or (0 if live else RUN_OUTPUT_BYTES), MAX_RUN_OUTPUT_BYTES)
    return pb.RunCommandRequest(start=start, input=_input(request), max_output_bytes=limit, kept=kept)


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
