"""The files of a running box, the small ones by the file service in the box: the engine takes many times as long."""

from __future__ import annotations

import itertools
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterable, Iterator

from ..box_files import ArchiveStream, BoxFiles, FileKind, FilePart, FileState, WholeArchive
from ..files import tar
from .service import MAX_BYTES, FileService, Found, UnservedError

_MAX_ARCHIVE = MAX_BYTES + 64 * 1024  # bytes of an archive of one file, with its headers
_KINDS = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.DIRECTORY}


class SupervisedFiles:
    """The `BoxFiles` of a running box. `others` do what the file service does not: directories, links, large files,
    what the box's processes may not do, and whatever is to be refused."""

    def __init__(self, service: FileService, others: BoxFiles) -> None:
        self._service = service
        self._others = others

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

    def put(self, directory: str, archive: Iterable[bytes | FilePart]) -> None:
        pieces = iter(archive)
        first, is_whole = _beginning(pieces)
        if is_whole and (single := _single(first)) is not None:
            name, file, content = single
            try:
                self._service.write(posixpath.join(directory, name), file, content)
                return
            except UnservedError:
                pass
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


def _beginning(pieces: Iterator[bytes | FilePart]) -> tuple[list[bytes | FilePart], bool]:
    """The first pieces of an archive, and whether they are all: a large one is not taken whole."""
    taken: list[bytes | FilePart] = []
    size = 0
    for piece in pieces:
        taken.append(piece)
        size += piece.size if isinstance(piece, FilePart) else len(piece)
        if size > _MAX_ARCHIVE:
            return taken, False
    return taken, True


def _single(pieces: Iterable[bytes | FilePart]) -> tuple[str, Found, bytes] | None:
    """Name, attributes and content of the regular file that is all there is in an archive of this worker; None: there
    is something else."""
    stream = tar.Stream(_content(piece) for piece in pieces)
    entries = tar.read(stream, trusted=True)
    entry = next(entries, None)
    if entry is None or entry.info.type != tarfile.REGTYPE or entry.attributes or entry.info.size > MAX_BYTES:
        return None
    content = b"".join(tar.data(stream, entry))[: entry.info.size]
    if next(entries, None) is not None:
        return None
    info = entry.info
    return entry.name, Found(info.mode, info.uid, info.gid, tar.nanoseconds(info)), content


def _content(piece: bytes | FilePart) -> bytes:
    return piece if isinstance(piece, bytes) else os.pread(piece.file.fileno(), piece.size, piece.position)
