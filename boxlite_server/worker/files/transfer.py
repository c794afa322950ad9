"""Copies files into and out of boxes, by the rules of the REST API.

An upload is spooled, checked whole, and only then handed to the engine in one go: an upload that is refused or
cut off leaves no trace in the box. A download is spooled where its reader falls behind the engine, so that a slow
reader does not hold the engine's lock on the box.
"""

from __future__ import annotations

import functools
import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

from ...errors import AlreadyExistsError, InvalidArgumentError, InvalidStateError
from ..runtime import BoxFiles, BoxRef, BoxRuntime, FileKind, FilePart
from . import places, tar
from .contents import Contents
from .existing import Existing, fingerprint
from .names import Budget, Names
from .spool import Spool, SpooledFile
from .tar import Entry, Stream, Summary

MAX_FOLLOWED_BYTES = 16 * 1024**3  # of an archive in which the targets of links stand in place of the links
MAX_LINK_DEPTH = 16  # how deep links are followed inside directories that links led to


class Files:
    """Uploads to and downloads from the boxes of one runtime."""

    def __init__(self, runtime: BoxRuntime, spool: Spool) -> None:
        self._runtime = runtime
        self._spool = spool
        self._names = Budget()
        self.contents = Contents(runtime, spool)  # of single files, and of directories

    # ---- uploads ----

    def put(
        self,
        box: BoxRef,
        path: str,
        chunks: Iterable[bytes],
        *,
        overwrite: bool,
        source_is_dir: bool | None,
        keep_owner: bool = False,
    ) -> str:
        """Unpack the tar archive `chunks` at `path`.

        A single file is stored as `path`, or in the directory `path` if that exists or ends with a slash;
        any other archive is unpacked below `path`. `source_is_dir` says which of the two it is; None leaves
        that to the archive's entries. Missing directories are made, existing ones stay as they are. The files
        belong to the box's user, if the box's image names one, or with `keep_owner` to the owners that the archive
        names. Raises `InvalidArgumentError` for a bad archive
        and, without `overwrite`, `AlreadyExistsError` if any of the files exists; nothing is written then.

        Returns what was skipped, in the form of `Skipped.text`: named pipes, and extended attributes that are not
        the box's to have. Sparse files are written without holes.
        """
        target = places.clean(path)
        with (
            closing(self._runtime.files(box)) as files,
            self._spool.open(box.box_id) as file,
            Names(self._names) as names,
        ):
            for chunk in chunks:
                file.write(chunk)
            summary = tar.check(file, names)
            self._spool.check_free(max(summary.size - file.stored, 0))
            plan = _Plan(files, file, target, summary, source_is_dir, wants_dir=path.endswith("/"))
            plan.check_existing(overwrite)
            replaced = plan.replaced(files.replaceable())
            files.put("/", tar.finished(plan.pieces(None if keep_owner else files.owner())))
            for replaced_path, content in replaced.items():
                files.replace(replaced_path, content)
            return summary.skipped.text

    # ---- downloads ----

    @contextmanager
    def get(self, box: BoxRef, path: str, *, follow_links: bool) -> Iterator[tuple[bool, Iterator[bytes]]]:
        """Yield whether `path` is a directory, and a tar archive of it.

        With `/.` at the end of `path`, the archive holds the content of the directory without the directory
        itself. A `path` that is a link stands for what it leads to, under the link's name; links below it stay links.
        With `follow_links`, the archive holds the targets of those in place of the links; a link that leads
        nowhere, or to a directory that it lies in, stays a link. Such an archive has at most `MAX_FOLLOWED_BYTES`.
        Raises `NotFoundError`, `InvalidStateError` where links lead in a circle, and `InvalidArgumentError` for what
        is neither a file nor a directory, and where an archive with followed links grows too large.
        """
        wanted = places.clean(path)
        with closing(self._runtime.files(box)) as files:
            source, state = places.found(files, wanted, path)
            is_dir = state.kind is FileKind.DIRECTORY
            # The root has no name, so only its content can be copied.
            only_content = is_dir and (path.endswith("/.") or "/" in (source, wanted))
            inside = f"{source.rstrip('/')}/." if only_content else source
            name = "." if only_content else posixpath.basename(wanted)
            if follow_links or (source != wanted and not only_content):
                room = _Room() if follow_links else None
                yield is_dir, tar.finished(self._renamed(box, files, inside, name, (), room))
                return
            with places.followed(self._spool, box, files.get(inside)) as chunks:
                yield is_dir, chunks

    def _renamed(
        self, box: BoxRef, files: BoxFiles, source: str, name: str, above: tuple[str, ...], room: _Room | None
    ) -> Iterator[bytes]:
        """Yield the entries of `source` under `name`. `above`: the directories on the way here, by their paths in the
        box. `room`: for all entries of the archive, where links are followed; None: they are not."""
        with places.followed(self._spool, box, files.get(source)) as chunks:
            stream = Stream(chunks)
            top = "" if source.endswith("/.") else posixpath.basename(source)
            for entry in tar.read(stream, trusted=True):
                rest = entry.name.removeprefix(top).lstrip("/")
                new_name = posixpath.join(name, rest) if rest else name
                path = posixpath.join(source, rest)
                target = None
                if room is not None:
                    room.take(entry)
                    target = self._target(files, entry, path, (*above, source))
                if target is not None:
                    yield from self._renamed(box, files, target, new_name, (*above, source), room)
                    continue
                linkname = None
                if entry.info.type == tarfile.LNKTYPE:
                    linkname = posixpath.join(name, entry.info.linkname.removeprefix(top).lstrip("/"))
                yield tar.header(entry, new_name, linkname=linkname)
                yield from tar.data(stream, entry)

    @staticmethod
    def _target(files: BoxFiles, entry: Entry, path: str, above: tuple[str, ...]) -> str | None:
        """The path that a link leads to; None for an entry that is no link, or a link that stays one."""
        if entry.info.type != tarfile.SYMTYPE or len(above) > MAX_LINK_DEPTH:
            return None
        try:
            link = files.stat(path)
        except InvalidStateError:
            return None  # the link leads in a circle
        if link is None or link.kind is not FileKind.LINK:
            return None
        found = files.stat(link.target)
        if found is None or found.kind not in (FileKind.FILE, FileKind.DIRECTORY):
            return None
        is_above = any(directory == link.target or places.is_below(directory, link.target) for directory in above)
        return None if found.kind is FileKind.DIRECTORY and is_above else link.target


