"""The commands that show boxes: `list` with its filters and columns, `inspect` and `port`."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable
from typing import Any

from ... import references
from ...errors import InvalidArgumentError, NotFoundError
from .. import boxflags, flags, output
from ..api import ApiClient, Json
from ..output import each
from ..parser import Commands

_ACTIVE = frozenset({"running", "stopping", "paused", "unknown"})  # an unknown box may be running
_COMMAND_WIDTH = 20  # characters
_HEADER = ("ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES")

# The API's statuses, by their names and by docker's.
_STATUSES = {
    **{name: name for name in ("configured", "running", "stopping", "stopped", "paused", "failed", "unknown")},
    **{"created": "configured", "exited": "stopped", "dead": "failed", "removing": "stopping"},
}

Filter = tuple[str, str]  # key and value
_Test = Callable[[Json, str], bool]


def add_to(commands: Commands) -> None:
    _add_list(commands)
    sub = commands.add(
        "inspect",
        inspect,
        "Show boxes in detail",
        examples=(
            "boxlite inspect web",
            "boxlite inspect --latest --format yaml",
            "boxlite inspect -f '{{.State.ExitCode}}' web",
        ),
        check=_check_inspect,
    )
    sub.add_argument("-l", "--latest", action="store_true", help="show the box that was created last")
    sub.add_argument(
        "-f",
        "--format",
        default="json",
        metavar="FORMAT",
        help="print in this format: json, yaml, or a template such as '{{.State.Status}}' (default: json)",
    )
    flags.add_boxes(sub, nargs="*")

    sub = commands.add(
        "port",
        port,
        "Show where the published ports of a box can be reached",
        examples=("boxlite port web", "boxlite port web 80", "boxlite port web 53/udp"),
    )
    flags.add_box(sub)
    sub.add_argument("port", metavar="PORT[/PROTO]", nargs="?", type=_box_port, help="show this port of the box alone")


def _add_list(commands: Commands) -> None:
    sub = commands.add(
        "list",
        list_boxes,
        "List boxes",
        aliases=("ls", "ps"),
        examples=(
            "boxlite ps",
            "boxlite ps -a --filter status=stopped --filter label=team=blue",
            "boxlite ps -aq --filter name=web",
            "boxlite ps --format yaml",
        ),
    )
    sub.add_argument(
        "-a",
        "--all",
        action="store_true",
        help="list all boxes (default: only those that are running, stopping, paused or unknown)",
    )
    sub.add_argument(
        "-f",
        "--filter",
        type=filter_flag,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"list only boxes that fit; the keys are {', '.join(sorted(_TESTS))}. Values of one key are alternatives, "
        "those of label and of different keys have to fit together (repeatable)",
    )
    few = sub.add_mutually_exclusive_group()
    few.add_argument("-n", "--last", type=flags.count, metavar="N", help="list the N boxes that were created last")
    few.add_argument(
        "-l", "--latest", dest="last", action="store_const", const=1, help="list the box that was created last"
    )
    sub.add_argument("--no-trunc", action="store_true", help="show whole commands")
    flags.add_shape(sub)


# ---- list ---------------------------------------------------------------------------------------------------


def list_boxes(api: ApiClient, args: Namespace) -> int:
    boxes = newest_first(api)
    # Docker's own rule: who asks for a status, or for the last boxes, means all boxes.
    everything = args.all or args.last is not None or any(key in ("status", "exited") for key, _ in args.filter)
    boxes = _fitting(boxes, args.filter, [box for box in boxes if everything or box["status"] in _ACTIVE])
    boxes = boxes[: args.last]
    if args.quiet:
        for box in boxes:
            print(box["box_id"])
    elif args.format == "table":
        print(output.table(_HEADER, [_cells(box, whole=args.no_trunc) for box in boxes]))
    else:
        print(output.document([_row(box) for box in boxes], args.format))
    return 0


def newest_first(api: ApiClient) -> list[Json]:
    return sorted(api.list_boxes(), key=lambda box: str(box["created_at"]), reverse=True)


def filter_flag(text: str) -> Filter:
    """Parse `KEY=VALUE`. Raises ArgumentTypeError."""
    key, equals, value = text.partition("=")
    if key not in _TESTS or not equals or not value:
        raise ArgumentTypeError(f"'{text}' is not KEY=VALUE with one of the keys {', '.join(sorted(_TESTS))}")
    match key:
        case "exited" if not value.isdecimal():
            raise ArgumentTypeError(f"'{text}': an exit code is a number")
        case "status" if value not in _STATUSES:
            raise ArgumentTypeError(f"'{text}': the statuses are {', '.join(sorted(_STATUSES))}")
        case "network" if value not in boxflags.NETWORKS:
            raise ArgumentTypeError(f"'{text}': the networks are {', '.join(sorted(boxflags.NETWORKS))}")
        case "publish":
            _box_port(value)
        case "name":
            try:
                re.compile(value)
            except re.error as error:
                raise ArgumentTypeError(f"'{text}' is no regular expression: {error}") from None
    return key, value


def _fitting(boxes: list[Json], filters: Iterable[Filter], candidates: list[Json]) -> list[Json]:
    """The candidates that fit the filters. `boxes` are all, newest first, for filters that name another box. Raises
    InvalidArgumentError where there is no such box."""
    for key in sorted({key for key, _ in filters}):
        values = [value for each, value in filters if each == key]
        if key in ("before", "since"):
            values = [_created(boxes, value) for value in values]
        together = all if key == "label" else any
        candidates = [box for box in candidates if together(_TESTS[key](box, value) for value in values)]
    return candidates


def _created(boxes: list[Json], name: str) -> str:
    for box in boxes:
        if name in (box["box_id"], box.get("name")):
            return str(box["created_at"])
    raise InvalidArgumentError(f"--filter: there is no box '{name}'")


def _has_label(box: Json, text: str) -> bool:
    key, equals, value = text.partition("=")
    labels = box.get("labels") or {}
    return key in labels and (not equals or labels[key] == value)


def _is_named(box: Json, pattern: str) -> bool:
    """Docker's names begin with a slash, which its users may write."""
    name = box.get("name") or ""
    return any(re.search(pattern, text) for text in (name, f"/{name}")) if name else False


