"""The seam for commands in boxes: `ExecSpec` describes a command, `Process` is the command from spawn to exit code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import InvalidArgumentError

STDOUT = 1  # with a pseudo-terminal: all output
STDERR = 2
DEFAULT_COLS, DEFAULT_ROWS = 80, 24  # of a terminal
GONE_EXIT_CODE = 137  # of a command whose real exit code was lost with its box
# What a terminal takes for the end of input: the first byte ends a line that is not complete, the second one the
# input. Where no line had begun, the second byte ends the input of whatever reads from the terminal next.
END_OF_TRANSMISSION = b"\x04\x04"


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A command to run in a box. An empty `working_dir` or `user` leaves the value to the box.

    `cols` and `rows`: the size that a terminal has at the start. `is_kept`: the next worker process is to take over the
    command with its output and input; otherwise it needs to be able to end it, and no more.
    """

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = ""
    user: str = ""
    tty: bool = False
    cols: int = DEFAULT_COLS
    rows: int = DEFAULT_ROWS
    is_kept: bool = True


class Process(Protocol):
    """One command in a box, from spawn to exit code.

    One thread reads and then waits; other threads may call the other methods at any time. `write`, `signal` and
    `resize` raise `InvalidStateError` once the command has ended.
    """

    @property
    def handle(self) -> str:
        """The name by which `BoxRuntime.readopt` finds the command in another worker process. Empty for a main
        command, which is found by its box."""

    @property
    def tty(self) -> bool:
        """Whether the command has a pseudo-terminal."""

    @property
    def lost(self) -> str:
        """Why the exit code that `wait` returned is not the command's own; empty when it is."""

    @property
    def memory_limit_hit(self) -> int:
        """The box's memory limit in MiB, if the kernel killed a process of the box at that limit while the command
        ran; 0 otherwise, or where the runtime cannot tell. Known once `wait` has returned."""

    def read(self) -> tuple[int, bytes] | None:
        """The next piece of output as (STDOUT or STDERR, data); blocks.

        None: the output has ended, or the command has ended and only what it left running can still write.
        """

    def write(self, data: bytes, timeout: float) -> int:
        """Hand input to the command for at most `timeout` seconds. Returns the number of bytes taken."""

    def close_input(self, timeout: float) -> bool:
        """End the input, within `timeout` seconds: the command reads what was taken, then EOF. Returns whether that
        was done; it may be repeated. A program that has put its terminal into raw mode gets no EOF."""

    def signal(self, number: int) -> None:
        """Send the POSIX signal `number` to the command."""

    def kill(self) -> None:
        """Kill the command and all processes that it has started. A command that has ended is ignored.

        Raises `UnsupportedError` when the runtime has no means to kill them, `EngineError` when the attempt failed.
        """

    def resize(self, cols: int, rows: int) -> None:
        """Set the size of the command's pseudo-terminal."""

    def wait(self) -> int:
        """The exit code, 128 + n after signal n; blocks. Called after the end of output."""

    def close(self) -> None:
        """Let go of the command without killing it: a blocked `read` and `wait` return soon."""


class Sink(Protocol):
    """Where output goes without a way through the memory of this process."""

    def take(self, stream: int, pipe: int, count: int) -> int:
        """Move at most `count` bytes, which have come, out of a pipe. Returns how many. May wait until there is
        room."""


class Durable(ABC):
    """What a `Process` offers besides, if nothing of it is lost when the worker process is killed at any moment: its
    output and its input lie in pipes that outlive the worker process. It is no protocol, since `isinstance` would read
    every property of a process."""

    @property
    @abstractmethod
    def is_whole(self) -> bool:
        """Whether all output is still to come that no worker process has moved to a sink."""

    @property
    @abstractmethod
    def taken(self) -> int:
        """How many bytes of input the command has been handed since its start, by whichever worker process."""

    @abstractmethod
    def move(self, sink: Sink) -> int | None:
        """Move the next piece of output to the sink, in place of `read`; blocks. Returns its size, or None where `read`
        returns None."""


class LogReader(Protocol):
    """The output of a box's main command, as logged. One thread reads, any thread may close."""

    def read(self) -> tuple[int, bytes] | None:
        """The next piece as (STDOUT or STDERR, data); blocks. None: the log has ended, or the reader was closed."""

    def close(self) -> None:
        """End the reader: a blocked `read` returns soon. Repeating this is harmless."""


def check_signal(number: int) -> None:
    """Raise `InvalidArgumentError` for what is not the number of a Linux signal."""
    if not 1 <= number <= 64:
        raise InvalidArgumentError(f"{number} is not a signal number")