class _Room:
    """What an archive in which links are followed may still hold. A box can have links that make it grow without end:
    each may lead to a directory of more links."""

    def __init__(self) -> None:
        self._entries = tar.MAX_ENTRIES
        self._bytes = MAX_FOLLOWED_BYTES

    def take(self, entry: Entry) -> None:
        """Take room for an entry. Raises `InvalidArgumentError` when there is too little."""
        self._entries -= 1
        self._bytes -= entry.info.size if entry.info.type == tarfile.REGTYPE else 0
        if self._entries < 0 or self._bytes < 0:
            raise InvalidArgumentError(
                f"with its links followed, the archive has more than {MAX_FOLLOWED_BYTES} bytes or {tar.MAX_ENTRIES} "
                "entries; copy it with its links as they are, or in parts"
            )


class _Plan:
    """Where the entries of a checked archive go."""

    def __init__(
        self,
        files: BoxFiles,
        file: SpooledFile,
        path: str,
        summary: Summary,
        source_is_dir: bool | None,
        *,
        wants_dir: bool,
    ) -> None:
        self._files = files
        self._file = file
        self._summary = summary
        path, state = places.follow(files, path)
        is_dir = state is not None and state.kind is FileKind.DIRECTORY
        self._renamed = ""  # the new name of the single entry, if it is stored as the path itself
        directory = path
        if not wants_dir and not is_dir and _is_single(summary, source_is_dir):
            directory, self._renamed = posixpath.split(path)
        self._base, self._missing = places.deepest(files, directory)

    # ---- what exists in the box ----

    def check_existing(self, overwrite: bool) -> None:
        """Find out what the box has already. Without `overwrite`, raises `AlreadyExistsError` for a file."""
        if self._missing:
            return
        if not self._renamed:
            Existing(self._files, functools.partial(places.follow, self._files), self._summary.names).mark(
                self._base, overwrite=overwrite
            )
            return
        path = posixpath.join(self._base, self._renamed)
        if not overwrite and self._files.stat(path) is not None:
            raise AlreadyExistsError(f"'{path}' exists in the box; nothing was written")

    # ---- what is written ----

    def replaced(self, paths: frozenset[str]) -> dict[str, bytes]:
        """Take the files at these paths out of what is unpacked. Returns their contents by their paths."""
        found: dict[str, bytes] = {}
        place = posixpath.join(self._base, self._missing)
        if self._renamed and posixpath.join(place, self._renamed) not in paths:
            return found
        names = {path: posixpath.relpath(path, place) for path in paths}
        if not self._renamed and not any(self._summary.names.find(name) for name in names.values()):
            return found
        for entry in tar.read(self._file):
            path = posixpath.join(place, self._renamed or entry.name)
            if path not in paths or entry.info.type != tarfile.REGTYPE:
                continue
            if entry.info.size > places.MAX_REPLACED_BYTES:
                raise InvalidArgumentError(f"{path!r} can have at most {places.MAX_REPLACED_BYTES} bytes in a box")
            found[path] = b"".join(tar.data(self._file, entry))[: entry.info.size]
            self._summary.left_out.add(entry.position)
        return found

    def pieces(self, owner: tuple[int, int] | None) -> Iterator[bytes | FilePart]:
        """Yield the archive to unpack at the box's root: the missing directories, and the entries under their new
        names. An engine refuses links that lead out of where it unpacks, so that is no other place."""
        base = self._base.lstrip("/")
        made = list(places.made(base, self._missing, owner))
        if made and self._summary.top is not None:
            made[-1] = tar.header(self._summary.top, posixpath.join(base, self._missing), owner=owner)
        yield from made
        for entry in tar.read(self._file):
            if not entry.name or entry.position in self._summary.left_out or self._is_there(entry, owner):
                continue
            name = posixpath.join(base, self._missing, self._renamed or entry.name)
            linkname = None
            if entry.info.type == tarfile.LNKTYPE:
                linkname = posixpath.join(base, self._missing, entry.info.linkname)
            yield tar.header(entry, name, owner=owner, linkname=linkname)
            yield from tar.parts(self._file, entry)

    def _is_there(self, entry: Entry, owner: tuple[int, int] | None) -> bool:
        """Whether the box has the entry: the directory, or the same file or link."""
        node = None if self._renamed else self._summary.names.find(entry.name)
        if node is None:
            return False
        if entry.is_dir:
            return node.in_box is FileKind.DIRECTORY
        if node.twin and node.twin == fingerprint(self._file, entry, owner):
            return True
        node.twin = b""  # a later entry of this name replaces what is written now
        return False


def _is_single(summary: Summary, source_is_dir: bool | None) -> bool:
    """Whether the archive holds a single file, or a single link that the sender says is no directory."""
    entry = summary.single
    if entry is not None and entry.info.type == tarfile.FIFOTYPE and not source_is_dir:
        raise InvalidArgumentError(f"the archive's entry {entry.name!r} is a named pipe, and there is nothing else")
    kinds = (tarfile.REGTYPE, tarfile.SYMTYPE) if source_is_dir is False else (tarfile.REGTYPE,)
    is_single = entry is not None and entry.info.type in kinds
    if source_is_dir is False and not is_single:
        raise InvalidArgumentError("source_is_dir is false, but the archive is not of one file alone")
    return is_single and not source_is_dir
