"""Lists a directory from an archive of it, where the engine has no other way to tell what it holds."""

from __future__ import annotations

import dataclasses
import heapq
import tarfile
import time
from collections.abc import Iterable, Iterator

from ...errors import InvalidStateError
from ..runtime import FileEntry, FileKind, Listing
from . import tar

MAX_BYTES = 1024**3  # of an archive that is read for a list
MAX_SECONDS = 20.0
MAX_LINKED = 100_000  # entries that are remembered, since others may be hard links to them

_KINDS = {
    tarfile.REGTYPE: FileKind.FILE,
    tarfile.LNKTYPE: FileKind.FILE,
    tarfile.DIRTYPE: FileKind.DIRECTORY,
    tarfile.SYMTYPE: FileKind.LINK,
}


def of_archive(archive: Iterable[bytes], after: str, count: int) -> Listing:
    """The first `count` entries behind the name `after` of the directory that is the archive's top.

    Raises `InvalidStateError` where too much lies below the directory: an archive holds it all.
    """
    behind = _bytes(after)
    children = (entry for entry in _children(archive) if _bytes(entry.name) > behind)
    first = heapq.nsmallest(count + 1, children, key=lambda entry: _bytes(entry.name))
    return Listing(first[:count], len(first) > count)


def _children(archive: Iterable[bytes]) -> Iterator[FileEntry]:
    seen: dict[str, FileEntry] = {}
    for entry in tar.read(tar.Stream(_bounded(archive)), trusted=True):
        found = _entry(entry)
        if entry.info.type == tarfile.LNKTYPE and entry.info.linkname in seen:
            found = dataclasses.replace(seen[entry.info.linkname], name=entry.name)
        elif not entry.is_dir and len(seen) < MAX_LINKED:
            seen[entry.name] = found
        if entry.name and "/" not in entry.name:
            yield found


def _entry(entry: tar.Entry) -> FileEntry:
    info = entry.info
    kind = _KINDS.get(info.type, FileKind.OTHER)
    size = info.size if kind is FileKind.FILE else 0
    text = info.linkname if kind is FileKind.LINK else ""
    return FileEntry(entry.name, kind, size, info.mode & 0o7777, int(info.mtime) * 10**9, text)


def _bounded(archive: Iterable[bytes]) -> Iterator[bytes]:
    size, deadline = 0, time.monotonic() + MAX_SECONDS
    for chunk in archive:
        size += len(chunk)
        if size > MAX_BYTES or time.monotonic() > deadline:
            raise InvalidStateError(
                "too much lies below the directory for it to be listed from outside of the box; start the box, list a "
                "directory further down, or use a command in the box"
            )
        yield chunk


def _bytes(name: str) -> bytes:
    return name.encode(*tar.ENCODING)
