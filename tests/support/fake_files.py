"""The files of a fake box: a directory of this host is its root."""

from __future__ import annotations

import io
import os
import pwd
import stat
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from boxlite_server.errors import InvalidStateError, NotFoundError
from boxlite_server.worker.runtime import FileEntry, FileKind, FilePart, FileState, Listing

MAX_LINKS = 40


class FakeArchive:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._data), 65536):
            yield self._data[start : start + 65536]

    def close(self) -> None:
        pass


class FakeFiles:
    """Copies files in and out as an engine does, wholly in memory. Owners are set where this process may do so."""

    def __init__(self, root: Path, user: str) -> None:
        self._root = root
        self._user = user

    def owner(self) -> tuple[int, int] | None:
        if not self._user:
            return 0, 0
        try:
            entry = pwd.getpwnam(self._user)
        except KeyError:
            return None
        return entry.pw_uid, entry.pw_gid

    def stat(self, path: str) -> FileState | None:
        try:
            mode = self._host(path).lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(mode):
            return FileState(FileKind.LINK, self._resolved(path))
        if stat.S_ISDIR(mode):
            return FileState(FileKind.DIRECTORY)
        return FileState(FileKind.FILE if stat.S_ISREG(mode) else FileKind.OTHER)

    def describe(self, path: str) -> FileEntry | None:
        state = self.stat(path)
        if state is None:
            return None
        host = self._host(path)
        found = host.lstat()
        return FileEntry(
            PurePosixPath(path).name or "/",
            state.kind,
            found.st_size if state.kind is FileKind.FILE else 0,
            stat.S_IMODE(found.st_mode),
            found.st_mtime_ns,
            str(host.readlink()) if state.kind is FileKind.LINK else "",
        )

    def entries(self, path: str, after: str, count: int) -> Listing:
        directory = self._root / self._resolved(path).lstrip("/")
        names = sorted(found.name for found in directory.iterdir() if found.name > after)
        found = [self.describe(f"{path.rstrip('/')}/{name}") for name in names[:count]]
        whole = [replace(entry, modified=entry.modified // 10**9 * 10**9) for entry in found if entry]
        return Listing(whole, len(names) > count)

    def put(self, directory: str, archive: Iterable[bytes | FilePart]) -> None:
        data = b"".join(piece if isinstance(piece, bytes) else _content(piece) for piece in archive)
        directories = []
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for entry in tar:
                path = f"{directory.rstrip('/')}/{entry.name}"
                target = self._host(path)
                if target.exists() and not target.is_symlink() and target.is_dir() != entry.isdir():
                    raise InvalidStateError(f"cannot overwrite {path}: one is a directory and the other is not")
                if not entry.isdir():
                    target.unlink(missing_ok=True)
                if entry.islnk():
                    os.link(self._host(f"{directory.rstrip('/')}/{entry.linkname}"), target, follow_symlinks=False)
                    continue
                tar.extract(_named(entry, target.name), target.parent, filter="fully_trusted", numeric_owner=True)
                if entry.issym():
                    os.utime(target, (entry.mtime, entry.mtime), follow_symlinks=False)
                if entry.isdir():
                    directories.append((target, entry.mtime))
        for target, mtime in directories:
            os.utime(target, (mtime, mtime))

    def replaceable(self) -> frozenset[str]:
        return frozenset()

    def replace(self, path: str, content: bytes) -> None:
        raise AssertionError(f"{path} is no file of the runtime")

    def get(self, path: str) -> FakeArchive:
        state = self.stat(path.removesuffix("/."))
        if state is None:
            raise NotFoundError(f"no such file in the box: {path}")
        source = self._host(path.removesuffix("/."))
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            tar.add(source, "." if path.endswith("/.") else PurePosixPath(path).name)
        return FakeArchive(data.getvalue())

    def close(self) -> None:
        pass

    def _host(self, path: str) -> Path:
        """Where a path of the box is on this host; its last part is not followed."""
        parent, _, name = path.rstrip("/").rpartition("/")
        return self._root / self._resolved(parent).lstrip("/") / name

    def _resolved(self, path: str) -> str:
        """The path with all its links followed inside the box."""
        done, left, links = PurePosixPath("/"), list(PurePosixPath("/" + path).parts[1:]), 0
        while left:
            part = left.pop(0)
            if part == "..":
                done = done.parent
                continue
            step = self._root / str(done / part).lstrip("/")
            if not step.is_symlink():
                done = done / part
                continue
            links += 1
            if links > MAX_LINKS:
                raise InvalidStateError(f"too many links on the way to {path}")
            target = PurePosixPath(step.readlink())
            if target.is_absolute():
                done, target = PurePosixPath("/"), target.relative_to("/")
            left = [*target.parts, *left]
        return str(done)


def _named(entry: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    entry.name = name
    return entry


def _content(part: FilePart) -> bytes:
    return os.pread(part.file.fileno(), part.size, part.position)
