"""The WebSocket frames that an attached client is sent."""

from __future__ import annotations

import json

from ...._gen import worker_pb2 as pb


def output_frame(stream: int, data: bytes) -> bytes:
    """Build a binary frame: the channel byte, 1 for stdout and 2 for stderr, then `data`."""
    return bytes([stream]) + data


def exit_frame(ended: pb.Execution) -> str:
    return json.dumps({"type": "exit", "exit_code": ended.exit_code})


def error_frame(message: str, **more: int) -> str:
    """Build a text frame that tells the client of an error. `more`: fields beside `type` and `message`."""
    return json.dumps({"type": "error", "message": message, **more})
