"""The `boxlite` command line: its commands and its exit codes.

Exit codes: `run`, `exec` and `attach` pass on the exit code of the command in the box, and use 125 to 127 as docker
does, 125 also for wrong arguments. For the other commands, 1 is a failure, and 2 stands for wrong arguments.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from ..errors import AuthError, BoxliteError, PermissionDeniedError
from . import output
from .commands import auth, boxes, completion, copy, events, listing, logs, network, run, snapshots, stats, storage
from .parser import Commands, Parser, add_global_options, shown_examples


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Wrong arguments raise SystemExit, as argparse does."""
    args = build_parser().parse(argv)
    if args.debug:
        logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stderr)
        logging.getLogger("boxlite").setLevel(logging.DEBUG)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except BoxliteError as error:
        output.print_error(_explained(error))
        logging.getLogger("boxlite").debug("the error came from:", exc_info=error)
        return int(args.failure(error))
    except BrokenPipeError:
        # The reader of stdout has gone; the interpreter's last flush must not fail on that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def build_parser() -> Parser:
    parser = Parser(
        prog="boxlite",
        description="Create and use sandbox boxes on a BoxLite server.",
        epilog=shown_examples(
            (
                "boxlite run -it --rm alpine:latest sh",
                "boxlite --url https://boxes.example:8200 auth login",
                "boxlite ps -a --format json",
            )
        )
        + "\n\nThe API key is that of the environment variable BOXLITE_API_KEY, or of the profile.",
    )
    add_global_options(parser)
    parser.add_argument("-V", "--version", action="version", version=f"boxlite {output.version()}")
    commands = Commands(parser)
    for group in (run, boxes, listing, logs, events, stats, copy, snapshots, storage, network, auth):
        group.add_to(commands)
    completion.add_to(commands, build_parser)
    return parser


def _explained(error: BoxliteError) -> str:
    if isinstance(error, AuthError) and not isinstance(error, PermissionDeniedError):
        return f"{error.message}; log in with 'boxlite auth login', or set BOXLITE_API_KEY"
    return error.message
