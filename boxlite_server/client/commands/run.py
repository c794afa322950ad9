"""`run`, `exec` and `attach`: they run a command in a box, or join one, and exit with its exit code."""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import suppress

from ...errors import BoxliteError, ExecutionError, InvalidArgumentError, NotFoundError, StoppedError
from .. import boxflags, events, flags, stream, terminal
from ..api import ApiClient, Json
from ..output import print_error
from ..parser import Commands
from .boxes import check_lifetimes

CLIENT_FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127


def add_to(commands: Commands) -> None:
    sub = commands.add(
        "run",
        run,
        "Create a box, and run a command in it",
        examples=(
            "boxlite run --rm alpine:latest echo hello",
            "boxlite run -it --rm -m 512m alpine:latest sh",
            "boxlite run -d --name web -p 80 -l team=blue nginx:alpine",
        ),
        check=_check_run,
        failure=failure_code,
    )
    boxflags.add_flags(sub)
    flags.add_streams(sub)
    sub.add_argument("--rm", action="store_true", help="remove the box when the command has ended")

    sub = commands.add(
        "exec",
        execute,
        "Run a command in a box",
        examples=(
            "boxlite exec web -- ls -l /srv",
            "boxlite exec -it web sh",
            "cat dump.sql | boxlite exec -i --env-file db.env db -- psql",
        ),
        check=_check_exec,
        failure=failure_code,
    )
    flags.add_process(sub)
    flags.add_streams(sub)
    flags.add_box(sub)
    flags.add_command(sub, "the command and its arguments")

    sub = commands.add(
        "attach",
        attach,
        "Attach to the main command of a running box, or to an execution",
        examples=("boxlite attach web", "boxlite attach --no-stdin web 8f0c5a1e9b7d4c32a6f1e0d9c8b7a695"),
        failure=failure_code,
    )
    sub.add_argument("--no-stdin", action="store_true", help="do not pass stdin on to the command")
    flags.add_box(sub)
    sub.add_argument(
        "execution", metavar="EXECUTION", nargs="?", help="the id of an execution (default: the box's main command)"
    )


def _check_run(args: Namespace) -> str | None:
    return check_lifetimes(args) or _check_streams(args)


def _check_exec(args: Namespace) -> str | None:
    if args.cmd and args.cmd[0] != "--" and args.cmd[0].startswith("-"):
        return f"unexpected '{args.cmd[0]}': options go before BOX"
    if not flags.command(args):
        return f"no command given; write boxlite exec {args.box} -- COMMAND"
    return _check_streams(args)


def _check_streams(args: Namespace) -> str | None:
    return "--interactive and --detach exclude each other" if args.interactive and args.detach else None


def failure_code(error: BoxliteError) -> int:
    """The exit code for a command that did not run, as in docker: 127 if it was not found, 126 if it may not be
    executed, 125 for any other failure."""
    if isinstance(error, ExecutionError):
        return NOT_EXECUTABLE if "permission denied" in error.message.lower() else NOT_FOUND
    return CLIENT_FAILED


def run(api: ApiClient, args: Namespace) -> int:
    if args.tty:
        _need_terminal()
    body = boxflags.create_body(args)
    if args.tty:
        body["tty"] = True
    if args.rm and args.detach:
        body["auto_remove"] = True  # the client exits before the box stops, so the server must remove it
    box = str(api.create_box(body)["box_id"])
    if args.detach:
        return _run_detached(api, box, remove_on_failure=args.rm)
    try:
        return stream.attach_main(api, box, lambda: api.start_box(box), stdin=args.interactive, tty=args.tty)
    finally:
        if args.rm:
            _remove(api, box)


def execute(api: ApiClient, args: Namespace) -> int:
    interactive = args.interactive or args.tty
    if args.tty and not args.detach:
        _need_terminal()
    optional = {"env": flags.environment(args), "working_dir": args.workdir, "user": args.user}
    program, *arguments = flags.command(args)
    body: Json = {"command": program, "args": arguments} | {key: it for key, it in optional.items() if it}
    if not interactive and not args.detach:
        with suppress(NotFoundError):  # there is no such box, as the next request tells, or the server is older
            return events.run_command(api, args.box, body)
    body["tty"] = args.tty
    if not interactive:
        body["stdin"] = False
    if args.tty and (size := terminal.size()):
        body["cols"], body["rows"] = size
    execution = str(api.post(api.path("boxes", args.box, "exec"), body)["execution_id"])
    if args.detach:
        return 0
    return stream.attach_execution(api, args.box, execution, stdin=interactive, tty=args.tty)


def attach(api: ApiClient, args: Namespace) -> int:
    box = api.get_box(args.box)
    stdin = not args.no_stdin
    tty = stdin and os.isatty(terminal.STDIN)
    if args.execution:
        return stream.attach_execution(api, args.box, args.execution, stdin=stdin, tty=tty, as_visitor=True)
    if box["status"] != "running":
        raise StoppedError(f"box '{args.box}' is {box['status']}; start it with 'boxlite start {args.box}'")
    return stream.visit_main(api, args.box, stdin=stdin, tty=tty and bool(box.get("tty")))


def _run_detached(api: ApiClient, box: str, *, remove_on_failure: bool) -> int:
    try:
        api.start_box(box)
    except BoxliteError:
        if remove_on_failure:
            _remove(api, box)
        raise
    print(box)
    return 0


def _remove(api: ApiClient, box: str) -> None:
    """Remove the box. A failure is printed, and does not change the exit code."""
    try:
        with suppress(NotFoundError):
            api.remove_box(box, force=True)
    except BoxliteError as error:
        print_error(f"box {box} was not removed: {error.message}")


def _need_terminal() -> None:
    if not os.isatty(terminal.STDIN):
        raise InvalidArgumentError("the input device is not a TTY")
