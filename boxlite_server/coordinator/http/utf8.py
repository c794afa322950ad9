"""Output in pieces that never end inside a UTF-8 character.

Released clients decode each piece into text by itself, so a piece must not end inside a character.
"""

from __future__ import annotations


class Utf8Joiner:
    """Holds back an unfinished character at the end of a piece, up to 3 bytes, and puts it before the next piece."""

    def __init__(self) -> None:
        self._held: dict[int, bytes] = {}  # by stream

    def push(self, stream: int, data: bytes) -> bytes:
        """Return what can be sent now; bytes that are not UTF-8 at all pass unchanged."""
        data = self.pop(stream) + data
        cut = len(data) - unfinished(data)
        if cut < len(data):
            self._held[stream] = data[cut:]
        return data[:cut]

    @property
    def holds(self) -> bool:
        """Whether bytes of any stream are held back."""
        return bool(self._held)

    def pop(self, stream: int) -> bytes:
        """Release the bytes of one stream."""
        return self._held.pop(stream, b"")

    def flush(self) -> list[tuple[int, bytes]]:
        """Release the bytes still held back, as pairs of stream and bytes."""
        rest, self._held = list(self._held.items()), {}
        return rest


def unfinished(data: bytes) -> int:
    """Return how many bytes at the end of `data` begin a character that is not complete: 0 to 3."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0b1100_0000 == 0b1000_0000:  # a continuation byte: the character starts further back
            continue
        length = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
        return back if length > back else 0
    return 0
