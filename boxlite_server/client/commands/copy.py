"""`cp`: copies files and directories between this machine and a box, as tar archives that are never held whole.

A directory is copied under its name into the destination; `SRC/.` copies its content. An archive from a box is
not trusted: nothing is written outside of the destination, and links are only made, never followed.
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
from typing import Any
from urllib.parse import urlencode

from ...errors import BoxliteError, InvalidArgumentError
from .. import packing, terminal
from ..api import ApiClient, unreachable
from ..output import print_error
from ..parser import Commands
from ..progress import Bar
from ..unpacking import Unpack

TAR = "application/x-tar"
STREAM = "-"
_CHUNK = 256 * 1024


def add_to(commands: Commands) -> None:
    sub = commands.add(
        "cp",
        copy,
        "Copy files between this machine and a box; '-' is a tar archive on stdin or stdout",
        examples=(
            "boxlite cp notes.txt web:/srv/",
            "boxlite cp -a web:/etc backup",
            "boxlite cp --no-include-parent src web:/srv",
            "boxlite cp web:/srv - | tar t",
        ),
    )
    sub.add_argument(
        "-a",
        "--archive",
        action="store_true",
        help="keep the user and group ids of files (default: the receiver's)",
    )
    sub.add_argument(
        "-L", "--follow-symlinks", "--follow-link", action="store_true", help="copy the targets of links in their place"
    )
    sub.add_argument("--no-overwrite", action="store_true", help="fail if a file would be overwritten")
    parent = sub.add_mutually_exclusive_group()
    parent.add_argument(
        "--include-parent", action="store_true", help="copy a directory with its content, which is the default"
    )
    parent.add_argument(
        "--no-include-parent", action="store_true", help="copy the content of a directory without the directory itself"
    )
    sub.add_argument("source", metavar="SRC", help="copy from here: PATH, BOX:PATH or -")
    sub.add_argument("destination", metavar="DST", help="copy to here: PATH, BOX:PATH or -")


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
    if args.archive:
        query["keep_owner"] = "true"
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
        _, headers = api.upload("PUT", f"{api.path('boxes', box, 'files')}?{urlencode(query)}", bar.over(chunks), TAR)
    if skipped := headers["X-Boxlite-Skipped"]:
        print_error(f"skipped in the box: {skipped}")
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
                unpack = Unpack(archive, overwrite=not args.no_overwrite, keep_owner=args.archive, warn=print_error)
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
