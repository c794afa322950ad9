"""The `boxlite` command line: its options, its commands and its exit codes.

Exit codes: `run` and `exec` pass on the exit code of the command in the box, and use 125 to 127 as docker does.
For the other commands, 1 is a failure. 2 is a wrong use of the command line.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

from ..errors import BoxliteError, InvalidArgumentError
from . import boxflags, output
from .api import ApiClient
from .commands import boxes, completion, copy, logs, run, snapshots, stats, storage

DEFAULT_URL = "http://127.0.0.1:8200"

Command = Callable[[ApiClient, argparse.Namespace], int]
_Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_Add = Callable[..., argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Wrong arguments raise SystemExit(2), as argparse does."""
    parser = build_parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    if args.debug:
        logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stderr)
        logging.getLogger("boxlite").setLevel(logging.DEBUG)
    try:
        api = ApiClient(
            args.url,
            path_prefix=args.path_prefix,
            api_key=os.environ.get("BOXLITE_API_KEY", ""),
            ca_cert=args.ca_cert,
        )
    except InvalidArgumentError as error:
        parser.error(error.message)
    command: Command = args.run
    try:
        code = command(api, args)
        sys.stdout.flush()
        return code
    except BoxliteError as error:
        output.print_error(error.message)
        logging.getLogger("boxlite").debug("the error came from:", exc_info=error)
        return run.failure_code(error) if args.command in ("run", "exec") else 1
    except BrokenPipeError:
        # The reader of stdout has gone; the interpreter's last flush must not fail on that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        api.close()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="boxlite",
        description="Create and use sandbox boxes on a BoxLite server.",
        epilog="The API key is read from the environment variable BOXLITE_API_KEY.",
        allow_abbrev=False,
    )
    _add_global_options(
        parser,
        url=os.environ.get("BOXLITE_REST_URL") or DEFAULT_URL,
        prefix=os.environ.get("BOXLITE_REST_PATH_PREFIX", ""),
        ca_cert=os.environ.get("BOXLITE_CA_CERT") or None,
        debug=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"boxlite {output.version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add = _adder(commands)
    _add_create_and_run(add)
    _add_box_commands(add)
    _add_copy(add)
    _add_images(add)
    _add_volumes(commands)
    _add_stats(add)
    _add_archives(add)
    _add_snapshots(add)
    _add_logs(add)
    _add_others(add)
    return parser


def _adder(commands: _Subparsers) -> _Add:
    """The function that adds a command to `commands`, with its help and the global options."""
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    nothing = argparse.SUPPRESS
    _add_global_options(common, url=nothing, prefix=nothing, ca_cert=nothing, debug=nothing)

    def add(name: str, act: Command, text: str, *, aliases: Sequence[str] = ()) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, aliases=aliases, help=text, description=text, parents=[common], allow_abbrev=False
        )
        sub.set_defaults(run=act)
        return sub

    return add


