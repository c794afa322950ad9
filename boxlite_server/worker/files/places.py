"""Where a path of a client leads in a box, by the rules of the REST API."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from ...errors import InvalidArgumentError, InvalidStateError, NotFoundError
from ..runtime import ArchiveStream, BoxFiles, BoxRef, FileKind, FileState, WholeArchive
from . import tar
from .spool import Follower, Spool

MAX_REPLACED_BYTES = 1024 * 1024  # of a file like /etc/hosts

# File systems that exist only in the running box: the engine's archive calls see the directories below them.
_NOT_ON_DISK = ("/dev", "/proc", "/sys")


def clean(path: str) -> str:
    """The path as an absolute one without `.` and `..`; a relative path counts from the root, as in docker."""
    cleaned = "/" + posixpath.normpath("/" + path).lstrip("/")
    if any(len(part.encode("utf-8", "surrogateescape")) > tar.MAX_NAME_BYTES for part in cleaned.split("/")):
        raise InvalidArgumentError(f"'{path[:80]}…': a part of the path is longer than {tar.MAX_NAME_BYTES} bytes")
    _refuse_not_on_disk(cleaned)
    return cleaned


def found(files: BoxFiles, path: str, asked: str) -> tuple[str, FileState]:
    """What is to be read: `path`, or what it leads to. Errors name it as it was `asked` for."""
    state = files.stat(path)
    why = ""
    if state and state.kind is FileKind.LINK:
        path, state = state.target, files.stat(state.target)
        why = f": it is a link to {path}"
        _refuse_not_on_disk(path)
    if state is None:
        raise NotFoundError(f"no such file or directory in the box: {asked}{why and f'{why}, which does not exist'}")
    if state.kind not in (FileKind.FILE, FileKind.DIRECTORY):
        raise InvalidArgumentError(f"{asked!r} is neither a file nor a directory nor a link; it cannot be copied")
    return path, state


def follow(files: BoxFiles, path: str) -> tuple[str, FileState | None]:
    """The path with its links followed, and what is there; None: nothing."""
    state = files.stat(path)
    if state is not None and state.kind is FileKind.LINK:
        path, state = state.target, files.stat(state.target)
    _refuse_not_on_disk(path)
    return path, state


def deepest(files: BoxFiles, path: str) -> tuple[str, str]:
    """The deepest existing directory on the way to `path`, and the rest of `path` relative to it."""
    missing: list[str] = []
    while True:
        place, state = follow(files, path)
        if state is not None:
            if state.kind is not FileKind.DIRECTORY:
                raise InvalidStateError(f"'{path}' in the box is not a directory")
            return place, "/".join(reversed(missing))
        path, name = posixpath.split(path)
        missing.append(name)


def made(base: str, missing: str, owner: tuple[int, int] | None) -> Iterator[bytes]:
    """Yield the headers of the directories that are to be made below `base`, outermost first, for an archive that is
    unpacked at the box's root."""
    now = int(time.time())
    for directory in tar.parents(f"{missing}/"):
        yield tar.directory(posixpath.join(base.lstrip("/"), directory), mode=0o755, mtime=now, owner=owner)


@contextmanager
def followed(spool: Spool, box: BoxRef, archive: ArchiveStream) -> Iterator[Iterator[bytes]]:
    """Yield the chunks of an archive, whose source a slow reader does not hold up. Closes the archive."""
    if isinstance(archive, WholeArchive):
        yield iter(archive)
        return
    with closing(Follower(spool, box.box_id, iter(archive), archive.close)) as follower:
        yield iter(follower)


def is_below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")


def _refuse_not_on_disk(path: str) -> None:
    for root in _NOT_ON_DISK:
        if path == root or is_below(path, root):
            raise InvalidArgumentError(
                f"{path!r}: nothing can be copied into or out of {root}; use a command in the box"
            )
