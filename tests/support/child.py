"""Python processes that tests start, stop and kill."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

# Goes before a command: the program is killed when the tests' process is.
BOUND = ("setpriv", "--pdeathsig", "KILL", "--")


@contextmanager
def child(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A running program of that text; its output is read line by line, and it is killed at the end."""
    process = subprocess.Popen(
        [*BOUND, sys.executable, "-u", "-c", textwrap.dedent(program), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that it prints, without its end; empty when it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")