def _add_create_and_run(add: _Add) -> None:
    sub = add("create", boxes.create, "Create a box without starting it, and print its id")
    _add_box_options(sub)
    sub.add_argument("--rm", action="store_true", help="remove the box when it stops")

    sub = add("run", run.run, "Create a box, and run a command in it")
    _add_box_options(sub)
    _add_stream_options(sub)
    sub.add_argument("--rm", action="store_true", help="remove the box when the command has ended")

    sub = add("exec", run.execute, "Run a command in a box")
    _add_process_options(sub)
    _add_stream_options(sub)
    _add_box(sub)
    sub.add_argument("cmd", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command and its arguments")


def _add_box_commands(add: _Add) -> None:
    sub = add("list", boxes.list_boxes, "List boxes", aliases=("ls", "ps"))
    sub.add_argument(
        "-a",
        "--all",
        action="store_true",
        help="list all boxes (default: only those that are running, stopping, paused or unknown)",
    )
    _add_shape_options(sub)

    sub = add("inspect", boxes.inspect, "Show boxes in detail")
    sub.add_argument("-l", "--latest", action="store_true", help="show the box that was created last")
    sub.add_argument(
        "-f",
        "--format",
        default="json",
        metavar="FORMAT",
        help="print in this format: json, or a template such as '{{.State.Status}}' (default: json)",
    )
    _add_boxes(sub, nargs="*")

    _add_boxes(add("start", boxes.start, "Start boxes"))

    for name, act, text in (
        ("stop", boxes.stop, "Stop running boxes"),
        ("restart", boxes.restart, "Stop boxes and start them again"),
    ):
        sub = add(name, act, text)
        sub.add_argument(
            "-t",
            "--time",
            type=_seconds,
            metavar="SECONDS",
            help="wait this long between SIGTERM and SIGKILL (server default: 30)",
        )
        _add_boxes(sub)

    sub = add("rm", boxes.remove, "Remove boxes")
    sub.add_argument("-f", "--force", action="store_true", help="remove boxes even if they are running, and do not ask")
    sub.add_argument("-a", "--all", action="store_true", help="remove every box")
    _add_boxes(sub, nargs="*")


def _add_copy(add: _Add) -> None:
    sub = add("cp", copy.copy, "Copy files between this machine and a box; '-' is a tar archive on stdin or stdout")
    sub.add_argument("--follow-symlinks", action="store_true", help="copy the targets of links in place of the links")
    sub.add_argument("--no-overwrite", action="store_true", help="fail if a file would be overwritten")
    sub.add_argument(
        "--no-include-parent", action="store_true", help="copy the content of a directory without the directory itself"
    )
    sub.add_argument("source", metavar="SRC", help="copy from here: PATH, BOX:PATH or -")
    sub.add_argument("destination", metavar="DST", help="copy to here: PATH, BOX:PATH or -")


def _add_images(add: _Add) -> None:
    _add_shape_options(add("images", storage.images, "List the images that the workers hold"))

    sub = add("pull", storage.pull, "Pull an image")
    sub.add_argument("-q", "--quiet", action="store_true", help="print only the image's id")
    sub.add_argument("image", metavar="IMAGE", help="the image's reference, such as alpine:latest")


def _add_volumes(commands: _Subparsers) -> None:
    text = "Create, list, show and remove volumes"
    volumes = commands.add_parser("volume", help=text, description=text, allow_abbrev=False)
    add = _adder(volumes.add_subparsers(metavar="COMMAND", required=True))

    sub = add("create", storage.create_volume, "Create a volume, and print its id")
    sub.add_argument("--name", help="name the volume (default: its id)")

    _add_shape_options(add("ls", storage.list_volumes, "List volumes", aliases=("list",)))

    sub = add("get", storage.get_volume, "Show a volume", aliases=("inspect",))
    _add_format(sub)
    sub.add_argument("volume", metavar="VOLUME", help="the volume's id or name")

    sub = add("rm", storage.remove_volumes, "Remove volumes and their data", aliases=("delete",))
    sub.add_argument("-f", "--force", action="store_true", help="ignore missing volumes")
    sub.add_argument("volumes", metavar="VOLUME", nargs="+", help="the id or name of a volume")


def _add_stats(add: _Add) -> None:
    sub = add("stats", stats.stats, "Show what a box uses: cpu, memory and network")
    _add_format(sub)
    sub.add_argument("-s", "--stream", action="store_true", help="print a line every second until Ctrl-C")
    _add_box(sub)


def _add_archives(add: _Add) -> None:
    sub = add("clone", snapshots.clone, "Create a new box with a copy of a box's disk, and print its id")
    sub.add_argument("--name", help="name the new box (default: no name)")
    _add_box(sub)

    sub = add("export", snapshots.export, "Write a box to an archive, and print the file's name")
    sub.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write to this file or into this directory; - is stdout (default: BOX.boxlite in the current directory)",
    )
    _add_box(sub)

    sub = add("import", snapshots.import_box, "Create a box from an archive, and print its id")
    sub.add_argument("--name", help="name the box (default: no name)")
    sub.add_argument("file", metavar="FILE", help="the archive; - is stdin")


