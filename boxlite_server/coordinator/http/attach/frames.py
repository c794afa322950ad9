"""How output looks to clients: pieces that are whole UTF-8, WebSocket frames, server-sent events.

Released clients turn each piece into text by itself, so a piece must not end inside a character.
"""

from __future__ import annotations

import json

from ...._gen import worker_pb2 as pb

PING_SECONDS = 15.0


class Utf8Joiner:
    """Holds back the beginning of a character at the end of a piece, up to 3 bytes, for the next piece."""

    def __init__(self) -> None:
        self._held: dict[int, bytes] = {}

    def push(self, stream: int, data: bytes) -> bytes:
        """What can be sent now; bytes that are no UTF-8 at all pass as they are."""
        data = self._held.pop(stream, b"") + data
        cut = len(data) - _unfinished(data)
        if cut < len(data):
            self._held[stream] = data[cut:]
        return data[:cut]

    @property
    def holds(self) -> bool:
        """Whether anything is held back."""
        return bool(self._held)

    def flush(self) -> list[tuple[int, bytes]]:
        """What is still held, per stream."""
        rest, self._held = list(self._held.items()), {}
        return rest


def _unfinished(data: bytes) -> int:
    """How many bytes at the end of `data` begin a character that is not complete: 0 to 3."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0b1100_0000 == 0b1000_0000:  # a continuation: look further back for its start
            continue
        length = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
        return back if length > back else 0
    return 0


# ---- WebSocket ------------------------------------------------------------------------------------------


def output_frame(stream: int, data: bytes) -> bytes:
    """A binary frame: the channel, 1 for stdout and 2 for stderr, then the bytes."""
    return bytes([stream]) + data


def exit_frame(ended: pb.Execution) -> str:
    return json.dumps({"type": "exit", "exit_code": ended.exit_code})


def error_frame(message: str, **more: int) -> str:
    return json.dumps({"type": "error", "message": message, **more})


# ---- server-sent events ---------------------------------------------------------------------------------
