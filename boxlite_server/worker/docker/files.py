"""The files of a box, by the archive calls of Docker Engine, which serve running boxes and boxes at rest.

The engine resolves paths inside the container's root and unpacks in a process confined to it.
"""

from __future__ import annotations

import base64
import io
import json
import posixpath
import re
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any

from ...errors import EngineError, InvalidArgumentError, InvalidStateError, NotFoundError
from ...rpc import CHUNK_BYTES
from ..files import listing, tar
from ..runtime import FileEntry, FileKind, FilePart, FileState, Listing
from .engine import Answer, Engine, engine_errors, refusal
from .system_files import SystemFiles

UNPACK_TIMEOUT = 600.0  # seconds that the engine may be silent while it unpacks
_MAX_USER_FILE = 1024 * 1024  # bytes; a larger /etc/passwd or /etc/group is not looked at
_END = bytes(1024)  # of a tar archive

# Bits of a mode in the engine's answers: that of Go, not that of stat().
_IS_DIRECTORY, _IS_LINK = 1 << 31, 1 << 27
_IS_NO_FILE = 1 << 31 | 1 << 27 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19
_SPECIAL = {1 << 23: 0o4000, 1 << 22: 0o2000, 1 << 20: 0o1000}  # and what they are for stat()

_TIME = re.compile(r"([^.Z+]+?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")

_NOT_THERE = ("not a directory",)
_LOOPS = ("too many links", "too many levels of symbolic links")
_GONE = "no such file or directory"
_CONFLICTS = ("cannot overwrite", "not a directory", "is a directory", "resource busy", "read-only", "file exists")


