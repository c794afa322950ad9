"""A file or a directory of this machine as a tar archive, made while it is sent."""

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
    """The archive of `source`. A directory's entries lie under its name, unless `source` ends in `/.` or
    `include_parent` is False. Raises `NotFoundError`. `warn` is told of what no archive can hold."""

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
        # Only for what it knows of headers and of hard links; nothing is written to it.
        self._tar = tarfile.open(fileobj=BytesIO(), mode="w", dereference=follow_links)  # noqa: SIM115

    def size(self) -> int:
        """How many bytes the files have now: the archive is a little larger."""
        return sum(path.stat().st_size for path, _ in self._paths() if path.is_file() and not self._is_link(path))

    def chunks(self) -> Iterator[bytes]:
        """The archive. Raises `InvalidArgumentError` where a file cannot be read or changes on the way."""
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
        """What goes into the archive, and its names there; directories before what is in them."""
        top = self._top
        if not self.is_dir:
            yield self._root, top
            return
        for directory, names, files in os.walk(self._root, followlinks=self._follow):
            if self._follow and self._leads_up(Path(directory)):
                self._warn(f"skipped {directory}: it is a link to a directory that it lies in")
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
