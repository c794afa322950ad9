"""Tar archives from outside: read header by header, checked whole, and written anew.

Every archive that reaches an engine is written here, entry by entry, so that it does not matter how the engine
reads a forged header. A check holds in memory the names and kinds of at most `MAX_ENTRIES` entries.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from ...errors import InvalidArgumentError
from ...rpc import CHUNK_BYTES
from ..runtime import FilePart
from . import sparse
from .fields import Fields
from .names import Names
from .skipped import Skipped
from .sparse import Source
from .spool import SpooledFile

Piece = TypeVar("Piece", bytes, bytes | FilePart)

MAX_ENTRIES = 500_000
MAX_NAME_BYTES = 255  # in each part of a path, as in file systems
MAX_PATH_BYTES = 4000
MAX_DEPTH = 256  # names in a path
MAX_HEADER_BYTES = 256 * 1024 * 1024  # of all extended headers of an archive
MAX_TIME = 2**33  # seconds: the year 2242

_SHOWN = 80  # characters of a name in an error text
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_ZEROS = bytes(CHUNK_BYTES)
ENCODING = ("utf-8", "surrogateescape")
_EXACT_TIME = re.compile(r"\d{1,10}\.\d{1,9}", re.ASCII)

_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE)
_KINDS = {
    **dict.fromkeys(_FILES, tarfile.REGTYPE),
    tarfile.DIRTYPE: tarfile.DIRTYPE,
    tarfile.SYMTYPE: tarfile.SYMTYPE,
    tarfile.LNKTYPE: tarfile.LNKTYPE,
    tarfile.FIFOTYPE: tarfile.FIFOTYPE,
}
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class Entry(NamedTuple):
    """One entry. `name` is relative and without `.` and `..`; "" is the top. `position` is the offset of the
    entry's data in the archive. `info.size` counts the holes of a sparse file, which has a `map`. `attributes`: the
    extended attributes to set, by their names."""

    name: str
    info: tarfile.TarInfo
    position: int
    map: sparse.Map | None
    attributes: Mapping[str, str]

    @property
    def is_dir(self) -> bool:
        return self.info.type == tarfile.DIRTYPE


class Summary(NamedTuple):
    """What a checked archive holds: `single` is its entry if it has only one, `top` is the entry `.` if it has one.
    `size`: the bytes of all its files, holes included. `skipped`: what will not be written, with the positions of the
    entries among it in `left_out`."""

    single: Entry | None
    top: Entry | None
    names: Names
    size: int
    skipped: Skipped
    left_out: set[int]


def check(file: Source, names: Names | None = None) -> Summary:
    """Read the archive to its end. `names`: where its names go, which are none as yet.

    Raises `InvalidArgumentError` when the file is no archive, and for entries that could reach outside of the
    place it is unpacked at: absolute names, `..`, hard links out of it, names that pass through its own links,
    devices. Named pipes are skipped, as are hard links to them.
    """
    names = Names() if names is None else names
    skipped, left_out = Skipped(), set[int]()
    single: Entry | None = None
    top: Entry | None = None
    size = 0
    for number, entry in enumerate(read(file, skipped=skipped), 1):
        if number > MAX_ENTRIES:
            raise InvalidArgumentError(f"the archive has more than {MAX_ENTRIES} entries; send it in parts")
        single = entry if number == 1 else None
        if not entry.name:
            if not entry.is_dir:
                raise InvalidArgumentError("the archive's entry '.' is no directory")
            top = entry
            continue
        kind = names.add(entry.name, entry.info.type, entry.info.linkname)
        if kind == tarfile.FIFOTYPE:
            skipped.add(entry.name)
            left_out.add(entry.position)
        if entry.info.type == tarfile.REGTYPE:
            size += entry.info.size
    return Summary(single, top, names, size, skipped, left_out)


def disk(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Write the archive of a box's disk anew while it comes, so that the engine reads neither what it would unpack
    first, nor more than what was sent.

    Raises `InvalidArgumentError` for what no export holds: sparse files, and more entries or deeper ones than an
    upload may have.
    """
    stream = Stream(chunks)
    yield from finished(_disk(stream))
    stream.drain()