def _add_snapshots(add: _Add) -> None:
    sub = add("snapshot", snapshots.list_snapshots, "Create, list, restore and remove snapshots of a box")
    add_verb = _adder(sub.add_subparsers(dest="verb", metavar="VERB", required=True))

    verb = add_verb("create", snapshots.create_snapshot, "Create a snapshot of a box's disk, and print its id")
    _add_box(verb)
    verb.add_argument("name", metavar="NAME", help="the name of the new snapshot")

    verb = add_verb("ls", snapshots.list_snapshots, "List the snapshots of a box", aliases=("list",))
    _add_box(verb)
    _add_shape_options(verb, quiet="print only names")

    verb = add_verb("inspect", snapshots.inspect_snapshot, "Show snapshots in detail")
    _add_box(verb)
    verb.add_argument("names", metavar="NAME", nargs="+", help="the name of a snapshot")

    verb = add_verb("restore", snapshots.restore_snapshot, "Restore a stopped box to a snapshot")
    _add_box(verb)
    verb.add_argument("name", metavar="NAME", help="the name of the snapshot")

    verb = add_verb("rm", snapshots.remove_snapshots, "Remove snapshots")
    _add_box(verb)
    verb.add_argument("names", metavar="NAME", nargs="+", help="the name of a snapshot")


def _add_logs(add: _Add) -> None:
    sub = add("logs", logs.logs, "Show the output of a box's main command")
    sub.add_argument("-f", "--follow", action="store_true", help="print new output until the box stops")
    sub.add_argument("-n", "--tail", type=_count, metavar="N", help="show only the last N lines (default: all lines)")
    _add_box(sub)


