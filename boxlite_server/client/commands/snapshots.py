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
from .. import flags, output
from ..api import ApiClient, Json, unreachable
from ..output import each
from ..parser import Act, Commands
from ..progress import Bar, size

OCTETS = "application/octet-stream"
STREAM = "-"  # stdin or stdout in place of a file
_CHUNK = 256 * 1024


def add_to(commands: Commands) -> None:
    sub = commands.add(
        "clone",
        clone,
        "Create a new box with a copy of a box's disk, and print its id",
        examples=("boxlite clone --name web-2 web",),
    )
    sub.add_argument("--name", help="name the new box (default: no name)")
    flags.add_box(sub)

    sub = commands.add(
        "export",
        export,
        "Write a box to an archive, and print the file's name",
        examples=("boxlite export web", "boxlite export -o - web | ssh host boxlite import -"),
    )
    sub.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write to this file or into this directory; - is stdout (default: BOX.boxlite in the current directory)",
    )
    flags.add_box(sub)

    sub = commands.add(
        "import",
        import_box,
        "Create a box from an archive, and print its id",
        examples=("boxlite import --name web-2 web.boxlite",),
    )
    sub.add_argument("--name", help="name the box (default: no name)")
    sub.add_argument("file", metavar="FILE", help="the archive; - is stdin")
    _add_snapshots(commands)


def _add_snapshots(commands: Commands) -> None:
    verbs = commands.group(
        "snapshot",
        "Create, list, restore and remove snapshots of a box",
        examples=("boxlite snapshot create web clean", "boxlite snapshot restore web clean"),
    )

    def add_with_names(name: str, act: Act, text: str, example: str, nargs: str | None) -> None:
        sub = verbs.add(name, act, text, examples=(example,))
        flags.add_box(sub)
        sub.add_argument("names" if nargs else "name", metavar="NAME", nargs=nargs, help="the name of a snapshot")

    text = "Create a snapshot of a box's disk, and print its id"
    add_with_names("create", create_snapshot, text, "boxlite snapshot create web clean", None)
    sub = verbs.add(
        "ls",
        list_snapshots,
        "List the snapshots of a box",
        aliases=("list",),
        examples=("boxlite snapshot ls web", "boxlite snapshot ls --format yaml web"),
    )
    flags.add_box(sub)
    flags.add_shape(sub, quiet="print only names")
    text = "Show snapshots in detail"
    add_with_names("inspect", inspect_snapshot, text, "boxlite snapshot inspect web clean", "+")
    text = "Restore a stopped box to a snapshot"
    add_with_names("restore", restore_snapshot, text, "boxlite snapshot restore web clean", None)
    add_with_names("rm", remove_snapshots, "Remove snapshots", "boxlite snapshot rm web clean dirty", "+")


# ---- snapshots ------------------------------------------------------------------------------------------


def create_snapshot(api: ApiClient, args: Namespace) -> int:
    print(api.post(_snapshots(api, args.box), {"name": args.name})["id"])
    return 0


def list_snapshots(api: ApiClient, args: Namespace) -> int:
    snapshots: list[Json] = api.get(_snapshots(api, args.box))["snapshots"]
    if args.quiet:
        for snapshot in snapshots:
            print(snapshot["name"])
    elif args.format == "table":
        header = ("NAME", "CREATED", "WRITTEN", "SIZE", "ID")
        print(output.table(header, [_row(one) for one in snapshots]))
    else:
        print(output.document(snapshots, args.format))
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
