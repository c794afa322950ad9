"""The commands on snapshots, and `clone`, `export` and `import`."""

from __future__ import annotations

import http.client
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlencode

from ...errors import BoxliteError, InvalidArgumentError
from .. import output
from ..api import ApiClient, Json, unreachable
from ..output import each
from ..progress import Bar, size

OCTETS = "application/octet-stream"
STREAM = "-"  # stdin or stdout in place of a file
_CHUNK = 256 * 1024


# ---- snapshots ------------------------------------------------------------------------------------------


def create_snapshot(api: ApiClient, args: Namespace) -> int:
    print(api.post(_snapshots(api, args.box), {"name": args.name})["id"])
    return 0


def list_snapshots(api: ApiClient, args: Namespace) -> int:
    snapshots: list[Json] = api.get(_snapshots(api, args.box))["snapshots"]
    if args.quiet:
        for snapshot in snapshots:
            print(snapshot["name"])
    elif args.format == "json":
        print(output.as_json(snapshots))
    else:
        header = ("NAME", "CREATED", "WRITTEN", "SIZE", "ID")
        print(output.table(header, [_row(one) for one in snapshots]))
    return 0


def inspect_snapshot(api: ApiClient, args: Namespace) -> int:
    found: list[Json] = []
    failed = each(args.names, lambda name: found.append(api.get(_snapshots(api, args.box, name))))
    print(output.as_json(found))
    return failed


def restore_snapshot(api: ApiClient, args: Namespace) -> int:
    api.request("POST", _snapshots(api, args.box, args.name) + "/restore")
    print(args.box)
    return 0


def remove_snapshots(api: ApiClient, args: Namespace) -> int:
    return each(args.names, lambda name: api.request("DELETE", _snapshots(api, args.box, name)), echo=True)


def _snapshots(api: ApiClient, box: str, *name: str) -> str:
    return api.path("boxes", box, "snapshots", *name)


def _row(snapshot: Json) -> tuple[str, ...]:
    age = output.age(datetime.fromtimestamp(snapshot["created_at"], UTC).isoformat())
    sizes = size(snapshot["container_disk_bytes"]), size(snapshot["size_bytes"])
    return snapshot["name"], age, *sizes, snapshot["id"]


# ---- clones and archives ---------------------------------------------------------------------------------------------


def clone(api: ApiClient, args: Namespace) -> int:
    body = {"name": args.name} if args.name else {}
    print(api.post(api.path("boxes", args.box, "clone"), body)["box_id"])
    return 0


def export(api: ApiClient, args: Namespace) -> int:
    """Write the archive to a file that appears only once it is complete, and print the file's name."""
    if args.output == STREAM:
        if sys.stdout.isatty():
            raise InvalidArgumentError("an archive cannot be written to a terminal; give a file: -o FILE")
        _receive(api, args.box, sys.stdout.buffer)
        return 0
    path = Path(args.output or f"{api.get_box(args.box).get('name') or args.box}.boxlite")
    if path.is_dir():
        path /= f"{args.box}.boxlite"
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            _receive(api, args.box, file)
        part.replace(path)
    except OSError as error:
        raise BoxliteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    print(path)
    return 0


def _receive(api: ApiClient, box: str, file: BinaryIO) -> None:
    response = api.download("POST", api.path("boxes", box, "export"), OCTETS, {})
    with Bar(box) as bar:
        for chunk in bar.over(_chunks(api, response)):
            file.write(chunk)
        file.flush()


def _chunks(api: ApiClient, response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the body of an answer. Raises `UpstreamUnavailableError` when the body breaks off."""
    try:
        while chunk := response.read(_CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(api.url, error) from error
    finally:
        if not response.isclosed():
            api.close()


def import_box(api: ApiClient, args: Namespace) -> int:
    query = "?" + urlencode({"name": args.name}) if args.name else ""
    path = api.path("boxes", "import") + query
    try:
        with sys.stdin.buffer if args.file == STREAM else Path(args.file).open("rb") as file:
            total = os.fstat(file.fileno()).st_size or None
            with Bar(args.file, total) as bar:
                answer, _ = api.upload("POST", path, bar.over(iter(lambda: file.read(_CHUNK), b"")), OCTETS)
    except OSError as error:
        raise BoxliteError(f"cannot read {args.file}: {error.strerror or error}") from error
    print(api.parsed(answer)["box_id"])
    return 0
