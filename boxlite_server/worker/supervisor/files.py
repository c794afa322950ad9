"""The files of a running box, by the file service in the box where that can be: the engine takes many times as long."""

from __future__ import annotations

import itertools
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ..box_files import ArchiveStream, BoxFiles, FileEntry, FileKind, FilePart, FileState, Listing, WholeArchive
from ..files import tar
from .service import MAX_BYTES, FileService, Found, UnservedError

_MAX_ARCHIVE = MAX_BYTES + 64 * 1024  # bytes of one small file, with its headers
_MAX_PIECES = 3  # of an archive of one large file: its headers, the file, and the end
_KINDS = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.DIRECTORY, stat.S_IFLNK: FileKind.LINK}


class SupervisedFiles:
    """The `BoxFiles` of a running box. `others` do what the file service does not: archives of directories, links and
    large files, what the box's processes may not do, and whatever is to be refused. `max_bytes`: of a file that the
    service writes. What it writes counts as the box's memory until it is on the disk."""

    def __init__(self, service: FileService, others: BoxFiles, max_bytes: int) -> None:
        self._service = service
        self._others = others
        self._max_bytes = max_bytes

    def owner(self) -> tuple[int, int] | None:
        return self._others.owner()

    def stat(self, path: str) -> FileState | None:
        try:
            found = self._service.stat(path)
        except UnservedError:
            return self._others.stat(path)
        if found is None:
            return None
        kind = stat.S_IFMT(found.mode)
        if kind == stat.S_IFLNK:
            return self._others.stat(path)
        return FileState(_KINDS.get(kind, FileKind.OTHER))

    def describe(self, path: str) -> FileEntry | None:
        try:
            found = self._service.stat(path)
        except UnservedError:
            return self._others.describe(path)
        if found is not None and found.size is None:
            return self._others.describe(path)
        return found and _entry(posixpath.basename(path) or "/", found)

    def entries(self, path: str, after: str, count: int) -> Listing:
        try:
            found, more = self._service.entries(path, after)
        except UnservedError:
            return self._others.entries(path, after, count)
        first = itertools.islice(found.items(), count)
        return Listing([_entry(*each) for each in first], more or len(found) > count)

    def put(self, directory: str, archive: Iterable[bytes | FilePart]) -> None:
        pieces = iter(archive)
        first, is_whole = _beginning(pieces)
        if is_whole and (single := _single(first)) is not None:
            name, file, content = single
            size = content.size if isinstance(content, FilePart) else len(content)
            with suppress(UnservedError):
                if size <= max(self._max_bytes, MAX_BYTES):
                    self._service.write(posixpath.join(directory, name), file, content)
                    return
        self._others.put(directory, itertools.chain(first, pieces))

    def replaceable(self) -> frozenset[str]:
        return self._others.replaceable()

    def replace(self, path: str, content: bytes) -> None:
        self._others.replace(path, content)

    def get(self, path: str) -> ArchiveStream:
        try:
            found, content = self._service.read(path)
        except UnservedError:
            return self._others.get(path)
        info = tarfile.TarInfo(posixpath.basename(path))
        info.size, info.mode, info.uid, info.gid = len(content), found.mode, found.uid, found.gid
        info.mtime = found.modified // 10**9
        head = info.tobuf(tarfile.PAX_FORMAT, *tar.ENCODING)
        return WholeArchive(b"".join(tar.finished([head, content, bytes(-len(content) % 512)])))

    def close(self) -> None:
        self._service.close()
        self._others.close()


def _entry(name: str, found: Found) -> FileEntry:
    kind = _KINDS.get(stat.S_IFMT(found.mode), FileKind.OTHER)
    size = found.size or 0 if kind is FileKind.FILE else 0
    return FileEntry(name, kind, size, stat.S_IMODE(found.mode), found.modified, found.text)


def _beginning(pieces: Iterator[bytes | FilePart]) -> tuple[list[bytes | FilePart], bool]:
    """The first pieces of an archive, and whether they are all: an archive of much is not taken whole."""
    taken: list[bytes | FilePart] = []
    size = 0
    for piece in pieces:
        taken.append(piece)
        size += len(piece) if isinstance(piece, bytes) else 0 if _is_large(piece) else piece.size
        if size > _MAX_ARCHIVE or len(taken) > _MAX_PIECES:
            return taken, False
    return taken, True


def _single(pieces: list[bytes | FilePart]) -> tuple[str, Found, bytes | FilePart] | None:
    """Name, attributes and content of the regular file that is all there is in an archive of this worker; None: there
    is something else. A file of more than `MAX_BYTES` stays where it is."""
    part: FilePart | None
    match pieces:
        case [bytes(head), FilePart() as part, bytes(end)] if part.size > MAX_BYTES:
            pass
        case _ if any(_is_large(piece) for piece in pieces):
            return None
        case _:
            head, part, end = b"".join(map(_content, pieces)), None, b""
    entry = next(tar.read(tar.Stream([head]), trusted=True), None)
    if entry is None or entry.info.type != tarfile.REGTYPE or entry.attributes:
        return None
    info, after = entry.info, entry.position + (entry.info.size if part is None else 0)
    if (head[after:] + end).strip(b"\0") or (part is not None and (len(head), part.size) != (after, info.size)):
        return None
    content = part or head[entry.position : after]
    return entry.name, Found(info.mode, info.uid, info.gid, tar.nanoseconds(info)), content


def _is_large(piece: bytes | FilePart) -> bool:
    return isinstance(piece, FilePart) and piece.size > MAX_BYTES


def _content(piece: bytes | FilePart) -> bytes:
    return piece if isinstance(piece, bytes) else os.pread(piece.file.fileno(), piece.size, piece.position)