def _is_of(box: Json, image: str) -> bool:
    try:
        return references.parse(image).tagged() == references.parse(box["image"]).tagged()
    except InvalidArgumentError:
        return bool(box["image"] == image)


_TESTS: dict[str, _Test] = {
    "id": lambda box, value: str(box["box_id"]).startswith(value),
    "name": _is_named,
    "label": _has_label,
    "status": lambda box, value: bool(box["status"] == _STATUSES[value]),
    "exited": lambda box, value: box["status"] == "stopped" and box.get("exit_code") == int(value),
    "ancestor": _is_of,
    "network": lambda box, value: bool(box.get("network_mode") == boxflags.NETWORKS[value]),
    "publish": lambda box, value: _box_port(value) in [_place(port) for port in box.get("ports") or ()],
    "before": lambda box, created: str(box["created_at"]) < created,
    "since": lambda box, created: str(box["created_at"]) > created,
}


def _row(box: Json) -> dict[str, str]:
    return {
        "ID": box["box_id"],
        "Image": box["image"],
        "Command": _command(box),
        "Status": box["status"],
        "CreatedAt": box["created_at"],
        "Ports": ", ".join(_published(box)),
        "Names": box.get("name") or "",
    }


def _cells(box: Json, *, whole: bool) -> tuple[str, ...]:
    row = _row(box)
    command = output.one_line(row["Command"])
    if not whole and len(command) > _COMMAND_WIDTH:
        command = command[: _COMMAND_WIDTH - 1] + "…"
    command = f'"{command}"' if command else ""
    return row["ID"], row["Image"], command, output.age(row["CreatedAt"]), row["Status"], row["Ports"], row["Names"]


def _command(box: Json) -> str:
    """The main command as the box was made with it; empty where that is the image's own."""
    return " ".join([*(box.get("entrypoint") or ()), *(box.get("cmd") or ())])


# ---- inspect ------------------------------------------------------------------------------------------------


def _check_inspect(args: Namespace) -> str | None:
    if args.latest == bool(args.boxes):
        return "name a box or give --latest, not both"
    if args.format not in ("json", "yaml") and "{{" not in args.format:
        return f"unknown format '{args.format}': want json, yaml or a template"
    return None


