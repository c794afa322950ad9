"""Finds out what a box has already of the names in an archive, in few calls to the engine.

Names near the top are looked at one by one. Where there are many, a directory is listed instead: the engine gives
an archive of it. Such an archive holds the content of all files, so listing ends when more has come than the single
calls would have taken; and it tells which files need not be written again, which engines do much more slowly than
they write new ones.
"""

from __future__ import annotations

import hashlib
import posixpath
import tarfile
from collections import deque
from collections.abc import Callable
from contextlib import closing

from ...errors import AlreadyExistsError, EngineError, InvalidArgumentError, InvalidStateError, NotFoundError
from ..runtime import BoxFiles, FileKind, FileState
from . import tar
from .names import Names, Node
from .sparse import Source
from .tar import Entry, Stream

MAX_SINGLE = 32  # names that are looked at one by one; where there are more, directories are listed
MAX_NARROW = 4  # names in a directory that is not listed before `MAX_SINGLE` names were looked at
LISTED_BYTES = 512 * 1024  # of archives for each name to find: what the engine sends while it looks at one name
MIN_LISTED_BYTES = 64 * 1024 * 1024

Follow = Callable[[str], tuple[str, FileState | None]]

_KINDS = {
    tarfile.DIRTYPE: FileKind.DIRECTORY,
    tarfile.SYMTYPE: FileKind.LINK,
    tarfile.LNKTYPE: FileKind.LINK,  # it may be one more name of a symbolic link
    tarfile.REGTYPE: FileKind.FILE,
}


class Existing:
    """Looks for an archive's names below a directory of a box.

    `follow` gives a path with its links followed, and what is there; it raises for places where nothing can be
    stored.
    """

    def __init__(self, files: BoxFiles, follow: Follow, names: Names) -> None:
        self._files = files
        self._follow = follow
        self._names = names
        self._looked = 0
        self._bytes_left = 0  # of archives for listing

    def mark(self, base: str, *, overwrite: bool) -> None:
        """Set `in_box` of each directory of the archive that the box has, itself or by a link, to DIRECTORY, and
        `twin` of files and links that were seen to be there.

        Raises `InvalidStateError` where the box has something else, and without `overwrite`
        `AlreadyExistsError` for a file that exists.
        """
        count = self._names.directories if overwrite else len(self._names)
        if count > MAX_SINGLE:
            self._bytes_left = max(MIN_LISTED_BYTES, LISTED_BYTES * count)
        # Directories that exist, where they really are, and whether all below them is known from a listing.
        queue = deque([(self._names.top, base, False)])
        while queue:
            directory, path, is_listed = queue.popleft()
            wanted = {name: node for name, node in directory.below.items() if node.is_dir or not overwrite}
            if not is_listed and self._is_worth_listing(path, len(wanted)):
                is_listed = self._list(directory, path)
            for name, node in wanted.items():
                place = posixpath.join(path, name)
                is_known = node.in_box is not None or is_listed
                if not node.is_dir:
                    if (node.in_box if is_known else self._look(place)) is not None:
                        raise AlreadyExistsError(f"'{place}' exists in the box; nothing was written")
                    continue
                found, kind, below_is_listed = place, node.in_box, is_listed
                if not is_known or kind is FileKind.LINK:
                    found, kind = self._look_through(place)
                    below_is_listed = False
                if kind not in (None, FileKind.DIRECTORY):
                    raise InvalidStateError(f"'{place}' in the box is not a directory; in the archive it is one")
                node.in_box = kind
                if kind is not None:
                    queue.append((node, found, below_is_listed))

    def _is_worth_listing(self, path: str, wanted: int) -> bool:
        """Whether to list a directory for that many names in it, and for all below them. Those that hold a whole
        system, and the few on the way to a tree, are not."""
        is_wide = path != "/" and wanted > MAX_NARROW
        return self._bytes_left > 0 and wanted > 0 and (is_wide or self._looked + wanted > MAX_SINGLE)

    def _look(self, path: str) -> FileKind | None:
        self._looked += 1
        state = self._files.stat(path)
        return state.kind if state is not None else None

    def _look_through(self, path: str) -> tuple[str, FileKind | None]:
        self._looked += 1
        found, state = self._follow(path)
        return found, state.kind if state is not None else None

    def _list(self, directory: Node, path: str) -> bool:
        """Note what is below a directory of the box; False if only a part of that was seen."""
        end = 0
        try:
            with closing(self._files.get(f"{path.rstrip('/')}/.")) as archive:
                stream = Stream(archive)
                for entry in tar.read(stream, trusted=True):
                    node = _below(directory, entry.name)
                    end = entry.position + entry.info.size
                    if end > self._bytes_left:
                        self._bytes_left = 0
                        return False
                    if node is not None and node is not directory:
                        node.in_box = _KINDS.get(entry.info.type, FileKind.OTHER)
                        if node.kind == entry.info.type in (tarfile.REGTYPE, tarfile.SYMTYPE):
                            node.twin = fingerprint(stream, entry)
                self._bytes_left -= end
        except (NotFoundError, InvalidArgumentError, EngineError):
            return False  # it changed meanwhile, or the engine cannot archive it: names are looked at one by one
        return True


def fingerprint(source: Source, entry: Entry, owner: tuple[int, int] | None = None) -> bytes:
    """What is the same for two entries that make the same file, or the same link. `owner`: of the file, if not the
    entry's. Times count in whole seconds, since engines give no others."""
    info = entry.info
    attributes = [*entry.attributes.items()]
    fields = (info.type, info.linkname, info.mode & 0o7777, owner or (info.uid, info.gid), int(info.mtime), attributes)
    seen = hashlib.blake2b(repr(fields).encode(errors="surrogateescape"), digest_size=16)
    for chunk in tar.data(source, entry):
        seen.update(chunk)
    return seen.digest()


def _below(directory: Node, name: str) -> Node | None:
    node: Node | None = directory
    for part in name.split("/") if name else ():
        node = node.below.get(part) if node is not None else None
    return node
