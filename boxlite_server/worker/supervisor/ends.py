"""The worker's ends of a command's pipes or terminal."""

from __future__ import annotations

import array
import fcntl
import os
import select
import termios
import time
from contextlib import ExitStack, suppress

from .command import News

_PIPE_BYTES = 1024 * 1024
_RECEIVE = 128 * 1024  # bytes at once


class End:
    """The worker's end of a pipe or terminal. It is closed when nobody refers to it any more, so that its number cannot
    mean something else to a thread that still uses it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def read(self, limit: int = _RECEIVE) -> bytes | None:
        """What has come, at most `limit` bytes; empty at the end, None when nothing has come."""
        try:
            return os.read(self._descriptor, min(limit, _RECEIVE))
        except BlockingIOError:
            return None
        except OSError:
            return b""  # the other end of a terminal is closed

    def unread(self) -> int:
        """How many bytes have come and were not read."""
        count = array.array("i", [0])
        fcntl.ioctl(self._descriptor, termios.FIONREAD, count)
        return count[0]

    def has_writers(self) -> bool:
        """Whether somebody can still write to a pipe."""
        poll = select.poll()
        poll.register(self._descriptor, 0)  # a hang-up is always reported
        return not poll.poll(0)

    def write(self, data: bytes, timeout: float, news: News) -> int:
        """Write for at most `timeout` seconds, and not on after `news`. Returns the number of bytes written. Raises
        OSError when the other end is closed."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.register(news, select.POLLIN)
        view = memoryview(data)
        sent = 0
        while sent < len(data):
            try:
                sent += os.write(self._descriptor, view[sent:])
            except BlockingIOError:
                left = deadline - time.monotonic()
                ready = poll.poll(left * 1000) if left > 0 else []
                if not ready or any(number == news.fileno() for number, _ in ready):
                    break
        return sent

    def resize(self, cols: int, rows: int) -> None:
        """Set the size of a terminal. Raises OSError when its other end is closed."""
        termios.tcsetwinsize(self._descriptor, (rows, cols))


def pipes(closing: ExitStack) -> tuple[dict[str, End], list[int]]:
    """New pipes for a command: the worker's ends by their names, and the command's stdin, stdout and stderr, which
    `closing` closes. Raises OSError."""
    ours: dict[str, End] = {}
    theirs: list[int] = []
    for name in ("in", "out", "err"):
        reading, writing = os.pipe()
        mine, other = (writing, reading) if name == "in" else (reading, writing)
        closing.callback(os.close, other)
        ours[name] = End(mine)
        theirs.append(other)
        os.fchmod(other, 0o666)  # so that any user of the box can open /dev/stderr
        if name != "in":
            with suppress(OSError):  # a worker without root may have so many large pipes, and no more
                fcntl.fcntl(other, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return ours, theirs


def sealed(content: bytes, closing: ExitStack) -> int:
    """The descriptor, which `closing` closes, of a file in memory with this content. Raises OSError."""
    descriptor = os.memfd_create("spec", os.MFD_CLOEXEC)
    closing.callback(os.close, descriptor)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor
