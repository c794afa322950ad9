"""The files of a box, by the archive calls of Docker Engine; they serve boxes at rest, too.

The engine resolves paths inside the container's root and unpacks in a process confined to it.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import docker.errors
import requests

from ...errors import EngineError, InvalidStateError, NotFoundError
from ...rpc import CHUNK_BYTES
from ..runtime import FileKind, FileState
from .engine import Engine, engine_errors

UNPACK_TIMEOUT = 600.0  # seconds that the engine may be silent while it unpacks
_MAX_USER_FILE = 1024 * 1024  # bytes of /etc/passwd and of /etc/group that are looked at
_END = bytes(1024)

# Of the mode as the engine tells it: Go's, not that of stat().
_IS_DIRECTORY, _IS_LINK = 1 << 31, 1 << 27
_IS_NO_FILE = 1 << 31 | 1 << 27 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19

_NOT_THERE = ("not a directory",)
_LOOPS = ("too many links", "too many levels of symbolic links")
_CONFLICTS = ("cannot overwrite", "not a directory", "is a directory", "resource busy", "read-only", "file exists")


class DockerFiles:
    """The `BoxFiles` of one container."""

    def __init__(self, engine: Engine, container: dict[str, Any]) -> None:
        self._engine = engine
        self._user = container["Config"]["User"] or ""
        api = engine.api
        self._url = f"{api.base_url}/v{api.api_version}/containers/{container['Id']}/archive"

    # ---- verbs ----

    def stat(self, path: str) -> FileState | None:
        try:
            with _refusals(), engine_errors(f"cannot look at {path!r} in the box"):
                api, params = self._engine.api, {"path": path}
                answer = api.head(self._url, params=params, timeout=UNPACK_TIMEOUT)
                if answer.status_code >= 500:
                    # An answer to HEAD does not say why; that to GET does.
                    with api.get(self._url, params=params, stream=True, timeout=UNPACK_TIMEOUT) as full:
                        _checked(full)
                _checked(answer)
        except (NotFoundError, _NotThereError):
            return None
        told = json.loads(base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"]))
        mode = told["mode"]
        if mode & _IS_LINK:
            return FileState(FileKind.LINK, told["linkTarget"])
        if mode & _IS_DIRECTORY:
            return FileState(FileKind.DIRECTORY)
        return FileState(FileKind.OTHER if mode & _IS_NO_FILE else FileKind.FILE)

    def put(self, directory: str, archive: Iterable[bytes]) -> None:
        with _refusals(), engine_errors(f"cannot write to {directory!r} in the box"):
            _checked(
                self._engine.api.put(
                    self._url,
                    params={"path": directory, "noOverwriteDirNonDir": "true"},
                    data=iter(archive),
                    headers={"Content-Type": "application/x-tar"},
                    timeout=UNPACK_TIMEOUT,
                )
            )

    def get(self, path: str) -> DockerArchive:
        try:
            with _refusals(), engine_errors(f"cannot read {path!r} in the box"):
                answer = self._engine.api.get(self._url, params={"path": path}, stream=True, timeout=UNPACK_TIMEOUT)
                return DockerArchive(_checked(answer))
        except _NotThereError as exc:
            raise NotFoundError(exc.message) from exc

    # ---- the user ----

    def owner(self) -> tuple[int, int] | None:
        """The box's user is named as in `user[:group]`, by names or numbers; none is root."""
        user, _, group = self._user.partition(":")
        uid: int | None = 0
        gid: int | None = 0
        if user:
            entry = self._look_up("/etc/passwd", user)
            uid = int(user) if user.isdecimal() else _number(entry, 2)
            gid = _number(entry, 3) if entry else 0 if user.isdecimal() else None
        if group:
            gid = int(group) if group.isdecimal() else _number(self._look_up("/etc/group", group), 2)
        return None if uid is None or gid is None else (uid, gid)

    def _look_up(self, path: str, wanted: str) -> list[str]:
        """The line of a user or group, by its name or, for a number, by its id; empty: there is none."""
        column = 2 if wanted.isdecimal() else 0
        for line in self._text(path).splitlines():
            fields = line.split(":")
            if len(fields) > column and fields[column] == wanted:
                return fields
        return []

    def _text(self, path: str) -> str:
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
    """An archive on its way out of the engine, which holds the container locked until the last byte."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        tail = b""
        with engine_errors("the engine broke off an archive"):
            for chunk in self._response.iter_content(CHUNK_BYTES):
                yield chunk
                tail = (tail + chunk)[-len(_END) :]
        # An engine that fails in the middle ends its answer as if all were well.
        if tail != _END:
            raise EngineError("the engine broke off an archive: its end is missing")

    def close(self) -> None:
        with suppress(AttributeError, OSError):
            # Wakes a thread that waits for the next chunk; to close the answer alone does not.
            connection: Any = self._response.raw._connection
            connection.sock.shutdown(socket.SHUT_RDWR)
        self._response.close()


class _NotThereError(InvalidStateError):
    """A path goes through something that is no directory."""


def _checked(response: requests.Response) -> requests.Response:
    try:
        response.raise_for_status()
    except requests.HTTPError as exc:
        docker.errors.create_api_error_from_http_exception(exc)
    return response


@contextmanager
def _refusals() -> Iterator[None]:
    """The engine reports what is in the way as a fault of its own."""
    try:
        yield
    except EngineError as exc:
        text = exc.message.lower()
        if any(part in text for part in _LOOPS):
            raise InvalidStateError(
                f"{exc.message.partition(': ')[0]}: links on the way to it lead in a circle"
            ) from exc
        if any(part in text for part in _NOT_THERE):
            raise _NotThereError(exc.message) from exc
        if any(part in text for part in _CONFLICTS):
            raise InvalidStateError(exc.message) from exc
        raise


def _number(fields: list[str], column: int) -> int | None:
    return int(fields[column]) if len(fields) > column and fields[column].isdecimal() else None