def _disk(stream: Stream) -> Iterator[bytes]:
    for number, entry in enumerate(read(stream, trusted=True), 1):
        if number > MAX_ENTRIES:
            raise InvalidArgumentError(f"the archive's file system has more than {MAX_ENTRIES} entries")
        if entry.map is not None:
            raise InvalidArgumentError(f"the archive's file system has a sparse file, {entry.name[:_SHOWN]!r}")
        yield header(entry, entry.name or ".")
        yield from data(stream, entry)


def parents(name: str) -> Iterator[str]:
    """The directories that a relative name lies in, outermost first: `a` and `a/b` for `a/b/c`."""
    slash = name.find("/")
    while slash > 0:
        yield name[:slash]
        slash = name.find("/", slash + 1)


# ---- reading --------------------------------------------------------------------------------------------


class Stream:
    """An archive that is read while it comes, once and forwards. It closes nothing."""

    size = 2**62  # it is not known, and nothing is longer

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._held = b""
        self._begin = 0  # the position of what is held

    def read(self, count: int, position: int) -> bytes:
        """Read `count` bytes from `position` on; fewer only at the end. What lies before them is dropped."""
        while self._begin + len(self._held) < position:
            self._begin += len(self._held)
            self._held = next(self._chunks, b"")
            if not self._held:
                return b""
        start = position - self._begin
        if len(self._held) - start < count:
            pieces, missing = [self._held[start:]], count - (len(self._held) - start)
            while missing > 0 and (chunk := next(self._chunks, b"")):
                pieces.append(chunk)
                missing -= len(chunk)
            self._held, self._begin, start = b"".join(pieces), position, 0
        return self._held[start : start + count]

    def drain(self) -> None:
        """Read what is left, and drop it: the chunks may still raise before their end."""
        for _ in self._chunks:
            pass


def read(source: Source, *, trusted: bool = False, skipped: Skipped | None = None) -> Iterator[Entry]:
    """Yield the entries in their order.

    Raises `InvalidArgumentError` for a file that is no whole tar archive and, unless it is `trusted`, for entries
    that no upload may hold. `skipped` takes the extended attributes that are left out.
    """
    if source.size == 0:
        raise InvalidArgumentError("the archive is empty: even its end marker is missing")
    position = header_bytes = 0
    fields = Fields()
    while True:
        header = source.read(_BLOCK, position)
        if len(header) < _BLOCK:
            raise InvalidArgumentError("the archive is cut off" if position else _no_tar(header, position))
        try:
            info = tarfile.TarInfo.frombuf(header, *ENCODING)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return
        except (tarfile.HeaderError, ValueError) as exc:
            raise InvalidArgumentError(_no_tar(header, position)) from exc
        position += _BLOCK
        if Fields.are_in(info):
            fields.read(source, info, position)
            position += _padded(info.size)
            header_bytes += info.size
            if header_bytes > MAX_HEADER_BYTES:
                raise InvalidArgumentError(
                    f"the archive has more than {MAX_HEADER_BYTES} bytes of extended headers; send it in parts"
                )
            continue
        entry, stored = _entry(source, header, info, position, fields, trusted)
        left_out = fields.end_of_entry()
        if skipped is not None:
            for name in left_out:
                skipped.add(entry.name, attribute=name)
        yield entry
        position = entry.position + _padded(stored)


