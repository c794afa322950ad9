"""Maps of sparse files in tar archives: which parts of a file the archive holds, the rest being holes.

Four forms are in use: the sparse entries of old GNU tar, and GNU tar's three forms in extended headers (0.0, 0.1 and
1.0). A map is read whole and checked: its parts come in order, do not overlap, and lie within the file.
"""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from ...errors import InvalidArgumentError

MAX_PARTS = 500_000  # of one file
MAX_FILE_BYTES = 2**44  # of a sparse file with its holes: what ext4 can hold
PREFIX = "GNU.sparse."

_BLOCK = 512
_MAX_DIGITS = 20
_OLD_MAP = slice(386, 386 + 4 * 24)  # in the header of an old GNU entry
_OLD_SIZE = slice(483, 495)
_OLD_IS_CONTINUED = 482
_MORE_MAP = slice(0, 21 * 24)  # in a block that continues the map
_MORE_IS_CONTINUED = 504


class Source(Protocol):
    """What an archive is read from. `size` in bytes: no less than what there is to read."""

    size: int

    def read(self, count: int, position: int) -> bytes:
        """Read `count` bytes from `position` on; fewer only at the end."""


class Map(NamedTuple):
    """A sparse file. `parts`: offset and size of each part, one after the other, in bytes of the file. `data`: the
    offset of the first part's data in the archive; the other parts follow."""

    size: int
    parts: array[int]
    data: int


def is_extended(fields: Mapping[str, str]) -> bool:
    """Whether the fields of an extended header make its entry a sparse file."""
    return any(field.startswith(PREFIX) for field in fields)


def of_old_entry(source: Source, header: bytes, position: int, stored: int) -> Map:
    """The map of an old GNU entry. `position` is the end of its header, `stored` the size of its data in the archive.

    Raises `InvalidArgumentError`, as do all readers of maps.
    """
    end = position

    def numbers() -> Iterator[int]:
        nonlocal end
        block, pairs, flag = header, header[_OLD_MAP], _OLD_IS_CONTINUED
        while True:
            for start in range(0, len(pairs), 12):
                field = pairs[start : start + 12]
                if start % 24 == 0 and not field.strip(b"\0 "):
                    break  # unused places end the map
                yield _old_number(field)
            if not block[flag]:
                return
            block = source.read(_BLOCK, end)
            if len(block) < _BLOCK:
                raise InvalidArgumentError("the archive is cut off")
            end += _BLOCK
            pairs, flag = block[_MORE_MAP], _MORE_IS_CONTINUED

    size = _old_number(header[_OLD_SIZE])
    parts = _checked(numbers(), size, stored)
    return Map(size, parts, end)


def of_extended(source: Source, fields: Mapping[str, str], position: int, stored: int) -> Map:
    """The map that the fields of an extended header tell; see `of_old_entry`. Form 1.0 has it before the data."""
    version = fields.get("GNU.sparse.major", "0"), fields.get("GNU.sparse.minor", "0")
    size = _number(fields.get("GNU.sparse.realsize") or fields.get("GNU.sparse.size") or "")
    if version == ("1", "0"):
        numbers = _Lines(source, position, stored)
        count = numbers.next()
        if count > MAX_PARTS:
            raise _too_many()
        pairs = (numbers.next() for _ in range(2 * count))
        # The map's own size is known once it is read, so the check of what is stored comes after it.
        parts = _checked(pairs, size, None)
        _check_stored(parts, stored - (numbers.end - position))
        return Map(size, parts, numbers.end)
    if version[0] != "0" or "GNU.sparse.map" not in fields:
        raise InvalidArgumentError(f"the archive holds a sparse file of an unknown form, {'.'.join(version)}")
    text = fields["GNU.sparse.map"]
    return Map(size, _checked((_number(part) for part in text.split(",")) if text else (), size, stored), position)


class _Lines:
    """The numbers before the data of a sparse file of form 1.0, one on each line, padded to whole blocks."""

    def __init__(self, source: Source, position: int, stored: int) -> None:
        self._source = source
        self._last = position + stored
        self._held = b""
        self.end = position

    def next(self) -> int:
        line, newline, rest = self._held.partition(b"\n")
        while not newline:
            if len(line) > _MAX_DIGITS or self.end >= self._last:
                raise _broken()
            block = self._source.read(_BLOCK, self.end)
            if len(block) < _BLOCK:
                raise InvalidArgumentError("the archive is cut off")
            self.end += _BLOCK
            line, newline, rest = (line + block).partition(b"\n")
        self._held = rest
        return _number(line.decode("ascii", "replace"))


def _checked(numbers: Iterable[int], size: int, stored: int | None) -> array[int]:
    """The parts, from offset and size of each in turn; empty parts are left out. `stored` is checked if given."""
    if not 0 <= size <= MAX_FILE_BYTES:
        raise InvalidArgumentError(f"the archive holds a sparse file of more than {MAX_FILE_BYTES >> 40} TiB")
    parts = array("q")
    end = 0
    values = iter(numbers)
    for count, offset in enumerate(values):
        length = next(values, -1)
        if offset < end or length < 0 or offset + length > size:
            raise _broken()
        end = offset + length
        if count == MAX_PARTS:
            raise _too_many()
        if length:
            parts.extend((offset, length))
    if stored is not None:
        _check_stored(parts, stored)
    return parts


def _check_stored(parts: array[int], stored: int) -> None:
    if sum(parts[1::2]) != stored:
        raise _broken()


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise _broken()
    return int(text)


def _old_number(field: bytes) -> int:
    try:
        return int(tarfile.nti(field))  # type: ignore[attr-defined]
    except (tarfile.HeaderError, ValueError) as exc:
        raise _broken() from exc


def _broken() -> InvalidArgumentError:
    return InvalidArgumentError(
        "the archive holds a sparse file whose map is broken: its parts overlap, are out of order, or do not fit"
    )


def _too_many() -> InvalidArgumentError:
    return InvalidArgumentError(f"the archive holds a sparse file of more than {MAX_PARTS} parts")
