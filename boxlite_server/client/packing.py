"""Packs a file or a directory of this machine into a tar archive while it is sent."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

from ..errors import InvalidArgumentError, NotFoundError

_CHUNK = 256 * 1024
_BLOCK = 512


class Pack:
    """The archive of `source`.

    The entries of a directory lie under its name, unless `source` ends in `/.` or `include_parent` is False.
    `warn` is called with a text for each file that is skipped. Raises `NotFoundError` if there is no `source`.
    """

    def __init__(self, source: str, *, follow_links: bool, include_parent: bool, warn: Callable[[str], object]) -> None:
        self.source = os.path.normpath(source)
        if not os.path.lexists(self.source):
            raise NotFoundError(f"no such file or directory: {source}")
        self._root = Path(self.source)
        is_link = self._root.is_symlink() and not follow_links and not source.endswith(("/", "/."))
        self.is_dir = self._root.is_dir() and not is_link
        only_content = source.endswith(("/.", "/..")) or source in (".", "..") or not include_parent
        self._top = "." if self.is_dir and only_content else self._root.resolve().name or "."
        self._follow = follow_links
        self._warn = warn
        # It only makes headers and recognizes hard links; nothing is written to it.
        self._tar = tarfile.open(fileobj=BytesIO(), mode="w", dereference=follow_links)  # noqa: SIM115

    def size(self) -> int:
        """The size of all files in bytes, as of now. The archive is a little larger."""
        return sum(path.stat().st_size for path, _ in self._paths() if path.is_file() and not self._is_link(path))

    def chunks(self) -> Iterator[bytes]:
        """Yield the archive. Raises `InvalidArgumentError` when a file cannot be read or shrinks meanwhile."""
        for path, name in self._paths():
            try:
                info = self._tar.gettarinfo(path, name)
                if info is None or not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
                    self._warn(f"skipped {path}: it is neither a file nor a directory nor a link")
                    continue
                yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
                if info.isreg():
                    yield from _content(path, info.size)
            except OSError as error:
                raise InvalidArgumentError(f"cannot read {path}: {error.strerror}") from error
        yield bytes(2 * _BLOCK)

    def _paths(self) -> Iterator[tuple[Path, str]]:
        """Yield each path to pack and its name in the archive; directories come before their content."""
        top = self._top
        if not self.is_dir:
            yield self._root, top
            return
        for directory, names, files in os.walk(self._root, followlinks=self._follow):
            if self._follow and self._leads_up(Path(directory)):
                self._warn(f"skipped {directory}: it links to a directory that contains it")
                names.clear()
                continue
            relative = Path(directory).relative_to(self._root)
            yield Path(directory), str(Path(top) / relative)
            names.sort()
            links = [name for name in names if self._is_link(Path(directory, name))]
            for name in sorted([*files, *links]):
                yield Path(directory, name), str(Path(top) / relative / name)

    def _leads_up(self, directory: Path) -> bool:
        above = [parent for parent in directory.parents if parent == self._root or self._root in parent.parents]
        return os.path.realpath(directory) in {os.path.realpath(parent) for parent in above}

    def _is_link(self, path: Path) -> bool:
        return path.is_symlink() and not self._follow


def _content(path: Path, size: int) -> Iterator[bytes]:
    left = size
    with path.open("rb") as file:
        while left:
            data = file.read(min(left, _CHUNK))
            if not data:
                raise InvalidArgumentError(f"{path} became shorter while it was read")
            left -= len(data)
            yield data
    yield bytes(-size % _BLOCK)
