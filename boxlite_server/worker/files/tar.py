"""Tar archives from outside: read header by header, checked whole, and written anew.

Every archive that reaches an engine is written here, entry by entry, so that it does not matter how the engine
reads a forged header. A check holds in memory the names and kinds of at most `MAX_ENTRIES` entries.
"""

from __future__ import annotations

import itertools
import math
import tarfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ...errors import InvalidArgumentError
from ...rpc import CHUNK_BYTES
from .spool import SpooledFile

MAX_ENTRIES = 500_000
MAX_META_BYTES = 1024 * 1024  # in one extended header
MAX_NAME_BYTES = 255  # in each part of a path, as in file systems
MAX_PATH_BYTES = 4000
MAX_TIME = 2**33  # seconds: the year 2242

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_ENCODING = ("utf-8", "surrogateescape")

_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_META = (_LONG_NAME, _LONG_LINK, *_EXTENDED, tarfile.XGLTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_KINDS = {
    **dict.fromkeys(_FILES, tarfile.REGTYPE),
    tarfile.DIRTYPE: tarfile.DIRTYPE,
    tarfile.SYMTYPE: tarfile.SYMTYPE,
    tarfile.LNKTYPE: tarfile.LNKTYPE,
}
_REFUSED = {
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file; pack it without holes",
}
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class Entry(NamedTuple):
    """One entry. `name` is relative and without `.` and `..`; "" is the top. `position` is the offset of the
    entry's data in the archive."""

    name: str
    info: tarfile.TarInfo
    position: int

    @property
    def is_dir(self) -> bool:
        return self.info.type == tarfile.DIRTYPE


class Summary(NamedTuple):
    """What a checked archive holds: `single` is its entry if it has only one, `top` is the entry `.` if it has one."""

    single: Entry | None
    top: Entry | None


def check(file: SpooledFile) -> Summary:
    """Read the archive to its end.

    Raises `InvalidArgumentError` when the file is no archive, and for entries that could reach outside of the
    place it is unpacked at: absolute names, `..`, hard links out of it, names that pass through its own links,
    devices.
    """
    kinds: dict[str, bytes] = {}
    single: Entry | None = None
    top: Entry | None = None
    for number, entry in enumerate(read(file), 1):
        if number > MAX_ENTRIES:
            raise InvalidArgumentError(f"the archive has more than {MAX_ENTRIES} entries; send it in parts")
        single = entry if number == 1 else None
        if not entry.name:
            if not entry.is_dir:
                raise InvalidArgumentError("the archive's entry '.' is no directory")
            top = entry
            continue
        _check_place(entry, kinds)
    return Summary(single, top)


def _check_place(entry: Entry, kinds: dict[str, bytes]) -> None:
    for parent in parents(entry.name):
        if kinds.setdefault(parent, tarfile.DIRTYPE) != tarfile.DIRTYPE:
            raise InvalidArgumentError(
                f"the archive's entry {entry.name!r} lies below {parent!r}, which is no directory there"
            )
    kind = entry.info.type
    if kind == tarfile.LNKTYPE:
        if kinds.get(entry.info.linkname) != tarfile.REGTYPE:
            raise InvalidArgumentError(f"the archive's hard link {entry.name!r} leads to no earlier file in it")
        kind = tarfile.REGTYPE
    known = kinds.setdefault(entry.name, kind)
    if known != kind and tarfile.DIRTYPE in (known, kind):
        raise InvalidArgumentError(f"the archive's entry {entry.name!r} is a directory and something else")
    kinds[entry.name] = kind


def parents(name: str) -> Iterator[str]:
    """The directories that a relative name lies in, outermost first: `a` and `a/b` for `a/b/c`."""
    slash = name.find("/")
    while slash > 0:
        yield name[:slash]
        slash = name.find("/", slash + 1)


# ---- reading --------------------------------------------------------------------------------------------


def read(file: SpooledFile, *, trusted: bool = False) -> Iterator[Entry]:
    """Yield the entries in their order.

    Raises `InvalidArgumentError` for a file that is no whole tar archive and, unless it is `trusted`, for entries
    that no upload may hold.
    """
    if file.size == 0:
        raise InvalidArgumentError("the archive is empty: even its end marker is missing")
    position = 0
    meta: dict[str, str] = {}
    while True:
        header = file.read(_BLOCK, position)
        if len(header) < _BLOCK:
            raise InvalidArgumentError("the archive is cut off" if position else _no_tar(header, position))
        try:
            info = tarfile.TarInfo.frombuf(header, *_ENCODING)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return
        except (tarfile.HeaderError, ValueError) as exc:
            raise InvalidArgumentError(_no_tar(header, position)) from exc
        position += _BLOCK
        if info.type in _META:
            meta |= _read_meta(file, info, position)
            position += _padded(info.size)
            continue
        _apply(info, meta)
        meta = {}
        _check_kind(info, trusted)
        size = info.size if info.type == tarfile.REGTYPE else 0
        if position + _padded(size) > file.size:
            raise InvalidArgumentError("the archive is cut off")
        if trusted:  # engines use absolute names for entries in the root
            info.name = info.name.lstrip("/")
        if info.type == tarfile.LNKTYPE:
            target = info.linkname.lstrip("/") if trusted else info.linkname
            info.linkname = _clean(target, f"the archive's hard link {info.name!r} to")
        yield Entry(_clean(info.name, "the archive's entry"), info, position)
        position += _padded(size)


def _no_tar(header: bytes, position: int) -> str:
    if position:
        return f"the archive is broken at byte {position}"
    for magic, name in _COMPRESSED.items():
        if header.startswith(magic):
            return f"the archive is compressed with {name}; send a plain tar archive"
    return "the body is no tar archive"


def _read_meta(file: SpooledFile, info: tarfile.TarInfo, position: int) -> dict[str, str]:
    """The fields that an extended header sets for the next entry, by their PAX names."""
    if not 0 <= info.size <= MAX_META_BYTES:
        raise InvalidArgumentError(f"the archive has an extended header of more than {MAX_META_BYTES} bytes")
    data = file.read(info.size, position)
    if len(data) < info.size:
        raise InvalidArgumentError("the archive is cut off")
    if info.type in (_LONG_NAME, _LONG_LINK):
        key = "path" if info.type == _LONG_NAME else "linkpath"
        return {key: data.partition(b"\0")[0].decode(*_ENCODING)}
    found = dict(_records(data))
    if any(key.startswith("GNU.sparse.") for key in found):
        raise InvalidArgumentError("the archive holds a sparse file; pack it without holes")
    if info.type == tarfile.XGLTYPE:
        if found.keys() & {"path", "linkpath", "size"}:
            raise InvalidArgumentError("the archive has a global header that names files")
        return {}
    return found


def _records(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield key and value of PAX records: `length key=value\\n`, where the length counts the whole record."""
    while data.strip(b"\0"):
        length = data.partition(b" ")[0]
        count = int(length) if length.isdigit() and len(length) < 8 else 0
        key, equals, value = data[len(length) + 1 : count - 1].partition(b"=")
        if count < len(length) + 3 or count > len(data) or not equals or data[count - 1 : count] != b"\n":
            raise InvalidArgumentError("the archive has a broken extended header")
        yield key.decode(*_ENCODING), value.decode(*_ENCODING)
        data = data[count:]


def _apply(info: tarfile.TarInfo, meta: dict[str, str]) -> None:
    info.name = meta.get("path", info.name)
    info.linkname = meta.get("linkpath", info.linkname)
    try:
        info.size = int(meta.get("size", info.size))
        info.mtime = float(meta.get("mtime", info.mtime))
        info.uid = int(meta.get("uid", info.uid))
        info.gid = int(meta.get("gid", info.gid))
    except ValueError as exc:
        raise InvalidArgumentError(f"the archive's entry {info.name!r} has an extended header that is broken") from exc


def _check_kind(info: tarfile.TarInfo, trusted: bool) -> None:
    if info.type in _KINDS:
        info.type = _KINDS[info.type]
    elif not (trusted and info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)):
        what = _REFUSED.get(info.type, f"of a kind that is not known here ({info.type!r})")
        raise InvalidArgumentError(f"the archive's entry {info.name!r} is {what}")
    if info.size < 0:
        raise InvalidArgumentError(f"the archive's entry {info.name!r} has a size below zero")
    if info.type == tarfile.SYMTYPE and not info.linkname:
        raise InvalidArgumentError(f"the archive's entry {info.name!r} is a link to nothing")
    if "\0" in info.linkname or len(info.linkname.encode(*_ENCODING)) > MAX_PATH_BYTES:
        raise InvalidArgumentError(f"the archive's entry {info.name!r} has a target that is too long or holds a NUL")


def _clean(name: str, what: str) -> str:
    if name.startswith("/"):
        raise InvalidArgumentError(f"{what} {name!r} is absolute; names in an archive are relative")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgumentError(f"{what} {name!r} leads upwards; '..' is not allowed in an archive")
    sizes = [len(part.encode(*_ENCODING)) for part in parts]
    if "\0" in name or max(sizes, default=0) > MAX_NAME_BYTES or sum(sizes) + len(sizes) > MAX_PATH_BYTES:
        raise InvalidArgumentError(f"{what} {name[:80]!r} has a name that is too long or holds a NUL")
    return "/".join(parts)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


# ---- writing --------------------------------------------------------------------------------------------


def header(
    entry: tarfile.TarInfo, name: str, *, owner: tuple[int, int] | None = None, linkname: str | None = None
) -> bytes:
    """The header of `entry` under another name. Kind, mode, size, time, target and device numbers are kept.

    `owner` is the (uid, gid) of the new header; None keeps those of the entry. `linkname` replaces the target.
    """
    info = tarfile.TarInfo(name)
    info.type = entry.type
    info.mode = entry.mode & 0o7777
    info.size = entry.size if entry.type == tarfile.REGTYPE else 0
    info.linkname = entry.linkname if linkname is None else linkname
    info.mtime = _whole(entry.mtime) if math.isfinite(entry.mtime) and 0 <= entry.mtime < MAX_TIME else 0
    info.uid, info.gid = owner or (min(max(entry.uid, 0), 2**31 - 1), min(max(entry.gid, 0), 2**31 - 1))
    info.devmajor, info.devminor = entry.devmajor, entry.devminor
    return info.tobuf(tarfile.PAX_FORMAT, *_ENCODING)


def _whole(time: float) -> float:
    """Make a whole number of seconds an int, which needs no extended header."""
    return int(time) if time == int(time) else time


def directory(name: str, *, mode: int, mtime: float, owner: tuple[int, int] | None) -> bytes:
    """The header of a new directory."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = tarfile.DIRTYPE, mode, mtime
    return header(info, name, owner=owner or (0, 0))


def data(file: SpooledFile, entry: Entry) -> Iterator[bytes]:
    """Yield the data of an entry, padded to whole blocks."""
    left = entry.info.size if entry.info.type == tarfile.REGTYPE else 0
    padding = bytes(_padded(left) - left)
    position = entry.position
    while left:
        chunk = file.read(min(left, CHUNK_BYTES), position)
        position += len(chunk)
        left -= len(chunk)
        yield chunk
    if padding:
        yield padding


def finished(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces of an archive and its end marker, joined to chunks of at least 256 KiB but the last."""
    held: list[bytes] = []
    size = 0
    for piece in itertools.chain(pieces, [_END]):
        held.append(piece)
        size += len(piece)
        if size >= CHUNK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
