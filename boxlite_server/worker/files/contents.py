"""Reads and writes single files of boxes, tells what is at a path, and lists directories, by the rules of the REST
API."""

from __future__ import annotations

import dataclasses
import posixpath
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

from ...errors import InvalidArgumentError, InvalidStateError, NotFoundError
from ..runtime import ArchiveStream, BoxFiles, BoxRef, BoxRuntime, FileEntry, FileKind, FilePart, Listing, WholeArchive
from . import places, tar
from .exclusive import Exclusive
from .spool import Spool, SpooledFile

ANY = "*"  # stands for every version
NEW_MODE = 0o644  # of a file that did not exist


class Condition(NamedTuple):
    """When a file is to be written: where it has one of the `versions`, if there are any, and where it does not exist,
    if it has to be `absent`."""

    versions: tuple[str, ...] = ()
    absent: bool = False

    def holds(self, entry: FileEntry | None) -> bool:
        """`entry`: what is there; None: nothing."""
        if self.absent and entry is not None:
            return False
        return not self.versions or (entry is not None and not {ANY, entry.version}.isdisjoint(self.versions))


class Contents:
    """Single files and directories of the boxes of one runtime."""

    def __init__(self, runtime: BoxRuntime, spool: Spool) -> None:
        self._runtime = runtime
        self._spool = spool
        self._writing = Exclusive()

    def stat(self, box: BoxRef, path: str, *, follow: bool) -> FileEntry:
        """What is at a path. With `follow`, a link stands for the file or directory that it leads to, under its own
        name. Raises what `read` raises."""
        wanted = places.clean(path)
        with closing(self._runtime.files(box)) as files:
            source = places.found(files, wanted, path)[0] if follow else wanted
            return dataclasses.replace(_described(files, source, path), name=posixpath.basename(wanted) or "/")

    def entries(self, box: BoxRef, path: str, after: str, count: int) -> Listing:
        """The first `count` entries of a directory behind the name `after`. Raises what `read` raises."""
        with closing(self._runtime.files(box)) as files:
            source, state = places.found(files, places.clean(path), path)
            if state.kind is not FileKind.DIRECTORY:
                raise InvalidArgumentError(f"{path!r} is no directory; it has no entries")
            return files.entries(source, after, count)

    @contextmanager
    def read(
        self, box: BoxRef, path: str, version: str, offset: int, size: int
    ) -> Iterator[tuple[FileEntry, Iterator[bytes]]]:
        """Yield what the file is, and `size` bytes of it from `offset` on, which it has to have. There are none where
        it has another `version`.

        Raises `NotFoundError`, `InvalidArgumentError` for what is no file, and `InvalidStateError` where links lead in
        a circle, and where the file changes while it is read.
        """
        with closing(self._runtime.files(box)) as files:
            source, state = places.found(files, places.clean(path), path)
            if state.kind is FileKind.DIRECTORY:
                raise _directory(path)
            entry = _described(files, source, path)
            if entry.version != version:
                yield entry, iter(())
                return
            archive = files.get(source)
            with places.followed(self._spool, box, archive) as chunks:
                yield entry, _pieces(files, source, entry, archive, chunks, range(offset, offset + size))

    def write(
        self, box: BoxRef, path: str, chunks: Iterable[bytes], mode: int | None, condition: Condition
    ) -> FileEntry | None:
        """Write a file, whole and at once, and make the directories that it lies in. Returns what it is then; None: the
        condition did not hold, and nothing was written. A `mode` of None means that of the file that is replaced.

        No other call writes the file between the condition and the end. The file belongs to the box's user. Raises
        `InvalidArgumentError` and `InvalidStateError` for a path that cannot become a file.
        """
        wanted = places.clean(path)
        with closing(self._runtime.files(box)) as files, self._spool.open(box.box_id) as file:
            for chunk in chunks:
                file.write(chunk)
            target, state = places.follow(files, wanted)
            with self._writing.of(f"{box.box_id} {target}"):
                if path.endswith("/") or (state and state.kind is FileKind.DIRECTORY):
                    raise _directory(path)
                entry = files.describe(target)
                if entry and entry.kind is not FileKind.FILE:
                    raise InvalidArgumentError(f"{path!r} is no file; it cannot be written")
                if not condition.holds(entry):
                    return None
                kept = entry.mode & 0o777 if entry else NEW_MODE
                self._put(files, file, target, kept if mode is None else mode)
                return _described(files, target, path)

    @staticmethod
    def _put(files: BoxFiles, file: SpooledFile, target: str, mode: int) -> None:
        if target not in files.replaceable():
            directory, name = posixpath.split(target)
            place, owner = places.deepest(files, directory), files.owner() or (0, 0)
            files.put("/", tar.finished(_archive(file, *place, name, mode, owner)))
            return
        if file.size > places.MAX_REPLACED_BYTES:
            raise InvalidArgumentError(f"{target!r} can have at most {places.MAX_REPLACED_BYTES} bytes in a box")
        files.replace(target, file.read(file.size, 0))


def _archive(
    file: SpooledFile, base: str, missing: str, name: str, mode: int, owner: tuple[int, int]
) -> Iterator[bytes | FilePart]:
    """Yield an archive of the file, and of the directories `missing` below `base`. It asks the engine nothing, which
    may do nothing else about the box while it unpacks."""
    yield from places.made(base, missing, owner)
    now = time.time_ns()
    info = tarfile.TarInfo()
    info.size, info.mode, info.mtime = file.size, mode, now // 10**9
    info.pax_headers = {"mtime": f"{now // 10**9}.{now % 10**9:09d}"}
    place = posixpath.join(base, missing, name).lstrip("/")
    yield tar.header(tar.Entry(place, info, 0, None, {}), place, owner=owner)
    yield from file.parts(0, file.size)
    yield bytes(-file.size % tarfile.BLOCKSIZE)


def _pieces(
    files: BoxFiles, source: str, entry: FileEntry, archive: ArchiveStream, chunks: Iterator[bytes], wanted: range
) -> Iterator[bytes]:
    """Yield the wanted bytes of the one file of an archive. Raises `InvalidStateError` where it is not the file that
    `entry` describes."""
    stream = tar.Stream(chunks)
    found = next(tar.read(stream, trusted=True), None)
    is_file = found is not None and found.info.type == tarfile.REGTYPE
    if (
        found is None
        or not is_file
        or (found.info.size, int(found.info.mtime)) != (entry.size, entry.modified // 10**9)
    ):
        raise _changing(source)
    if isinstance(archive, WholeArchive) and files.describe(source) != entry:
        raise _changing(source)
    begin = 0
    for piece in tar.data(stream, found):
        part = piece[max(wanted.start - begin, 0) : max(wanted.stop - begin, 0)]
        begin += len(piece)
        if part:
            yield part
        if begin >= wanted.stop:
            return


def _described(files: BoxFiles, path: str, asked: str) -> FileEntry:
    entry = files.describe(path)
    if entry is None:
        raise NotFoundError(f"no such file or directory in the box: {asked}")
    return entry


def _directory(path: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{path!r} is a directory; list it, or copy it as an archive")


def _changing(path: str) -> InvalidStateError:
    return InvalidStateError(f"{path!r} changes while it is read; try again")