class DockerFiles:
    """The `BoxFiles` of one container. `system_files`: who replaces those of boxes; None: nobody does."""

    def __init__(self, engine: Engine, container: Mapping[str, Any], system_files: SystemFiles | None = None) -> None:
        self._engine = engine
        self._container = container
        self._system_files = system_files or SystemFiles(None)
        self._user = container["Config"]["User"] or ""
        self._path = f"/containers/{container['Id']}/archive"

    # ---- the box's files ----

    def stat(self, path: str) -> FileState | None:
        told = self._told(path)
        if told is None:
            return None
        kind = _kind(told["mode"])
        return FileState(kind, told["linkTarget"] if kind is FileKind.LINK else "")

    def describe(self, path: str) -> FileEntry | None:
        told = self._told(path)
        if told is None:
            return None
        kind = _kind(told["mode"])
        size = told["size"] if kind is FileKind.FILE else 0
        text = self._text_of_link(path) if kind is FileKind.LINK else ""
        name = posixpath.basename(path) or "/"
        return FileEntry(name, kind, size, _permissions(told["mode"]), _nanoseconds(told["mtime"]), text)

    def entries(self, path: str, after: str, count: int) -> Listing:
        with closing(self.get(f"{path.rstrip('/')}/.")) as archive:
            return listing.of_archive(archive, after, count)

    def _text_of_link(self, path: str) -> str:
        with closing(self.get(path)) as archive:
            return next(tar.read(tar.Stream(archive), trusted=True)).info.linkname

    def _told(self, path: str) -> dict[str, Any] | None:
        """What the engine tells of a path; None: there is nothing."""
        try:
            with _refusals(), engine_errors(f"cannot look at {path!r} in the box"):
                answer = self._engine.call("HEAD", self._path, {"path": path}, timeout=UNPACK_TIMEOUT)
                if answer.status >= 500:
                    # The answer to HEAD does not give the reason; the answer to GET does.
                    with closing(self._read(path)) as full:
                        full.check()
                answer.check()
        except (NotFoundError, _NotThereError):
            return None
        told: dict[str, Any] = json.loads(base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"]))
        return told

    def put(self, directory: str, archive: Iterable[bytes | FilePart]) -> None:
        where = {"path": directory, "noOverwriteDirNonDir": "true"}
        with _refusals(), engine_errors("cannot write to the box"):
            self._engine.send("PUT", self._path, where, archive, timeout=UNPACK_TIMEOUT).check()

    def replaceable(self) -> frozenset[str]:
        return self._system_files.managed(self._container)

    def replace(self, path: str, content: bytes) -> None:
        with engine_errors(f"cannot write to {path!r} in the box"):
            is_there = self._system_files.replace(self._container, path, content)
        if not is_there:  # what the engine will hide at the first start is read until then
            info = tarfile.TarInfo(path.lstrip("/"))
            info.size, info.mtime = len(content), int(time.time())
            self.put("/", [info.tobuf() + content + bytes(-len(content) % 512) + _END])

    def get(self, path: str) -> DockerArchive:
        try:
            with _refusals(), engine_errors(f"cannot read {path!r} in the box"):
                return DockerArchive(self._read(path).check())
        except _NotThereError as exc:
            raise NotFoundError(exc.message) from exc

    def close(self) -> None:
        pass

    def _read(self, path: str) -> Answer:
        return self._engine.call("GET", self._path, {"path": path}, stream=True, timeout=UNPACK_TIMEOUT)

    # ---- the user ----

    def owner(self) -> tuple[int, int] | None:
        return self._owner

    @cached_property
    def _owner(self) -> tuple[int, int] | None:
        # The container's user is `user[:group]`, each a name or a number; an empty one is root.
        user, _, group = self._user.partition(":")
        uid: int | None = 0
        gid: int | None = 0
        if user:
            entry = [] if user.isdecimal() and group else self._look_up("/etc/passwd", user)
            uid = int(user) if user.isdecimal() else _number(entry, 2)
            gid = _number(entry, 3) if entry else 0 if user.isdecimal() else None
        if group:
            gid = int(group) if group.isdecimal() else _number(self._look_up("/etc/group", group), 2)
        return None if uid is None or gid is None else (uid, gid)

    def _look_up(self, path: str, wanted: str) -> list[str]:
        """The fields of the line for a user or group, found by its name or, for a number, its id; empty: none."""
        column = 2 if wanted.isdecimal() else 0
        for line in self._text(path).splitlines():
            fields = line.split(":")
            if len(fields) > column and fields[column] == wanted:
                return fields
        return []

    def _text(self, path: str) -> str:
        """The content of a file in the box; empty if it is missing, too large, or not a file."""
        state = self.stat(path)
        if state and state.kind is FileKind.LINK:
            path, state = state.target, self.stat(state.target)
        if state is None or state.kind is not FileKind.FILE:
            return ""
        stream, data = self.get(path), bytearray()
        try:
            for chunk in stream:
                data += chunk
                if len(data) > _MAX_USER_FILE:
                    return ""
        finally:
            stream.close()
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            file = tar.extractfile(tar.getmembers()[0])
            return file.read().decode(errors="replace") if file else ""


class DockerArchive:
    """The `ArchiveStream` of a container. The engine keeps the container locked until the last byte is read."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        tail = b""
        with engine_errors("the engine broke off an archive"):
            for chunk in self._answer.pieces(2 * CHUNK_BYTES):
                yield chunk
                tail = (tail + chunk)[-len(_END) :]
        # An engine that fails in the middle ends its answer as if all were well.
        if tail != _END:
            raise EngineError("the engine broke off an archive: its end is missing")

    def close(self) -> None:
        self._answer.abort()
        self._answer.close()


class _NotThereError(InvalidStateError):
    """A path goes through something that is not a directory."""


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise `InvalidStateError` for what is in the way in the box, which the engine reports as its own fault or, of a
    newer version, as a fault of the request."""
    try:
        yield
    except (EngineError, InvalidArgumentError) as exc:
        text = exc.message.lower()
        if any(part in text for part in _LOOPS):
            raise InvalidStateError(
                f"{exc.message.partition(': ')[0]}: links on the way to it lead in a circle"
            ) from exc
        if any(part in text for part in _NOT_THERE):
            raise _NotThereError(exc.message) from exc
        if any(part in text for part in _CONFLICTS):
            raise InvalidStateError(exc.message) from exc
        if _GONE in text and refusal(exc.__cause__):
            raise InvalidStateError(f"{exc.message} (the box has moved or removed it meanwhile; try again)") from exc
        raise


def _kind(mode: int) -> FileKind:
    if mode & _IS_LINK:
        return FileKind.LINK
    if mode & _IS_DIRECTORY:
        return FileKind.DIRECTORY
    return FileKind.OTHER if mode & _IS_NO_FILE else FileKind.FILE


def _permissions(mode: int) -> int:
    return mode & 0o777 | sum(bit for their_bit, bit in _SPECIAL.items() if mode & their_bit)


def _nanoseconds(time: str) -> int:
    """A time of Go, such as 2026-11-27T12:00:00.000000001+01:00, in nanoseconds since 1970."""
    whole, fraction, zone = _TIME.fullmatch(time).groups(default="")  # type: ignore[union-attr]
    return int(datetime.fromisoformat(whole + zone).timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


def _number(fields: list[str], column: int) -> int | None:
    return int(fields[column]) if len(fields) > column and fields[column].isdecimal() else None
