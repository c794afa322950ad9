"""A queue of input between an attached client and the command, bounded in bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum
from typing import NamedTuple

INPUT_BYTES = 1024 * 1024  # a queue that holds this much takes no more
INPUT_PIECE = 256 * 1024  # bytes; small pieces are joined up to this size
_ENTRY_BYTES = 64


class Piece(NamedTuple):
    """Bytes of input. `more`: they belong to a message that goes on with the next piece."""

    data: bytes
    more: bool = False


class Mark(Enum):
    """An entry of the queue that carries no bytes."""

    END = "end"  # of the input: close it
    GONE = "gone"  # the client: nothing follows


class InputQueue:
    """Pieces of input on their way to the command, and marks between them."""

    def __init__(self) -> None:
        self._entries: deque[Piece | Mark] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def put(self, entry: Piece | Mark) -> None:
        """Append an entry; waits while the queue is full."""
        await self._has_room.wait()
        self._entries.append(entry)
        self._count(_size(entry))
        self._filled.set()

    async def get(self) -> Piece | Mark:
        """Return the next entry, with small pieces joined; waits while the queue is empty."""
        await self._filled.wait()
        entry = self._take()
        if isinstance(entry, Piece):
            entry = self._joined(entry)
        if not self._entries:
            self._filled.clear()
        return entry

    def _joined(self, first: Piece) -> Piece:
        pieces, size = [first], len(first.data)
        while self._entries and isinstance(piece := self._entries[0], Piece):
            size += len(piece.data)
            if size > INPUT_PIECE:
                break
            self._take()
            pieces.append(piece)
        return Piece(b"".join(piece.data for piece in pieces), pieces[-1].more)

    def _take(self) -> Piece | Mark:
        entry = self._entries.popleft()
        self._count(-_size(entry))
        return entry

    def _count(self, change: int) -> None:
        self._bytes += change
        if self._bytes < INPUT_BYTES:
            self._has_room.set()
        else:
            self._has_room.clear()


def _size(entry: Piece | Mark) -> int:
    """What an entry counts for: one without bytes takes memory too."""
    return _ENTRY_BYTES + (len(entry.data) if isinstance(entry, Piece) else 0)
