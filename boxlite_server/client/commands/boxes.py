"""The commands that create, list, start, stop and remove boxes, and the body that `create` and `run` send."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from ...errors import NotFoundError
from .. import boxflags, output
from ..api import ApiClient, Json
from ..output import each, print_error, version

_ACTIVE = frozenset({"running", "stopping", "paused", "unknown"})  # an unknown box may be running


def create_body(args: Namespace) -> Json:
    """The body of `POST boxes` for the flags that `create` and `run` share. Absent flags are left out."""
    network = args.network or ("disabled" if args.security == "maximum" else "enabled")
    body: Json = {"image": args.image, "network": {"mode": network}, "detach": args.detach}
    optional = {
        "name": args.name,
        "cpus": args.cpus,
        "memory_mib": args.memory,
        "disk_size_gb": args.disk_size,
        "working_dir": args.workdir,
        "env": dict(args.env),
        "entrypoint": [args.entrypoint] if args.entrypoint is not None else None,
        "cmd": args.cmd,
        "user": args.user,
        "labels": dict(args.label),
        **boxflags.box_fields(args),
        "auto_stop": args.auto_stop,
        "auto_delete": args.auto_delete,
        "auto_resume": False if args.no_auto_resume else None,
    }
    return body | {key: value for key, value in optional.items() if value not in (None, {}, [])}


def create(api: ApiClient, args: Namespace) -> int:
    args.detach = True
    body = create_body(args)
    if args.rm:
        body["auto_remove"] = True
    print(api.create_box(body)["box_id"])
    return 0


def list_boxes(api: ApiClient, args: Namespace) -> int:
    boxes = [box for box in _newest_first(api) if args.all or box["status"] in _ACTIVE]
    if args.quiet:
        for box in boxes:
            print(box["box_id"])
    elif args.format == "json":
        print(output.as_json([_row(box) for box in boxes]))
    else:
        header = ("ID", "IMAGE", "STATUS", "CREATED", "NAMES")
        rows = [{**_row(box), "CreatedAt": output.age(box["created_at"])} for box in boxes]
        print(output.table(header, [list(row.values()) for row in rows]))
    return 0


def inspect(api: ApiClient, args: Namespace) -> int:
    found: list[Json] = []
    if args.latest:
        found = _newest_first(api)[:1]
        if not found:
            raise NotFoundError("no boxes to inspect")
    failed = each(args.boxes, lambda box: found.append(api.get_box(box)))
    documents = [_document(box) for box in found]
    if args.format == "json":
        print(output.as_json(documents))
    else:
        for box, document in zip(found, documents, strict=True):
            print(output.render(args.format, {**box, **document, "ID": document["Id"]}))
    return failed


def start(api: ApiClient, args: Namespace) -> int:
    return each(args.boxes, api.start_box, echo=True)


def stop(api: ApiClient, args: Namespace) -> int:
    return each(args.boxes, lambda box: api.stop_box(box, args.time), echo=True)


def restart(api: ApiClient, args: Namespace) -> int:
    def once(box: str) -> None:
        api.stop_box(box, args.time)
        api.start_box(box)

    return each(args.boxes, once, echo=True)


def remove(api: ApiClient, args: Namespace) -> int:
    targets = args.boxes
    if args.all:
        targets = [box["box_id"] for box in api.list_boxes()]
        if targets and not args.force and not _confirmed(f"Remove all {len(targets)} boxes? [y/N] "):
            print_error("nothing removed")
            return 1

    def drop(box: str) -> None:
        if left := api.remove_box(box, force=args.force):
            print("Warning:", left, file=sys.stderr)

    return each(targets, drop, echo=True)


def info(api: ApiClient, args: Namespace) -> int:
    statuses = [box["status"] for box in api.list_boxes()]
    document = {
        "version": version(),
        "url": api.url,
        "boxesTotal": len(statuses),
        **{f"boxes{name.title()}": statuses.count(name) for name in ("running", "stopped", "configured", "unknown")},
    }
    if args.format == "json":
        print(output.as_json(document))
    else:
        for key, value in document.items():
            print(f"{key}: {value}")
    return 0


def show_version(api: ApiClient, args: Namespace) -> int:
    print(f"boxlite {version()}")
    return 0


def _newest_first(api: ApiClient) -> list[Json]:
    return sorted(api.list_boxes(), key=lambda box: str(box["created_at"]), reverse=True)


def _confirmed(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _row(box: Json) -> dict[str, str]:
    return {
        "ID": box["box_id"],
        "Image": box["image"],
        "Status": box["status"],
        "CreatedAt": box["created_at"],
        "Names": box.get("name") or "",
    }


def _document(box: Json) -> dict[str, Any]:
    """The document that `inspect` shows of a box, with docker's names for the fields. Memory is in bytes."""
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
        },
    }


_CONFIG = {
    "Env": "env",
    "Cmd": "cmd",
    "Entrypoint": "entrypoint",
    "WorkingDir": "working_dir",
    "User": "user",
    "Tty": "tty",
}
