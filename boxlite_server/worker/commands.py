"""The seam for commands in boxes: what a command is asked to be, and what can be done with it while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

STDOUT = 1  # with a pseudo-terminal: everything
STDERR = 2
GONE_EXIT_CODE = 137  # of a command whose real exit code went with its box


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A command to run in a box. Empty `working_dir` and `user` mean: the box's."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = ""
    user: str = ""
    tty: bool = False


class Process(Protocol):
    """One command in a box, from spawn to exit code.

    One thread reads and then waits; other threads may call the rest at any time. Verbs other than
    `kill` and `close` on a command that has ended raise `InvalidStateError`.
    """

    @property
    def handle(self) -> str:
        """By which `BoxRuntime.readopt` finds the command in another life of this process. Of a main command:
        none, it is found by its box."""

    @property
    def lost(self) -> str:
        """Once `wait` has returned: why the exit code is not the command's own; empty when it is."""

    def read(self) -> tuple[int, bytes] | None:
        """The next piece of output as (STDOUT or STDERR, data); blocks. None: the output has ended."""

    def write(self, data: bytes, timeout: float) -> int:
        """Hand input to the command for at most `timeout` seconds. Returns the bytes taken."""

    def close_input(self) -> None:
        """End of input: the command reads to its end what was taken, then EOF. Repeating it is harmless."""

    def signal(self, number: int) -> None:
        """Send the POSIX signal `number` to the command."""

    def kill(self) -> None:
        """SIGKILL to the command and its process group. Of an ended command: nothing."""

    def resize(self, cols: int, rows: int) -> None:
        """Set the size of the command's pseudo-terminal."""

    def wait(self) -> int:
        """The exit code, 128 + n after signal n; blocks. Called after the end of output."""

    def close(self) -> None:
        """Let go of the command: a blocked `read` and `wait` return soon. Kills nothing."""


class LogReader(Protocol):
    """What a box has said. One thread reads, any may close."""

    def read(self) -> tuple[int, bytes] | None:
        """The next piece as (STDOUT or STDERR, data); blocks. None: there is no more, or it was closed."""

    def close(self) -> None:
        """A blocked `read` returns soon. Repeating it is harmless."""