def _entry(
    source: Source, header: bytes, info: tarfile.TarInfo, position: int, fields: Fields, trusted: bool
) -> tuple[Entry, int]:
    """The entry whose header ends at `position`, and the size of its data in the archive."""
    values = fields.of_entry()
    _apply(info, values)
    is_old_sparse = info.type == tarfile.GNUTYPE_SPARSE
    _check_kind(info, trusted)
    is_file = info.type == tarfile.REGTYPE
    stored = info.size if is_file else 0
    end = position + _padded(stored)
    found: sparse.Map | None = None
    if is_old_sparse:
        found = sparse.of_old_entry(source, header, position, stored)
        end += found.data - position
    elif is_file and sparse.is_extended(values):
        found = sparse.of_extended(source, values, position, stored)
        stored -= found.data - position
    if end > source.size:
        raise InvalidArgumentError("the archive is cut off")
    if found is not None:
        info.size, position = found.size, found.data
    if trusted:  # engines use absolute names for entries in the root
        info.name = info.name.lstrip("/")
    if info.type == tarfile.LNKTYPE:
        target = info.linkname.lstrip("/") if trusted else info.linkname
        info.linkname = _clean(target, f"the archive's hard link {info.name[:_SHOWN]!r} to")
    attributes = fields.attributes() if is_file or info.type == tarfile.DIRTYPE else {}
    return Entry(_clean(info.name, "the archive's entry"), info, position, found, attributes), stored


def _no_tar(header: bytes, position: int) -> str:
    if position:
        return f"the archive is broken at byte {position}"
    for magic, name in _COMPRESSED.items():
        if header.startswith(magic):
            return f"the archive is compressed with {name}; send a plain tar archive"
    return "the body is no tar archive"


def _apply(info: tarfile.TarInfo, fields: Mapping[str, str]) -> None:
    info.name = fields.get("GNU.sparse.name") or fields.get("path", info.name)
    info.linkname = fields.get("linkpath", info.linkname)
    try:
        info.size = int(fields.get("size", info.size))
        info.mtime = float(fields.get("mtime", info.mtime))
        info.uid = int(fields.get("uid", info.uid))
        info.gid = int(fields.get("gid", info.gid))
    except ValueError as exc:
        raise InvalidArgumentError(
            f"the archive's entry {info.name[:_SHOWN]!r} has an extended header that is broken"
        ) from exc
    # A float is too coarse for nanoseconds.
    exact = fields.get("mtime", "")
    info.pax_headers = {"mtime": exact} if _EXACT_TIME.fullmatch(exact) else {}


def nanoseconds(info: tarfile.TarInfo) -> int:
    """The time of an entry, as exactly as its header has it."""
    seconds, _, fraction = info.pax_headers.get("mtime", f"{int(info.mtime)}").partition(".")
    return int(seconds) * 10**9 + int(fraction.ljust(9, "0"))


def _check_kind(info: tarfile.TarInfo, trusted: bool) -> None:
    if info.type in _KINDS:
        info.type = _KINDS[info.type]
    elif not (trusted and info.type in _DEVICES):
        what = "a device" if info.type in _DEVICES else f"of a kind that is not known here ({info.type!r})"
        raise InvalidArgumentError(f"the archive's entry {info.name[:_SHOWN]!r} is {what}")
    if info.size < 0:
        raise InvalidArgumentError(f"the archive's entry {info.name[:_SHOWN]!r} has a size below zero")
    if info.type == tarfile.SYMTYPE and not info.linkname:
        raise InvalidArgumentError(f"the archive's entry {info.name[:_SHOWN]!r} is a link to nothing")
    if "\0" in info.linkname or len(info.linkname.encode(*ENCODING)) > MAX_PATH_BYTES:
        raise InvalidArgumentError(
            f"the archive's entry {info.name[:_SHOWN]!r} has a target that is too long or holds a NUL"
        )


def _clean(name: str, what: str) -> str:
    if name.startswith("/"):
        raise InvalidArgumentError(f"{what} {name[:_SHOWN]!r} is absolute; names in an archive are relative")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgumentError(f"{what} {name[:_SHOWN]!r} leads upwards; '..' is not allowed in an archive")
    sizes = [len(part.encode(*ENCODING)) for part in parts]
    if "\0" in name or max(sizes, default=0) > MAX_NAME_BYTES or sum(sizes) + len(sizes) > MAX_PATH_BYTES:
        raise InvalidArgumentError(f"{what} {name[:_SHOWN]!r} has a name that is too long or holds a NUL")
    if len(parts) > MAX_DEPTH:
        raise InvalidArgumentError(f"{what} {name[:_SHOWN]!r} lies more than {MAX_DEPTH} directories deep")
    return "/".join(parts)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


