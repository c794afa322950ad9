"""A queue of input between an attached client and the command, bounded in bytes."""

from __future__ import annotations

import asyncio
from collections import deque

INPUT_BYTES = 1024 * 1024  # a queue that holds this much takes no more
INPUT_PIECE = 256 * 1024  # bytes; small pieces are joined up to this size

END = None  # the end of the input, as an entry of the queue


class InputQueue:
    """Pieces of input on their way to the command; `END` closes the input."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | None] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def put(self, piece: bytes | None) -> None:
        """Append a piece or `END`; waits while the queue is full."""
        await self._has_room.wait()
        self._pieces.append(piece)
        self._bytes += len(piece or b"")
        if self._bytes >= INPUT_BYTES:
            self._has_room.clear()
        self._filled.set()

    async def get(self) -> bytes | None:
        """Return the next piece, with small ones joined, or `END`; waits while the queue is empty."""
        await self._filled.wait()
        joined = [self._pieces.popleft()]
        size = len(joined[0] or b"")
        while joined[0] is not END and self._pieces and (piece := self._pieces[0]) is not END:
            if size + len(piece) > INPUT_PIECE:
                break
            joined.append(self._pieces.popleft())
            size += len(piece)
        if not self._pieces:
            self._filled.clear()
        self._bytes -= size
        if self._bytes < INPUT_BYTES:
            self._has_room.set()
        return END if joined[0] is END else b"".join(piece for piece in joined if piece)
