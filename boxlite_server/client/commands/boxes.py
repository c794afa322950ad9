"""The commands that create, change, start, stop and remove boxes."""

from __future__ import annotations

import sys
from argparse import BooleanOptionalAction, Namespace
from contextlib import suppress
from urllib.parse import urlencode

from ...errors import NotFoundError
from .. import boxflags, flags
from ..api import ApiClient, Json
from ..output import document, each, print_error, print_warning, version
from ..parser import Commands

WAIT_SECONDS = 60  # for one request that waits; the next one follows


def add_to(commands: Commands) -> None:
    sub = commands.add(
        "create",
        create,
        "Create a box without starting it, and print its id",
        examples=(
            "boxlite create --name web -m 512m -l team=blue alpine:latest",
            "boxlite create --network none --env-file web.env -v data:/data alpine:latest sh -c 'ls /data'",
        ),
        check=check_lifetimes,
    )
    boxflags.add_flags(sub)
    sub.add_argument("--rm", action="store_true", help="remove the box when it stops")

    sub = commands.add("start", start, "Start boxes", examples=("boxlite start web db",))
    flags.add_boxes(sub)

    _add_ends(commands)
    sub = commands.add(
        "rm", remove, "Remove boxes", examples=("boxlite rm web", "boxlite rm -f web db"), check=_check_remove
    )
    sub.add_argument("-f", "--force", action="store_true", help="remove boxes even if they are running, and do not ask")
    sub.add_argument("-a", "--all", action="store_true", help="remove every box")
    flags.add_boxes(sub, nargs="*")

    _add_changes(commands)
    sub = commands.add(
        "info", info, "Show the server's address and how many boxes it has", examples=("boxlite info --format json",)
    )
    flags.add_format(sub, choices=flags.DOCUMENT_FORMATS)
    commands.add_local("version", show_version, "Show the version of this command", examples=("boxlite version",))


def _add_ends(commands: Commands) -> None:
    for name, act, text in (
        ("stop", stop, "Stop running boxes"),
        ("restart", restart, "Stop boxes and start them again"),
    ):
        sub = commands.add(name, act, text, examples=(f"boxlite {name} web db", f"boxlite {name} -t 2 web"))
        sub.add_argument(
            "-t",
            "--time",
            "--timeout",
            dest="time",
            type=flags.seconds,
            metavar="SECONDS",
            help="wait this long between SIGTERM and SIGKILL (server default: 30)",
        )
        flags.add_boxes(sub)

    sub = commands.add(
        "kill",
        kill,
        "Kill running boxes, or send a signal to their main commands",
        examples=("boxlite kill web db", "boxlite kill -s HUP web"),
    )
    sub.add_argument(
        "-s",
        "--signal",
        type=flags.signal_number,
        default=flags.SIGKILL,
        metavar="SIGNAL",
        help="send this signal: a name with or without SIG, or a number (default: KILL)",
    )
    flags.add_boxes(sub)


def _add_changes(commands: Commands) -> None:
    sub = commands.add("rename", rename, "Give a box another name", examples=("boxlite rename web web-old",))
    flags.add_box(sub)
    sub.add_argument("name", metavar="NAME", help="the new name")

    sub = commands.add(
        "update",
        update,
        "Change boxes: their size while they run, labels and lifetimes",
        examples=("boxlite update --cpus 2 -m 1g web", "boxlite update --auto-stop 15m -l team=red web db"),
        check=_check_update,
    )
    boxflags.add_size(sub, default="as it is")
    boxflags.add_labels(sub)
    sub.add_argument(
        "--label-rm", action="append", default=[], metavar="KEY", help="take this label off the box (repeatable)"
    )
    boxflags.add_lifetimes(sub, default="as it is")
    sub.add_argument(
        "--auto-resume",
        action=BooleanOptionalAction,
        help="whether a command starts the stopped box (default: as it is)",
    )
    sub.add_argument("--inbound", choices=("enabled", "disabled"), help="let others reach services in the box")
    flags.add_boxes(sub)

    sub = commands.add(
        "wait",
        wait,
        "Wait until boxes stop, and print the exit codes of their main commands",
        examples=("boxlite wait job",),
    )
    flags.add_boxes(sub)


