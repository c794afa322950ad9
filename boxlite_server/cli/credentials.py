"""The API key as a setting: where it comes from, and how it is kept out of lists of processes and out of children."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from ..errors import InvalidArgumentError

VARIABLE = "BOXLITE_API_KEY"
_PIPE_VARIABLE = "BOXLITE_API_KEY_FD"  # set by `_start_again` alone: the descriptor of a pipe with the key

MIN_TOKEN = 16  # characters

_KEY = re.compile(r"[!-~]{1,4096}")  # what fits into a header


def take_key(arguments: argparse.Namespace, *, may_start_again: bool) -> str | None:
    """The key of a command, from --api-key, --api-key-file or the environment; None where there is none. Processes that
    this one starts do not inherit it.

    With `may_start_again` this process begins anew, without the key in its arguments and in its first environment,
    which other processes of the host can read. Raises InvalidArgumentError.
    """
    given, pipe = os.environ.pop(VARIABLE, None), os.environ.pop(_PIPE_VARIABLE, None)
    key: str | None = None
    if arguments.api_key is not None:
        key = _checked(arguments.api_key, "--api-key")
    elif arguments.api_key_file is not None:
        key = _checked(_content(arguments.api_key_file), str(arguments.api_key_file))
    elif pipe is not None:
        with os.fdopen(int(pipe)) as content:
            return content.read()
    elif given:
        key = _checked(given, VARIABLE)
    if may_start_again and (arguments.api_key is not None or given) and key is not None:
        _start_again(key)
    return key


def metrics_token(file: Path | None) -> str | None:
    """The token of --metrics-token-file; None where there is no file. Raises InvalidArgumentError."""
    if file is None:
        return None
    token = _checked(_content(file, "token"), str(file), "token")
    if len(token) < MIN_TOKEN:
        raise InvalidArgumentError(
            f"the token in {file} has {len(token)} characters, and fewer than {MIN_TOKEN} can be guessed; make a good "
            "one: openssl rand -hex 32"
        )
    return token


def _content(file: Path, what: str = "API key") -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(8192).decode(errors="replace").rstrip("\r\n")
    except OSError as exc:
        raise InvalidArgumentError(f"cannot read the {what} from {file}: {exc.strerror}") from exc


def _checked(key: str, source: str, what: str = "API key") -> str:
    if not _KEY.fullmatch(key):
        raise InvalidArgumentError(f"{source} gives no {what}, which has 1 to 4096 visible ASCII characters")
    return key


def _start_again(key: str) -> NoReturn:
    """Replace this program by itself; the process stays the same. The key goes through a pipe."""
    reading, writing = os.pipe()
    os.write(writing, key.encode())
    os.close(writing)
    os.set_inheritable(reading, True)
    environment = {**os.environ, _PIPE_VARIABLE: str(reading)}
    os.execve(sys.executable, [sys.executable, *_without_key(sys.orig_argv[1:])], environment)


def _without_key(argv: list[str]) -> list[str]:
    """Leave out --api-key and --join with their values. Argparse accepts abbreviations of --join, but none of
    --api-key, since --api-key-file begins alike."""
    kept = []
    rest = iter(argv)
    for argument in rest:
        name, has_value, _ = argument.partition("=")
        if name == "--api-key" or (len(name) > 2 and "--join".startswith(name)):
            if not has_value:
                next(rest, None)
        else:
            kept.append(argument)
    return kept