# ---- writing --------------------------------------------------------------------------------------------


def header(entry: Entry, name: str, *, owner: tuple[int, int] | None = None, linkname: str | None = None) -> bytes:
    """The header of `entry` under another name. Kind, mode, size, time, target, device numbers and extended
    attributes are kept.

    `owner` is the (uid, gid) of the new header; None keeps those of the entry. `linkname` replaces the target.
    """
    old, info = entry.info, tarfile.TarInfo(name)
    info.type = old.type
    info.mode = old.mode & 0o7777
    info.size = old.size if old.type == tarfile.REGTYPE else 0
    info.linkname = old.linkname if linkname is None else linkname
    if math.isfinite(old.mtime) and 0 <= old.mtime < MAX_TIME:
        info.mtime = _whole(old.mtime)
        info.pax_headers = dict(old.pax_headers)
    info.uid, info.gid = owner or (min(max(old.uid, 0), 2**31 - 1), min(max(old.gid, 0), 2**31 - 1))
    info.devmajor, info.devminor = old.devmajor, old.devminor
    info.pax_headers = {**info.pax_headers, **{f"SCHILY.xattr.{key}": value for key, value in entry.attributes.items()}}
    return info.tobuf(tarfile.PAX_FORMAT, *ENCODING)


def _whole(time: float) -> float:
    """Make a whole number of seconds an int, which needs no extended header."""
    return int(time) if time == int(time) else time


def directory(name: str, *, mode: int, mtime: float, owner: tuple[int, int] | None) -> bytes:
    """The header of a new directory."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = tarfile.DIRTYPE, mode, mtime
    return header(Entry(name, info, 0, None, {}), name, owner=owner or (0, 0))


def data(source: Source, entry: Entry) -> Iterator[bytes]:
    """Yield the data of an entry, holes filled with zeros, padded to whole blocks."""
    return _data(entry, functools.partial(_stored, source))


def parts(file: SpooledFile, entry: Entry) -> Iterator[bytes | FilePart]:
    """Yield the data of an entry like `data`, large pieces of it as parts of the file."""
    return _data(entry, file.parts)


def _data(entry: Entry, stored: Callable[[int, int], Iterator[Piece]]) -> Iterator[Piece]:
    """`stored` gives what the archive has, from its position and size."""
    size = entry.info.size if entry.info.type == tarfile.REGTYPE else 0
    parts: Iterable[int] = (0, size) if entry.map is None else entry.map.parts
    position, done = entry.position, 0
    numbers = iter(parts)
    for offset, length in zip(numbers, numbers, strict=True):
        yield from _zeros(offset - done)
        yield from stored(position, length)
        position, done = position + length, offset + length
    yield from _zeros(_padded(size) - done)


def _stored(source: Source, position: int, left: int) -> Iterator[bytes]:
    while left:
        chunk = source.read(min(left, CHUNK_BYTES), position)
        if not chunk:
            raise InvalidArgumentError("the archive is cut off")
        position += len(chunk)
        left -= len(chunk)
        yield chunk


def _zeros(count: int) -> Iterator[bytes]:
    while count:
        piece = _ZEROS[:count]
        count -= len(piece)
        yield piece


def finished(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces of an archive and its end marker. Bytes are joined to chunks of at least 256 KiB, except before
    a part of a file and at the end."""
    held: list[bytes] = []
    size = 0
    for piece in itertools.chain(pieces, [_END]):
        if isinstance(piece, bytes):
            held.append(piece)
            size += len(piece)
            if size < CHUNK_BYTES:
                continue
        if held:
            yield b"".join(held)
            held, size = [], 0
        if isinstance(piece, FilePart):
            yield piece
    if held:
        yield b"".join(held)
