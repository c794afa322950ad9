"""The local terminal: raw mode, its size, and writing bytes to file descriptors."""

from __future__ import annotations

import os
import select
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

STDIN, STDOUT, STDERR = 0, 1, 2


@contextmanager
def raw_mode(enabled: bool) -> Iterator[None]:
    """Put the terminal at stdin into raw mode during the `with` block, and restore it afterwards.

    In raw mode, every key reaches the box. Does nothing unless `enabled`.
    """
    if not enabled:
        yield
        return
    before = termios.tcgetattr(STDIN)
    try:
        tty.setraw(STDIN, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)


def size() -> tuple[int, int] | None:
    """Columns and rows of the terminal at stdin; None if stdin is no terminal or does not know its size."""
    try:
        columns, rows = os.get_terminal_size(STDIN)
    except OSError:
        return None
    return (columns, rows) if columns > 0 and rows > 0 else None


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, also to a descriptor in non-blocking mode. Raises OSError."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