def _add_others(add: _Add) -> None:
    sub = add("completion", completion.command(build_parser), "Print the completion script of a shell")
    sub.add_argument("shell", choices=completion.SHELLS, metavar="SHELL", help=", ".join(completion.SHELLS))

    sub = add("info", boxes.info, "Show the server's address and how many boxes it has")
    _add_format(sub, choices=("yaml", "json"))

    add("version", boxes.show_version, "Show the version of this command")


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse wrong combinations that argparse cannot detect, and remove the `--` in front of a command."""
    if args.command == "exec" and args.cmd and args.cmd[0] != "--" and args.cmd[0].startswith("-"):
        parser.error(f"exec: unexpected '{args.cmd[0]}': options go before BOX")
    if "cmd" in args and args.cmd[:1] == ["--"]:
        args.cmd = args.cmd[1:]
    if args.command == "exec" and not args.cmd:
        parser.error("exec: no command given")
    if args.command in ("create", "run") and args.rm and (args.auto_stop or args.auto_delete):
        parser.error(f"{args.command}: --rm excludes --auto-stop and --auto-delete")
    if args.command in ("run", "exec") and args.interactive and args.detach:
        parser.error(f"{args.command}: --interactive and --detach exclude each other")
    if args.command == "inspect" and args.latest == bool(args.boxes):
        parser.error("inspect: name a box or give --latest, not both")
    if args.command == "inspect" and args.format != "json" and "{{" not in args.format:
        parser.error(f"inspect: unknown format '{args.format}': want json or a template")
    if args.command == "rm" and args.all == bool(args.boxes):
        parser.error("rm: name a box or give --all, not both")


def _add_global_options(
    parser: argparse.ArgumentParser, *, url: str, prefix: str, ca_cert: str | None, debug: object
) -> None:
    group = parser.add_argument_group("global options")
    group.add_argument(
        "--url", default=url, help=f"call the server at this address [BOXLITE_REST_URL] (default: {DEFAULT_URL})"
    )
    group.add_argument(
        "--path-prefix",
        default=prefix,
        metavar="PREFIX",
        help="put this prefix behind /v1 in the path of each request [BOXLITE_REST_PATH_PREFIX] (default: none)",
    )
    group.add_argument(
        "--ca-cert",
        default=ca_cert,
        metavar="FILE",
        help="trust the authorities in this file, and no others, with an https address [BOXLITE_CA_CERT] "
        "(default: those of the host)",
    )
    group.add_argument(
        "--debug", action="store_true", default=debug, help="log requests and the causes of errors to stderr"
    )


def _add_box(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("box", metavar="BOX", help="the box's id or name")


def _add_boxes(parser: argparse.ArgumentParser, nargs: str = "+") -> None:
    parser.add_argument("boxes", metavar="BOX", nargs=nargs, help="the id or name of a box")


def _add_format(parser: argparse._ActionsContainer, choices: Sequence[str] = ("table", "json")) -> None:
    parser.add_argument(
        "--format", choices=choices, default=choices[0], help=f"print in this format (default: {choices[0]})"
    )


def _add_shape_options(parser: argparse.ArgumentParser, quiet: str = "print only ids") -> None:
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("-q", "--quiet", action="store_true", help=quiet)
    _add_format(shape)


def _add_process_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-e",
        "--env",
        action=_Pairs,
        metavar="KEY[=VALUE]",
        help="set an environment variable; KEY alone takes its value from this environment (repeatable)",
    )
    parser.add_argument(
        "-w", "--workdir", metavar="PATH", help="run in this directory of the box (default: that of the image or box)"
    )
    parser.add_argument(
        "-u", "--user", metavar="NAME[:GROUP]", help="run as this user (default: that of the image or box)"
    )


def _add_stream_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--interactive", action="store_true", help="pass stdin on to the command")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument("-d", "--detach", action="store_true", help="start the command and do not wait for its end")


def _add_box_options(parser: argparse.ArgumentParser) -> None:
    _add_process_options(parser)
    parser.add_argument("--name", help="name the box (default: no name)")
    parser.add_argument("--entrypoint", metavar="EXEC", help="replace the image's entrypoint")
    parser.add_argument("--cpus", type=_positive, metavar="N", help="give the box N cpus (server default: 1)")
    parser.add_argument(
        "--memory", type=_positive, metavar="MIB", help="give the box this much memory, in MiB (server default: 512)"
    )
    parser.add_argument(
        "--disk-size",
        type=_positive,
        metavar="GB",
        help="let the box write at most this much to its disk, in GB (default: no limit)",
    )
    parser.add_argument(
        "--network",
        choices=("enabled", "disabled"),
        help="give the box a network, or none (default: enabled, but disabled with --security maximum)",
    )
    parser.add_argument("--label", action=_Pairs, metavar="KEY=VALUE", help="attach this label to the box (repeatable)")
    boxflags.add_flags(parser)
    parser.add_argument(
        "--auto-stop",
        type=_duration,
        metavar="DURATION",
        help="stop the box when it is idle for this long: seconds, or 30s, 15m, 2h, 7d (server default: never)",
    )
    parser.add_argument(
        "--auto-delete",
        type=_duration,
        metavar="DURATION",
        help="remove the box this long after it stops: seconds, or 30s, 15m, 2h, 7d (server default: never)",
    )
    parser.add_argument(
        "--no-auto-resume",
        action="store_true",
        help="do not start the stopped box when a command is to run in it (default: start it)",
    )
    parser.add_argument("image", metavar="IMAGE", help="the image's reference, such as alpine:latest")
    parser.add_argument(
        "cmd", metavar="COMMAND", nargs=argparse.REMAINDER, help="replace the image's command by this one"
    )


class _Pairs(argparse.Action):
    """Collects KEY=VALUE. For `--env`, a KEY alone takes its value from this process; an unset KEY is left out."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: object) -> None:
        super().__init__(option_strings, dest, default=(), **kwargs)  # type: ignore[arg-type]

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option: object = None,
    ) -> None:
        key, equals, value = str(values).partition("=")
        if not key or (self.dest == "label" and not equals):
            parser.error(f"argument {option}: '{values}' is not {self.metavar}")
        if not equals and key not in os.environ:
            return
        pair = (key, value if equals else os.environ[key])
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), pair))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


def _duration(text: str) -> int:
    """Parse whole seconds, or a number with a unit: s, m, h or d."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    number = text[:-1] if unit else text
    if not (number.isascii() and number.isdigit()):
        raise ValueError(text)
    return int(number) * (unit or 1)


# argparse shows these names in its messages.
_positive.__name__, _count.__name__ = "positive number", "number"
_seconds.__name__, _duration.__name__ = "number of seconds", "duration"
