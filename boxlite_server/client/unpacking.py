"""Unpacks an archive from a box on this machine, as it comes. The archive is not trusted.

Links are made as they are, wherever they lead. Nothing is written through a link, neither one of the archive nor one
that was there before: what is in the way of a file or a directory is replaced if it is a link.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Callable
from pathlib import Path

from ..errors import AlreadyExistsError, BoxliteError, InvalidArgumentError, NotFoundError


class Unpack:
    """Unpacks an archive. `skipped` is the number of entries that were refused as unsafe; `warn` is called with a
    text for each of them. With `keep_owner`, what is unpacked gets the user and group ids of the archive."""

    def __init__(
        self, archive: tarfile.TarFile, *, overwrite: bool, keep_owner: bool, warn: Callable[[str], object]
    ) -> None:
        if not hasattr(tarfile, "data_filter"):
            raise BoxliteError("this Python cannot unpack archives safely; 3.11.4 and later can")
        self._archive = archive
        self._overwrite = overwrite
        self._keep_owner = keep_owner
        self._warn = warn
        self._made: set[Path] = set()  # directories below the destination, and no links
        self.skipped = 0

    def directory(self, destination: str) -> None:
        """Unpack all entries below `destination`. Raises `AlreadyExistsError` for a file that may not be
        overwritten, and `InvalidArgumentError` for what cannot be written."""
        root = Path(destination)
        root.mkdir(parents=True, exist_ok=True)
        made: list[tuple[Path, tarfile.TarInfo]] = []
        for entry in self._archive:
            target = self._extract(entry, entry.name, root)
            if target is not None and entry.isdir():
                made.append((target, entry))
        # A directory is writable until it is complete; its own mode and time are set at the end.
        for target, entry in reversed(made):
            self._give(target, entry)
            target.chmod(entry.mode & 0o777)
            os.utime(target, (entry.mtime, entry.mtime))

    def file(self, destination: str) -> None:
        """Unpack the first entry as `destination`, or into it if it is a directory."""
        entry = self._archive.next()
        if entry is None:
            raise NotFoundError("the archive from the server is empty")
        target = Path(destination)
        if destination.endswith("/") or target.is_dir():
            target = target / posixpath.basename(entry.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._extract(entry, target.name, target.parent)

    def _extract(self, entry: tarfile.TarInfo, name: str, root: Path) -> Path | None:
        """Where the entry was unpacked; None if it was skipped."""
        parts = _parts(name)
        try:
            if ".." in parts:
                raise tarfile.OutsideDestinationError(entry, name)
            target = root.joinpath(*parts)
            self._make_directories(root, parts if entry.isdir() else parts[:-1])
            if not entry.isdir():
                self._clear(target)
                self._write(entry, "/".join(parts), root)
        except tarfile.FilterError as error:
            self.skipped += 1
            self._warn(f"skipped {entry.name}: {error}")
            return None
        except OSError as error:
            raise InvalidArgumentError(f"cannot write {root / name}: {error.strerror or error}") from error
        return target

    def _make_directories(self, root: Path, parts: list[str]) -> None:
        path = root
        for part in parts:
            path = path / part
            if path in self._made:
                continue
            if path.is_symlink():
                self._clear(path)
            if not path.is_dir():
                path.mkdir(mode=0o700)
            self._made.add(path)

    def _clear(self, target: Path) -> None:
        """Make way for an entry: remove what is there, unless it is a directory."""
        if not os.path.lexists(target):
            return
        if not self._overwrite:
            raise AlreadyExistsError(f"'{target}' exists")
        target.unlink()

    def _write(self, entry: tarfile.TarInfo, name: str, root: Path) -> None:
        target = root / name
        if entry.issym():
            target.symlink_to(entry.linkname)
            os.utime(target, (entry.mtime, entry.mtime), follow_symlinks=False)
        elif entry.islnk():
            parts = _parts(entry.linkname)
            source = root.joinpath(*parts)
            # The way to the source has to be one of directories that were made here, for it must not lead outside.
            is_inside = ".." not in parts and all(parent in self._made for parent in _between(root, source))
            if not is_inside or not os.path.lexists(source):
                raise tarfile.LinkOutsideDestinationError(entry, str(source))
            os.link(source, target, follow_symlinks=False)
        else:
            self._archive.extract(entry.replace(name=name, deep=False), root, filter="data")
        if not entry.islnk():
            self._give(target, entry)

    def _give(self, target: Path, entry: tarfile.TarInfo) -> None:
        """Give what was unpacked to its owner of the archive. Raises OSError where this process may not."""
        if self._keep_owner:
            os.chown(target, entry.uid, entry.gid, follow_symlinks=False)


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _between(root: Path, path: Path) -> list[Path]:
    """The directories below `root` that `path` lies in."""
    return [parent for parent in path.parents if root in parent.parents]
