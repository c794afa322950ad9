"""The worker's ends of a command's pipes or terminal."""

from __future__ import annotations

import array
import fcntl
import os
import select
import stat
import termios
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack, suppress

from .wire import ProtocolError

_TERMINAL_DEVICE = (5, 2)  # major and minor number of the master of a pseudo-terminal
PIPE_BYTES = 1024 * 1024
_GRACE = 0.5  # seconds that a write to a terminal may take beyond its time
_AGAIN = 0.01  # seconds until it is woken again
_RECEIVE = 128 * 1024  # bytes at once


class Owned:
    """A descriptor that is closed when nobody refers to it any more, so that its number cannot mean something else to a
    thread that still uses it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor


class End(Owned):
    """The worker's end of a pipe or terminal."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        os.set_blocking(descriptor, False)

    @property
    def source(self) -> int:
        """The pipe to take output from, whose size `ready` tells."""
        return self._descriptor

    def ready(self, *, is_hung_up: bool = False) -> int | None:
        """How many bytes can be taken; 0 at the end, None when nothing has come. `is_hung_up`: nobody can write."""
        return self.unread() or (0 if is_hung_up else None)

    def unread(self) -> int:
        """How many bytes have come and were not taken."""
        return unread(self.source)

    def has_writers(self) -> bool:
        """Whether somebody can still write to a pipe."""
        poll = select.poll()
        poll.register(self._descriptor, 0)  # a hang-up is always reported
        return not poll.poll(0)


class Terminal(End):
    """The master of a command's terminal. Its output goes through a pipe, the relay, which the holder keeps too."""

    def __init__(self, descriptor: int, relay: Sequence[int] = ()) -> None:
        super().__init__(descriptor)
        self._relay = [Owned(end) for end in relay or os.pipe()]

    @property
    def descriptors(self) -> list[int]:
        """What the holder has to keep: the master and both ends of the relay."""
        return [self.fileno(), *(end.fileno() for end in self._relay)]

    @property
    def source(self) -> int:
        return self._relay[0].fileno()

    def ready(self, *, is_hung_up: bool = False) -> int | None:
        is_over = False
        try:
            os.splice(self.fileno(), self._relay[1].fileno(), _RECEIVE, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            pass  # nothing has come, or the relay is full
        except OSError:
            is_over = True  # the other end is closed
        return super().ready(is_hung_up=is_over)

    def within(self, seconds: float, write: Callable[[], None]) -> None:
        """Run a function that writes to the terminal, for hardly longer than so many seconds. The terminal came from
        the box, and whoever has it there too can make writes block: a thread of its own writes, and is woken when the
        time is over. Raises what the function raises."""
        written: Future[None] = Future()
        threading.Thread(target=lambda: _settle(written, write), name="terminal", daemon=True).start()
        patience = max(seconds, 0) + _GRACE
        while True:
            try:
                return written.result(patience)
            except FutureTimeoutError:
                patience = _AGAIN
                self._wake_writer()

    def _wake_writer(self) -> None:
        """Have a write that waits in the kernel look again whether it may wait."""
        with suppress(OSError, termios.error):
            os.set_blocking(self._descriptor, False)
            termios.tcflow(self._descriptor, termios.TCOOFF)
            termios.tcflow(self._descriptor, termios.TCOON)

    def resize(self, cols: int, rows: int) -> None:
        """Set the size of the terminal. Raises OSError when its other end is closed."""
        termios.tcsetwinsize(self.fileno(), (rows, cols))


def _settle(future: Future[None], function: Callable[[], None]) -> None:
    try:
        function()
    except OSError as exc:
        future.set_exception(exc)
    else:
        future.set_result(None)


def unread(pipe: int) -> int:
    """How many bytes are in a pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


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
                fcntl.fcntl(other, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return ours, theirs


def sealed(content: bytes, closing: ExitStack) -> int:
    """The descriptor, which `closing` closes, of a file in memory with this content. Raises OSError."""
    descriptor = os.memfd_create("spec", os.MFD_CLOEXEC)
    closing.callback(os.close, descriptor)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor


def check_terminal(descriptors: list[int]) -> None:
    """Raise `ProtocolError` for what is not the master of a pseudo-terminal. Anything else could block its reader."""
    if len(descriptors) == 1:
        found = os.fstat(descriptors[0])
        if stat.S_ISCHR(found.st_mode) and (os.major(found.st_rdev), os.minor(found.st_rdev)) == _TERMINAL_DEVICE:
            return
    raise ProtocolError("no terminal came for a command with a terminal")
