"""`cp`: copies files and directories between this machine and a box, as tar archives that are never held whole.

A directory is copied under its name into the destination; `SRC/.` copies its content. An archive from a box is
not trusted: nothing is written outside of the destination.
"""

from __future__ import annotations

import http.client
import os
import posixpath
import shutil
import sys
import tarfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ...errors import AlreadyExistsError, BoxliteError, InvalidArgumentError, NotFoundError
from .. import packing, terminal
from ..api import ApiClient, unreachable
from ..output import print_error
from ..progress import Bar

TAR = "application/x-tar"
STREAM = "-"
_CHUNK = 256 * 1024


def copy(api: ApiClient, args: Namespace) -> int:
    source, destination = _split(args.source), _split(args.destination)
    if (source is None) == (destination is None):
        raise InvalidArgumentError("cp: exactly one of SRC and DST must be BOX:PATH")
    if destination is not None:
        return _upload(api, args, *destination)
    assert source is not None
    return _download(api, args, *source)


def _split(argument: str) -> tuple[str, str] | None:
    """Box and path of BOX:PATH; None for a path on this machine, which begins with `/` or `.` or has no `:`."""
    box, colon, path = argument.partition(":")
    if not colon or not box or argument.startswith((".", "/")) or "/" in box:
        return None
    if not path:
        raise InvalidArgumentError(f"cp: '{argument}' names no path in the box; write {box}:/PATH")
    return box, path


# ---- uploads -------------------------------------------------------------------------------------------------


def _upload(api: ApiClient, args: Namespace, box: str, path: str) -> int:
    query = {"path": path}
    if args.no_overwrite:
        query["overwrite"] = "false"
    chunks: Iterator[bytes]
    if args.source == STREAM:
        label, total = "stdin", None
        chunks = iter(lambda: os.read(terminal.STDIN, _CHUNK), b"")
        query["source_is_dir"] = "true"  # as in docker: the archive is unpacked below the path, whatever it holds
    else:
        pack = packing.Pack(
            args.source, follow_links=args.follow_symlinks, include_parent=not args.no_include_parent, warn=print_error
        )
        label, total, chunks = os.path.basename(pack.source) or args.source, pack.size(), pack.chunks()  # noqa: PTH119
        query["source_is_dir"] = "true" if pack.is_dir else "false"
    with Bar(label, total) as bar:
        api.upload("PUT", f"{api.path('boxes', box, 'files')}?{urlencode(query)}", bar.over(chunks), TAR)
    return 0


# ---- downloads -----------------------------------------------------------------------------------------------


def _download(api: ApiClient, args: Namespace, box: str, path: str) -> int:
    if args.no_include_parent and not path.endswith("/."):
        path = f"{path.rstrip('/')}/."
    query = {"path": path} | ({"follow_symlinks": "true"} if args.follow_symlinks else {})
    response = api.download("GET", f"{api.path('boxes', box, 'files')}?{urlencode(query)}", TAR)
    name = posixpath.basename(path.removesuffix("/.").rstrip("/")) or box
    try:
        with Bar(name) as bar:
            stream: Any = _Counted(response, bar)
            if args.destination == STREAM:
                shutil.copyfileobj(stream, sys.stdout.buffer, _CHUNK)
                return 0
            is_dir = response.getheader("x-boxlite-source-is-dir") == "true"
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                unpack = _Unpack(archive, overwrite=not args.no_overwrite)
                (unpack.directory if is_dir else unpack.file)(args.destination)
            while stream.read(_CHUNK):  # read the padding of the archive: a body that is cut off raises here
                pass
            return 1 if unpack.skipped else 0
    except http.client.HTTPException as error:
        raise unreachable(api.url, error) from error
    except tarfile.ReadError as error:
        raise BoxliteError(f"the archive from the server is broken: {error}") from error
    finally:
        api.close()


class _Counted:
    """The body of an answer as a file object for tarfile; what is read counts in the progress bar."""

    def __init__(self, response: http.client.HTTPResponse, bar: Bar) -> None:
        self._response = response
        self._bar = bar

    def read(self, count: int = -1) -> bytes:
        data = self._response.read(count)
        self._bar.advance(len(data))
        return data


class _Unpack:
    """Unpacks an archive on this machine. `skipped` is the number of entries that were refused as unsafe."""

    def __init__(self, archive: tarfile.TarFile, *, overwrite: bool) -> None:
        if not hasattr(tarfile, "data_filter"):
            raise BoxliteError("this Python cannot unpack archives safely; 3.11.4 and later can")
        self._archive = archive
        self._overwrite = overwrite
        self.skipped = 0

    def directory(self, destination: str) -> None:
        root = Path(destination)
        root.mkdir(parents=True, exist_ok=True)
        made: list[tarfile.TarInfo] = []
        for entry in self._archive:
            target = root / entry.name
            if entry.isdir():
                made.append(entry)
                # The directory is writable until it is complete; its own mode and time are set at the end.
                entry = entry.replace(mode=0o700, deep=False)
            elif not self._overwrite and os.path.lexists(target):
                raise AlreadyExistsError(f"'{target}' exists")
            self._extract(entry, root)
        for entry in reversed(made):
            self._set_attributes(root / entry.name, entry)

    def file(self, destination: str) -> None:
        entry = self._archive.next()
        if entry is None:
            raise NotFoundError("the archive from the server is empty")
        target = Path(destination)
        if destination.endswith("/") or target.is_dir():
            target = target / posixpath.basename(entry.name)
        if not self._overwrite and os.path.lexists(target):
            raise AlreadyExistsError(f"'{target}' exists")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._extract(entry.replace(name=target.name, deep=False), target.parent)

    def _extract(self, entry: tarfile.TarInfo, root: Path) -> None:
        try:
            self._archive.extract(entry, root, filter="data")
        except tarfile.FilterError as error:
            self.skipped += 1
            print_error(f"skipped {entry.name}: {error}")
        except OSError as error:
            raise InvalidArgumentError(f"cannot write {root / entry.name}: {error.strerror or error}") from error

    @staticmethod
    def _set_attributes(path: Path, entry: tarfile.TarInfo) -> None:
        if path.is_dir() and not path.is_symlink():
            path.chmod(entry.mode & 0o777)
            os.utime(path, (entry.mtime, entry.mtime))