def check_lifetimes(args: Namespace) -> str | None:
    if args.rm and (args.auto_stop or args.auto_delete):
        return "--rm excludes --auto-stop and --auto-delete"
    return None


def _check_remove(args: Namespace) -> str | None:
    return "name a box or give --all, not both" if args.all == bool(args.boxes) else None


def create(api: ApiClient, args: Namespace) -> int:
    args.detach = True
    body = boxflags.create_body(args)
    if args.rm:
        body["auto_remove"] = True
    print(api.create_box(body)["box_id"])
    return 0


def start(api: ApiClient, args: Namespace) -> int:
    return each(args.boxes, api.start_box, echo=True)


def stop(api: ApiClient, args: Namespace) -> int:
    return each(args.boxes, lambda box: api.stop_box(box, args.time), echo=True)


def restart(api: ApiClient, args: Namespace) -> int:
    def once(box: str) -> None:
        api.stop_box(box, args.time)
        api.start_box(box)

    return each(args.boxes, once, echo=True)


def kill(api: ApiClient, args: Namespace) -> int:
    def send(box: str) -> None:
        api.signal_box(box, args.signal)
        if args.signal == flags.SIGKILL:
            with suppress(NotFoundError):  # the box was made to be removed when it stops
                _until_stopped(api, box)

    return each(args.boxes, send, echo=True)


def rename(api: ApiClient, args: Namespace) -> int:
    api.change_box(args.box, {"name": args.name})
    return 0


def _check_update(args: Namespace) -> str | None:
    if _changes(args) or args.label or args.label_rm or args.inbound:
        return None
    return "nothing to change: give a flag such as --memory 1g"


def _changes(args: Namespace) -> Json:
    """What is to be the same for all boxes: all but the labels, which are added to those of each box."""
    fields = {
        "cpus": args.cpus,
        "memory_mib": args.memory,
        "auto_stop": args.auto_stop,
        "auto_delete": args.auto_delete,
        "auto_resume": args.auto_resume,
    }
    return {key: value for key, value in fields.items() if value is not None}


def update(api: ApiClient, args: Namespace) -> int:
    def change(box: str) -> None:
        if args.inbound:
            api.request("PUT", api.path("boxes", box, "network", "inbound"), {"mode": args.inbound})
        changes = _changes(args)
        if args.label or args.label_rm:
            labels = {**(api.get_box(box).get("labels") or {}), **dict(args.label)}
            changes["labels"] = {key: value for key, value in labels.items() if key not in args.label_rm}
        if changes:
            api.change_box(box, changes)

    return each(args.boxes, change, echo=True)


def wait(api: ApiClient, args: Namespace) -> int:
    return each(args.boxes, lambda box: print(_exit_code(api, box), flush=True))


def _exit_code(api: ApiClient, box: str) -> int:
    """The exit code of the box's main command, as soon as the box has stopped."""
    if (stopped := _until_stopped(api, box)) is None:
        raise NotFoundError(f"box '{box}' was removed, and its exit code with it")
    return int(stopped.get("exit_code") or 0)


def _until_stopped(api: ApiClient, box: str) -> Json | None:
    """The box, as soon as it has stopped; None when it was removed."""
    path = api.path("boxes", box, "wait") + "?" + urlencode({"until": "stopped", "timeout": WAIT_SECONDS})
    while not (answer := api.get(path))["reached"]:
        pass
    stopped: Json | None = answer.get("box")
    return stopped


def remove(api: ApiClient, args: Namespace) -> int:
    targets = args.boxes
    if args.all:
        targets = [box["box_id"] for box in api.list_boxes()]
        if targets and not args.force and not confirmed(f"Remove all {len(targets)} boxes? [y/N] "):
            print_error("nothing removed")
            return 1

    def drop(box: str) -> None:
        if left := api.remove_box(box, force=args.force):
            print_warning(left)

    return each(targets, drop, echo=True)


def confirmed(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def info(api: ApiClient, args: Namespace) -> int:
    statuses = [box["status"] for box in api.list_boxes()]
    shown = {
        "version": version(),
        "url": api.url,
        "boxesTotal": len(statuses),
        **{f"boxes{name.title()}": statuses.count(name) for name in ("running", "stopped", "configured", "unknown")},
    }
    print(document(shown, args.format))
    return 0


def show_version(args: Namespace) -> int:
    print(f"boxlite {version()}")
    return 0
