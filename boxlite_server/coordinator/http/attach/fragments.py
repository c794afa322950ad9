"""Cuts large WebSocket messages of a client into fragments, so that nobody has to hold a whole message."""

from __future__ import annotations

import struct

_FIN, _OPCODE, _CONTROL = 0x80, 0x0F, 0x08  # bits of a frame's first byte
_MASKED, _LENGTH = 0x80, 0x7F  # bits of its second byte
_CONTINUATION = 0x00


class Fragmenter:
    """Rewrites a stream of frames: each data frame with more than `size` bytes becomes fragments of that size.

    The bytes of a frame pass unchanged, masked as they are: `size` is a multiple of the mask's length.
    """

    def __init__(self, size: int) -> None:
        assert size % 4 == 0
        self._size = size
        self._head = b""  # the beginning of a frame's header
        self._fragment = 0  # bytes of the present fragment that are still to come
        self._frame = 0  # bytes of the present frame behind the present fragment
        self._opcode = 0
        self._fin = 0
        self._masked = 0
        self._mask = b""

    @property
    def opcode(self) -> int | None:
        """The opcode of a frame that has begun and not ended; None if there is none."""
        if self._head:
            return self._head[0] & _OPCODE
        return self._opcode if self._fragment or self._frame else None

    def push(self, data: bytes) -> bytes:
        """Take bytes from the connection, and return those to parse in their place."""
        rest, out = memoryview(self._head + data), bytearray()
        self._head = b""
        while rest or (self._frame and not self._fragment):
            if self._fragment:
                size = min(self._fragment, len(rest))
                out += rest[:size]
                rest = rest[size:]
                self._fragment -= size
            elif self._frame:
                out += self._header(_CONTINUATION)
            elif len(rest) < (size := _header_size(rest)):
                self._head = bytes(rest)
                break
            else:
                out += self._begin(bytes(rest[:size]))
                rest = rest[size:]
        return bytes(out)

    def _begin(self, header: bytes) -> bytes:
        """Begin a frame. Returns the header to parse."""
        first, second = header[0], header[1]
        self._opcode = first & _OPCODE
        length = second & _LENGTH
        if length > 125:
            (length,) = struct.unpack_from("!H" if length == 126 else "!Q", header, 2)
        if first & _CONTROL or length <= self._size:
            self._fragment = length
            return header
        self._fin, self._masked = first & _FIN, second & _MASKED
        self._mask = header[-4:] if self._masked else b""
        self._frame = length
        return self._header(first & ~_FIN)

    def _header(self, first: int) -> bytes:
        """Begin the next fragment of the present frame. Returns its header."""
        self._fragment = min(self._frame, self._size)
        self._frame -= self._fragment
        if not self._frame:
            first |= self._fin
        return struct.pack("!BBQ", first, self._masked | 127, self._fragment) + self._mask


def _header_size(beginning: memoryview) -> int:
    """The size of the header of a frame with this beginning; more than there is, if that does not tell."""
    if len(beginning) < 2:
        return 2
    extended = {126: 2, 127: 8}.get(beginning[1] & _LENGTH, 0)
    return 2 + extended + (4 if beginning[1] & _MASKED else 0)