def inspect(api: ApiClient, args: Namespace) -> int:
    found: list[Json] = []
    if args.latest:
        newest = newest_first(api)
        if not newest:
            raise NotFoundError("no boxes to inspect")
        found = [api.get_box(newest[0]["box_id"])]  # which says more than the list
    failed = each(args.boxes, lambda box: found.append(api.get_box(box)))
    documents = [_document(box) for box in found]
    if args.format in ("json", "yaml"):
        print(output.document(documents, args.format))
    else:
        for box, document in zip(found, documents, strict=True):
            print(output.render(args.format, {**box, **document, "ID": document["Id"]}))
    return failed


def _document(box: Json) -> dict[str, Any]:
    """The document that `inspect` shows of a box, with docker's names for the fields. Memory is in bytes."""
    capabilities = (box.get("advanced") or {}).get("capabilities") or {}
    return {
        "Id": box["box_id"],
        "Name": box.get("name") or "",
        "Image": box["image"],
        "Created": box["created_at"],
        "Updated": box["updated_at"],
        "Status": box["status"],
        "State": {
            "Status": box["status"],
            "Running": box["status"] == "running",
            "Pid": box.get("pid") or 0,
            "ExitCode": box.get("exit_code") or 0,
            "StartedAt": box.get("started_at"),
        },
        "Ports": box.get("ports") or [],
        "Cpus": box["cpus"],
        "Memory": box["memory_mib"] * 1024 * 1024,
        "Config": {
            "Image": box["image"],
            "Labels": box.get("labels") or {},
            **{name: box[key] for name, key in _CONFIG.items() if key in box},
            # The server hides values from keys that may not run commands.
            "Env": [name if value is None else f"{name}={value}" for name, value in (box.get("env") or {}).items()],
        },
        "HostConfig": {
            "NetworkMode": _NETWORKS.get(str(box.get("network_mode")), ""),
            "CapAdd": capabilities.get("add") or [],
            "CapDrop": capabilities.get("drop") or [],
        },
        "Mounts": [_mount(mount) for mount in box.get("volumes") or []],
    }


def _mount(mount: Json) -> Json:
    volume, path = mount.get("managed_volume"), mount.get("host_path")
    kind = {"Type": "volume", "Name": volume} if volume else {"Type": "bind", "Source": path}
    return {**kind, "Destination": mount["guest_path"], "RW": not mount.get("read_only")}


_NETWORKS = {"enabled": "bridge", "disabled": "none"}
_CONFIG = {
    "Cmd": "cmd",
    "Entrypoint": "entrypoint",
    "WorkingDir": "working_dir",
    "User": "user",
    "Tty": "tty",
}


# ---- port ---------------------------------------------------------------------------------------------------


def _box_port(text: str) -> tuple[int, str]:
    number, slash, protocol = text.partition("/")
    if not number.isdecimal() or (slash and protocol not in ("tcp", "udp")):
        raise ArgumentTypeError(f"'{text}' is no port; write 80 or 53/udp")
    return int(number), protocol or "tcp"


def _place(port: Json) -> tuple[int, str]:
    return port["guest_port"], port["protocol"]


def port(api: ApiClient, args: Namespace) -> int:
    box = api.get_box(args.box)
    ports = [port for port in box.get("ports") or [] if port.get("address")]
    if args.port is None:
        for port in ports:
            print(f"{port['guest_port']}/{port['protocol']} -> {port['address']}")
        return 0
    number, protocol = args.port
    found = [port for port in ports if _place(port) == (number, protocol)]
    if not found:
        running = "" if box["status"] == "running" else f"; the box is {box['status']}"
        raise NotFoundError(f"box '{args.box}' has no published port {number}/{protocol}{running}")
    for port in found:
        print(port["address"])
    return 0


def _published(box: Json) -> list[str]:
    """The ports in docker's form. Ports of a box that does not run are not open, and left out."""
    return [
        f"{port['address']}->{port['guest_port']}/{port['protocol']}"
        for port in sorted(box.get("ports") or [], key=lambda port: (port["guest_port"], port["protocol"]))
        if port.get("address")
    ]
