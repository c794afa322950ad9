"""Flags that commands share, and the types of flags: each converts a text, or raises ArgumentTypeError."""

from __future__ import annotations

import argparse
import os
import re
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from ..errors import InvalidArgumentError

FORMATS = ("table", "json", "yaml")
DOCUMENT_FORMATS = ("yaml", "json")

_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgt])i?)?(b)?", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_MEBIBYTE = 1 << 20
_MAX_ENV_FILE = 1 << 20  # bytes


SIGKILL = 9

# The names of Linux's signals, whatever the system of the client. Between RTMIN and RTMAX they are those of bash.
_SIGNALS = {
    **{
        name: number
        for number, name in enumerate(
            "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN "
            "TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS".split(),
            1,
        )
    },
    **{"IOT": 6, "CLD": 17, "POLL": 29, "RTMIN": 34, "RTMAX": 64},
    **{f"RTMIN+{n}": 34 + n for n in range(1, 16)},
    **{f"RTMAX-{n}": 64 - n for n in range(1, 15)},
}


# ---- flags that several commands have -----------------------------------------------------------------------


def add_box(parser: ArgumentParser) -> None:
    parser.add_argument("box", metavar="BOX", help="the box's id or name")


def add_boxes(parser: ArgumentParser, nargs: str = "+") -> None:
    parser.add_argument("boxes", metavar="BOX", nargs=nargs, help="the id or name of a box")


def add_format(parser: argparse._ActionsContainer, choices: Sequence[str] = FORMATS) -> None:
    parser.add_argument(
        "--format",
        choices=choices,
        default=choices[0],
        metavar="FORMAT",
        help=f"print in this format: {', '.join(choices)} (default: {choices[0]})",
    )


def add_shape(parser: ArgumentParser, quiet: str = "print only ids") -> None:
    """Add --quiet and --format, which exclude each other."""
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("-q", "--quiet", action="store_true", help=quiet)
    add_format(shape)


def add_process(parser: ArgumentParser) -> None:
    """Add the flags for what a command runs with: environment, working directory and user."""
    parser.add_argument(
        "-e",
        "--env",
        action=Pairs,
        metavar="KEY[=VALUE]",
        help="set an environment variable; KEY alone takes its value from this environment (repeatable)",
    )
    parser.add_argument(
        "--env-file",
        action="append",
        default=[],
        metavar="FILE",
        help="set the environment variables in this file, one KEY[=VALUE] in a line; --env wins (repeatable)",
    )
    parser.add_argument(
        "-w", "--workdir", metavar="PATH", help="run in this directory of the box (default: that of the image or box)"
    )
    parser.add_argument(
        "-u", "--user", metavar="NAME[:GROUP]", help="run as this user (default: that of the image or box)"
    )


def add_streams(parser: ArgumentParser) -> None:
    parser.add_argument("-i", "--interactive", action="store_true", help="pass stdin on to the command")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument("-d", "--detach", action="store_true", help="start the command and do not wait for its end")


def add_command(parser: ArgumentParser, text: str) -> None:
    """Add the rest of the command line as a command in a box."""
    action = parser.add_argument("cmd", metavar="COMMAND", nargs=argparse.REMAINDER, help=text)
    action.required = False  # or argparse would name it among what is missing


def command(args: argparse.Namespace) -> list[str]:
    """The command in a box, without the `--` that may stand in front of it."""
    words: list[str] = args.cmd
    return words[1:] if words[:1] == ["--"] else words


def environment(args: argparse.Namespace) -> dict[str, str]:
    """The variables of --env-file and --env. Raises InvalidArgumentError for a file that cannot be used."""
    return {key: value for file in args.env_file for key, value in _env_file(file)} | dict(args.env)


def _env_file(name: str) -> list[tuple[str, str]]:
    try:
        with Path(name).open("rb") as file:
            data = file.read(_MAX_ENV_FILE + 1)
        if len(data) > _MAX_ENV_FILE:
            raise InvalidArgumentError(f"--env-file {name}: it has more than {_MAX_ENV_FILE >> 20} MiB")
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"--env-file {name}: {getattr(error, 'strerror', None) or error}") from error
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.lstrip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not key or re.search(r"\s", key):
            raise InvalidArgumentError(f"--env-file {name}: line {number} is not KEY=VALUE")
        if equals or key in os.environ:
            pairs.append((key, value if equals else os.environ[key]))
    return pairs


class Pairs(argparse.Action):
    """Collects KEY=VALUE. For `--env`, a KEY alone takes its value from this process, and an unset KEY is left out; as
    a label, a KEY alone has an empty value."""

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
        if not key:
            parser.error(f"argument {option}: '{values}' is not {self.metavar}")
        if self.dest == "env" and not equals:
            if key not in os.environ:
                return
            value = os.environ[key]
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), (key, value)))


# ---- types --------------------------------------------------------------------------------------------------


def positive(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) >= 1:
        return int(text)
    raise ArgumentTypeError(f"'{text}' is no number of 1 or more")


def count(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise ArgumentTypeError(f"'{text}' is no number of 0 or more")


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if 0 <= number < float("inf"):
        return number
    raise ArgumentTypeError(f"'{text}' is no number of seconds")


def signal_number(text: str) -> int:
    """Linux's number of a signal: its name, with or without SIG, or the number itself."""
    number = int(text) if text.isascii() and text.isdigit() else _SIGNALS.get(text.upper().removeprefix("SIG"), 0)
    if 1 <= number <= _SIGNALS["RTMAX"]:
        return number
    raise ArgumentTypeError(f"'{text}' is no signal; write a name such as HUP or SIGTERM, or a number such as 15")


def duration(text: str) -> int:
    """Whole seconds, or numbers with the units d, h, m and s, in this order."""
    if text.isascii() and text.isdigit():
        return int(text)
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ArgumentTypeError(f"'{text}' is no duration; write seconds, or 30s, 15m, 1h30m, 7d")
    return sum(int(number or 0) * unit for number, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True))


def memory(text: str) -> int:
    """An amount of memory in MiB, rounded up: 512m, 2g, 65536k, or a number of MiB."""
    match = _MEMORY.fullmatch(text)
    if match is None or (match[3] is None and match[2] is None and "." in text):
        raise ArgumentTypeError(f"'{text}' is no amount of memory; write 512m or 2g, or a number of MiB")
    if match[2] is None and match[3] is None:
        return positive(text)
    size = float(match[1]) * 1024 ** (" kmgt".index(match[2].lower()) if match[2] else 0)
    if size <= 0:
        raise ArgumentTypeError(f"'{text}' is no amount of memory; write 512m or 2g, or a number of MiB")
    return -int(-size // _MEBIBYTE)
