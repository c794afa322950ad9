"""The `boxlite` command line: its options, its commands and its exit codes.

Exit codes: `run` and `exec` pass on that of the command in the box, and use 125 to 127 as docker does;
elsewhere 1 is a failure, 2 a wrong use of the command line.
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
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Wrong usage raises SystemExit(2), as argparse does."""
    parser = build_parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    if args.debug:
        logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stderr)
        logging.getLogger("boxlite").setLevel(logging.DEBUG)
    try:
        api = ApiClient(args.url, path_prefix=args.path_prefix, api_key=os.environ.get("BOXLITE_API_KEY", ""))
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
        # Nobody reads our output any more; the interpreter's last flush must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        api.close()


def build_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_global_options(common, url=argparse.SUPPRESS, prefix=argparse.SUPPRESS, debug=argparse.SUPPRESS)
    parser = argparse.ArgumentParser(
        prog="boxlite", description="Create and use sandbox boxes on a BoxLite server.", allow_abbrev=False
    )
    _add_global_options(
        parser,
        url=os.environ.get("BOXLITE_REST_URL") or DEFAULT_URL,
        prefix=os.environ.get("BOXLITE_REST_PATH_PREFIX", ""),
        debug=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"boxlite {output.version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(
        name: str, act: Command, text: str, *, aliases: Sequence[str] = (), to: _Commands = commands
    ) -> argparse.ArgumentParser:
        sub = to.add_parser(name, aliases=aliases, help=text, description=text, parents=[common], allow_abbrev=False)
        sub.set_defaults(run=act)
        return sub

    sub = add("create", boxes.create, "Create a box without starting it, and print its id")
    _add_box_options(sub)
    sub.add_argument("--rm", action="store_true", help="remove the box when it stops")

    sub = add("run", run.run, "Create a box and run a command in it")
    _add_box_options(sub)
    _add_stream_options(sub)
    sub.add_argument("--rm", action="store_true", help="remove the box when the command has ended")

    sub = add("exec", run.execute, "Run a command in a box")
    _add_process_options(sub)
    _add_stream_options(sub)
    sub.add_argument("box", metavar="BOX")
    sub.add_argument("cmd", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command and its arguments")

    sub = add("list", boxes.list_boxes, "List boxes", aliases=("ls", "ps"))
    sub.add_argument("-a", "--all", action="store_true", help="all boxes, not only active ones")
    _add_shape_options(sub)

    sub = add("inspect", boxes.inspect, "Show boxes in detail")
    sub.add_argument("-l", "--latest", action="store_true", help="the box created last")
    sub.add_argument("-f", "--format", default="json", help="json, or a template: '{{.State.Status}}'")
    sub.add_argument("boxes", metavar="BOX", nargs="*")

    sub = add("start", boxes.start, "Start boxes")
    sub.add_argument("boxes", metavar="BOX", nargs="+")

    for name, act, text in (
        ("stop", boxes.stop, "Stop running boxes"),
        ("restart", boxes.restart, "Stop boxes and start them again"),
    ):
        sub = add(name, act, text)
        sub.add_argument(
            "-t", "--time", type=_seconds, metavar="SECONDS", help="from the polite signal to the fatal one"
        )
        sub.add_argument("boxes", metavar="BOX", nargs="+")

    sub = add("rm", boxes.remove, "Remove boxes")
    sub.add_argument("-f", "--force", action="store_true", help="also running boxes, and ask nothing")
    sub.add_argument("-a", "--all", action="store_true", help="every box")
    sub.add_argument("boxes", metavar="BOX", nargs="*")

    sub = add("cp", copy.copy, "Copy files between this machine and a box; '-' is a tar archive on stdin or stdout")
    sub.add_argument("--follow-symlinks", action="store_true", help="copy what links lead to instead of the links")
    sub.add_argument("--no-overwrite", action="store_true", help="refuse when anything would be overwritten")
    sub.add_argument("--no-include-parent", action="store_true", help="what is in a directory, without the directory")
    sub.add_argument("source", metavar="SRC", help="PATH, BOX:PATH or -")
    sub.add_argument("destination", metavar="DST", help="PATH, BOX:PATH or -")

    sub = add("images", storage.images, "List the images that the workers have")
    _add_shape_options(sub)
    sub = add("pull", storage.pull, "Pull an image")
    sub.add_argument("-q", "--quiet", action="store_true", help="print the image's id only")
    sub.add_argument("image", metavar="IMAGE")

    text = "Make, show and remove volumes"
    volumes = commands.add_parser("volume", help=text, description=text, allow_abbrev=False).add_subparsers(
        metavar="COMMAND", required=True
    )
    sub = add("create", storage.create_volume, "Make a volume, and print its id", to=volumes)
    sub.add_argument("--name", help="a name for the volume; without one, its id")
    sub = add("ls", storage.list_volumes, "List volumes", aliases=("list",), to=volumes)
    _add_shape_options(sub)
    sub = add("get", storage.get_volume, "Show a volume", aliases=("inspect",), to=volumes)
    sub.add_argument("--format", choices=("table", "json"), default="table")
    sub.add_argument("volume", metavar="VOLUME")
    sub = add("rm", storage.remove_volumes, "Remove volumes and their data", aliases=("delete",), to=volumes)
    sub.add_argument("-f", "--force", action="store_true", help="a missing volume is no error")
    sub.add_argument("volumes", metavar="VOLUME", nargs="+")

    sub = add("stats", stats.stats, "Show what a box uses")
    sub.add_argument("--format", choices=("table", "json"), default="table")
    sub.add_argument("-s", "--stream", action="store_true", help="go on every second until Ctrl-C")
    sub.add_argument("box", metavar="BOX")

    _add_disk_commands(add, common)

    sub = add("logs", logs.logs, "Show what the main command of a box has said")
    sub.add_argument("-f", "--follow", action="store_true", help="go on until the box stops")
    sub.add_argument("-n", "--tail", type=_count, metavar="N", help="only the last N lines")
    sub.add_argument("box", metavar="BOX")

    sub = add("completion", completion.command(build_parser), "Print the completion script of a shell")
    sub.add_argument("shell", choices=completion.SHELLS, metavar="SHELL", help=", ".join(completion.SHELLS))

    sub = add("info", boxes.info, "Show the server and how many boxes it has")
    sub.add_argument("--format", choices=("yaml", "json"), default="yaml")
    add("version", boxes.show_version, "Show the version of this command")
    return parser


def _add_disk_commands(add: Callable[..., argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    sub = add("clone", snapshots.clone, "Make a new box with the disk of another, and print its id")
    sub.add_argument("--name", help="a name for the new box")
    sub.add_argument("box", metavar="BOX")

    sub = add("export", snapshots.export, "Write a box to an archive, and print the file's name")
    sub.add_argument("-o", "--output", metavar="FILE", help="default BOX.boxlite here; - is stdout")
    sub.add_argument("box", metavar="BOX")

    sub = add("import", snapshots.import_box, "Make a box from an archive, and print its id")
    sub.add_argument("--name", help="a name for the box")
    sub.add_argument("file", metavar="FILE", help="- is stdin")

    sub = add("snapshot", snapshots.list_snapshots, "Keep disks of a box, and put it back to one")
    verbs = sub.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add_verb(name: str, act: Command, text: str, *, aliases: Sequence[str] = ()) -> argparse.ArgumentParser:
        verb = verbs.add_parser(
            name, aliases=aliases, help=text, description=text, parents=[common], allow_abbrev=False
        )
        verb.set_defaults(run=act)
        verb.add_argument("box", metavar="BOX")
        return verb

    add_verb("create", snapshots.create_snapshot, "Keep the disk of a box, and print the snapshot's id").add_argument(
        "name", metavar="NAME"
    )
    verb = add_verb("ls", snapshots.list_snapshots, "List the snapshots of a box", aliases=("list",))
    shape = verb.add_mutually_exclusive_group()
    shape.add_argument("-q", "--quiet", action="store_true", help="names only")
    shape.add_argument("--format", choices=("table", "json"), default="table")
    verb = add_verb("inspect", snapshots.inspect_snapshot, "Show snapshots in detail")
    verb.add_argument("names", metavar="NAME", nargs="+")
    verb = add_verb("restore", snapshots.restore_snapshot, "Put a stopped box back to a snapshot")
    verb.add_argument("name", metavar="NAME")
    verb = add_verb("rm", snapshots.remove_snapshots, "Remove snapshots")
    verb.add_argument("names", metavar="NAME", nargs="+")


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what argparse cannot see to be wrong, and take the `--` off a command."""
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


def _add_global_options(parser: argparse.ArgumentParser, *, url: str, prefix: str, debug: object) -> None:
    group = parser.add_argument_group("global options")
    group.add_argument("--url", default=url, help=f"the server (env BOXLITE_REST_URL, default {DEFAULT_URL})")
    group.add_argument("--path-prefix", default=prefix, metavar="PREFIX", help="(env BOXLITE_REST_PATH_PREFIX)")
    group.add_argument("--debug", action="store_true", default=debug, help="tell on stderr what is done")


def _add_process_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-e",
        "--env",
        action=_Pairs,
        metavar="KEY[=VALUE]",
        help="set an environment variable; KEY alone takes its value here (repeatable)",
    )
    parser.add_argument("-w", "--workdir", metavar="PATH", help="working directory in the box")
    parser.add_argument("-u", "--user", metavar="NAME[:GROUP]", help="user to run as")


def _add_stream_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--interactive", action="store_true", help="forward stdin")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait for the command")


def _add_shape_options(parser: argparse.ArgumentParser) -> None:
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("-q", "--quiet", action="store_true", help="ids only")
    shape.add_argument("--format", choices=("table", "json"), default="table")


def _add_box_options(parser: argparse.ArgumentParser) -> None:
    _add_process_options(parser)
    parser.add_argument("--name", help="a name for the box")
    parser.add_argument("--entrypoint", metavar="EXEC", help="replace the entrypoint of the image")
    parser.add_argument("--cpus", type=_positive, metavar="N")
    parser.add_argument("--memory", type=_positive, metavar="MIB", help="in mebibytes")
    parser.add_argument("--network", choices=("enabled", "disabled"), default="enabled")
    parser.add_argument("--label", action=_Pairs, metavar="KEY=VALUE", help="(repeatable)")
    boxflags.add_flags(parser)
    parser.add_argument(
        "--auto-stop", type=_duration, metavar="DURATION", help="stop the box when it is idle so long: 30s, 15m, 2h, 7d"
    )
    parser.add_argument("--auto-delete", type=_duration, metavar="DURATION", help="remove it so long after its stop")
    parser.add_argument("--no-auto-resume", action="store_true", help="only `start` may start it again")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("cmd", metavar="COMMAND", nargs=argparse.REMAINDER, help="replaces the command of the image")


class _Pairs(argparse.Action):
    """Collects KEY=VALUE. Of the environment's, a KEY alone is taken from ours, and left out when unset."""

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
    """Whole seconds: bare, or with a unit."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    number = text[:-1] if unit else text
    if not (number.isascii() and number.isdigit()):
        raise ValueError(text)
    return int(number) * (unit or 1)


# In argparse's messages.
_positive.__name__, _count.__name__ = "positive number", "number"
_seconds.__name__, _duration.__name__ = "number of seconds", "duration"
