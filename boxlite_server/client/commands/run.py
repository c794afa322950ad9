"""`run` and `exec`: they run a command in a box and exit with its exit code."""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import suppress

from ...errors import BoxliteError, ExecutionError, InvalidArgumentError, NotFoundError
from .. import events, stream, terminal
from ..api import ApiClient, Json
from ..output import print_error
from .boxes import create_body

CLIENT_FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127


def failure_code(error: BoxliteError) -> int:
    """The exit code for a command that did not run, as in docker: 127 if it was not found, 126 if it may not be
    executed, 125 for any other failure."""
    if isinstance(error, ExecutionError):
        return NOT_EXECUTABLE if "permission denied" in error.message.lower() else NOT_FOUND
    return CLIENT_FAILED


def run(api: ApiClient, args: Namespace) -> int:
    if args.tty:
        _need_terminal()
    body = create_body(args)
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
    optional = {"env": dict(args.env), "working_dir": args.workdir, "user": args.user}
    body: Json = {"command": args.cmd[0], "args": args.cmd[1:]} | {key: it for key, it in optional.items() if it}
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
