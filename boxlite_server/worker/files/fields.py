"""The fields that extended headers of tar archives set for the entries behind them, by their PAX names."""

from __future__ import annotations

import base64
import binascii
import tarfile
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from ...errors import InvalidArgumentError
from .sparse import PREFIX, Source

MAX_BYTES = 1024 * 1024  # of the extended headers of one entry, and of all global ones
MAX_RECORDS = 50_000  # of one extended header; the map of a sparse file takes two for each part
MAX_ATTRIBUTES = 1000  # extended attributes of one entry
MAX_ATTRIBUTE_BYTES = 65536  # of one extended attribute's value, as in Linux
MAX_ATTRIBUTES_BYTES = MAX_BYTES // 2  # of all of one entry: the engine takes headers of 1 MiB

_ENCODING = ("utf-8", "surrogateescape")
_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_KINDS = (*_LONG, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_NOT_GLOBAL = frozenset({"path", "linkpath", "size"})
_MAP_PARTS = ("GNU.sparse.offset", "GNU.sparse.numbytes")
_MAP = "GNU.sparse.map"
_SCHILY, _LIBARCHIVE = "SCHILY.xattr.", "LIBARCHIVE.xattr."
_ATTRIBUTES = (_SCHILY, _LIBARCHIVE)
_USED = frozenset({"path", "linkpath", "size", "mtime", "uid", "gid"})
_ATTRIBUTE_KEYS = tuple(prefix.encode() for prefix in _ATTRIBUTES)
_MAX_KEY = 1024  # bytes: the prefix and an attribute's name of 255 bytes, each of them percent-encoded


class Fields:
    """The fields in force while an archive is read. They are held in at most twice `MAX_BYTES`."""

    def __init__(self) -> None:
        self._global: dict[str, str] = {}
        self._own: dict[str, str] = {}
        self._global_bytes = 0
        self._own_bytes = 0

    @staticmethod
    def are_in(info: tarfile.TarInfo) -> bool:
        """Whether the entry is an extended header."""
        return info.type in _KINDS

    def read(self, source: Source, info: tarfile.TarInfo, position: int) -> None:
        """Take the extended header whose data is at `position`. Raises `InvalidArgumentError`."""
        is_global = info.type == tarfile.XGLTYPE
        held = self._global_bytes if is_global else self._own_bytes
        if not 0 <= info.size <= MAX_BYTES - held:
            raise InvalidArgumentError(f"the archive has an extended header of more than {MAX_BYTES} bytes")
        data = source.read(info.size, position)
        if len(data) < info.size:
            raise InvalidArgumentError("the archive is cut off")
        if is_global:
            self._global_bytes += info.size
            self._take_global(data)
        else:
            self._own_bytes += info.size + 1  # an empty header costs time too
            self._take_own(info.type, data)

    def _take_global(self, data: bytes) -> None:
        found = dict(_records(data))
        if any(key in _NOT_GLOBAL or key.startswith(PREFIX) for key in found):
            raise InvalidArgumentError("the archive has a global header that names files")
        if any(key.startswith(_ATTRIBUTES) for key in found):
            raise InvalidArgumentError("the archive has a global header that sets extended attributes")
        self._global |= found

    def _take_own(self, kind: bytes, data: bytes) -> None:
        if kind in _LONG:
            self._own[_LONG[kind]] = data.partition(b"\0")[0].decode(*_ENCODING)
            return
        parts: list[str] = []
        for key, value in _records(data):
            if key not in _MAP_PARTS:
                self._own[key] = value
                continue
            # Form 0.0 of sparse files repeats these two fields in turn; the later forms have them in one.
            if key != _MAP_PARTS[len(parts) % 2] or not value.isdigit():
                raise InvalidArgumentError("the archive holds a sparse file whose map is broken: a number is missing")
            parts.append(value)
        if parts:
            self._own[_MAP] = ",".join(parts)
        if sum(key.startswith(_ATTRIBUTES) for key in self._own) > MAX_ATTRIBUTES:
            raise InvalidArgumentError(f"the archive has an entry of more than {MAX_ATTRIBUTES} extended attributes")

    def of_entry(self) -> dict[str, str]:
        """The fields of the next entry."""
        return self._global | self._own

    def attributes(self) -> dict[str, str]:
        """The next entry's extended attributes that a box may get. Raises `InvalidArgumentError` for broken ones."""
        found = {name: value for name, value in self._attributes() if _is_settable(name)}
        size = sum(len(name) + len(value.encode(*_ENCODING)) for name, value in found.items())
        longest = max((len(value.encode(*_ENCODING)) for value in found.values()), default=0)
        if size > MAX_ATTRIBUTES_BYTES or longest > MAX_ATTRIBUTE_BYTES:
            raise InvalidArgumentError("the archive has extended attributes that are too large")
        return found

    def end_of_entry(self) -> list[str]:
        """Drop the fields of the entry that was read. Returns its extended attributes that no box may get."""
        left_out = {name for name, _ in self._attributes() if not _is_settable(name)}
        self._own, self._own_bytes = {}, 0
        return sorted(left_out)

    def _attributes(self) -> Iterator[tuple[str, str]]:
        """Name and value of each extended attribute; libarchive's form of one comes before the common form."""
        fields = self.of_entry()
        for key, value in fields.items():
            if key.startswith(_LIBARCHIVE):
                name = unquote_to_bytes(key.removeprefix(_LIBARCHIVE).encode(*_ENCODING)).decode(*_ENCODING)
                yield name, _from_base64(value)
        for key, value in fields.items():
            if key.startswith(_SCHILY):
                yield key.removeprefix(_SCHILY), value


def _is_settable(name: str) -> bool:
    """Whether an upload may set the attribute: others are the kernel's and the engine's own."""
    is_name = "\0" not in name and "=" not in name and len(name.encode(*_ENCODING)) <= 255
    return is_name and ((name.startswith("user.") and name != "user.") or name == "security.capability")


def _from_base64(text: str) -> str:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode(*_ENCODING)
    except (binascii.Error, ValueError) as exc:
        raise InvalidArgumentError("the archive has a broken extended attribute") from exc


def _records(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield key and value of the PAX records that anybody here uses. A record is `length key=value\\n`, where the
    length counts the whole record."""
    position, end = 0, len(data.rstrip(b"\0"))
    for _ in range(MAX_RECORDS):
        if position >= end:
            return
        space = data.find(b" ", position, position + 8)
        length = data[position:space] if space > 0 else b""
        stop = position + int(length) if length.isdigit() else 0
        equals = data.find(b"=", space, stop)
        if stop > len(data) or equals <= space + 1 or data[stop - 1 : stop] != b"\n":
            raise InvalidArgumentError("the archive has a broken extended header")
        if equals - space <= _MAX_KEY:
            key = data[space + 1 : equals].decode(*_ENCODING)
            if key in _USED or key.startswith((PREFIX, *_ATTRIBUTES)):
                yield key, data[equals + 1 : stop - 1].decode(*_ENCODING)
        elif data.startswith(_ATTRIBUTE_KEYS, space + 1):
            raise InvalidArgumentError("the archive has an extended attribute whose name is too long")
        position = stop
    if position < end:
        raise InvalidArgumentError(f"the archive has an extended header of more than {MAX_RECORDS} records")
