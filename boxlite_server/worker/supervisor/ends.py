"""The worker's ends of a command's pipes or terminal."""

from __future__ import annotations

import array
import fcntl
import os
import select
import stat
import struct
import termios
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress

from .wire import ProtocolError

_TERMINAL_DEVICE = (5, 2)  # major and minor number of the master of a pseudo-terminal
PIPE_BYTES = 1024 * 1024
_GRACE = 0.5  # seconds that a write to a terminal may take beyond its time
_LAST_GRACE = 2.0  # seconds until it is left behind, which has been interrupted since
_AGAIN = 0.01  # seconds until it is interrupted again
_LINE_DISCIPLINE = struct.pack("i", termios.N_TTY)  # the one that each terminal has at first
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
    """The master of a command's terminal. Its output goes through a pipe, the relay, which the holder keeps too.

    The master came from the box, and whoever has it there too can make reads and writes here wait in the kernel, since
    O_NONBLOCK belongs to all who have it. So no call waits for a read or a write: each is interrupted when its time is
    over.
    """

    def __init__(self, descriptor: int, relay: Sequence[int] = ()) -> None:
        super().__init__(descriptor)
        self._relay = [Owned(end) for end in relay or os.pipe()]
        self._writing: Future[int] | None = None
        self._is_reading = self._is_released = False

    @property
    def descriptors(self) -> list[int]:
        """What the holder has to keep: the master and both ends of the relay."""
        return [self.fileno(), *(end.fileno() for end in self._relay)]

    @property
    def source(self) -> int:
        return self._relay[0].fileno()

    def ready(self, *, is_hung_up: bool = False) -> int | None:
        is_over = False
        self._is_reading = True
        try:
            if not self._is_released:
                os.splice(self.fileno(), self._relay[1].fileno(), _RECEIVE, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            pass  # nothing has come, or the relay is full
        except OSError:
            is_over = True  # the other end is closed
        finally:
            self._is_reading = False
        return super().ready(is_hung_up=is_over)

    def release(self) -> None:
        """Read nothing more. A thread that is in `ready` returns soon."""
        self._is_released = True
        if self._is_reading:
            self._interrupt(lambda: not self._is_reading)

    def within(self, seconds: float, write: Callable[[], int]) -> int | None:
        """Run a function that writes to the terminal in a thread of its own. Returns, or raises, what the function
        does; None if it is not done hardly after so many seconds. No other function is run before it is done."""
        deadline = time.monotonic() + max(seconds, 0) + _GRACE
        if not _is_done(self._writing, deadline):
            return None
        writing = self._writing = Future()
        threading.Thread(target=lambda: _settle(writing, write), name="terminal", daemon=True).start()
        if not _is_done(writing, deadline):
            self._interrupt(writing.done)
            if not _is_done(writing, deadline + _LAST_GRACE):
                return None
        return writing.result()

    def _interrupt(self, is_done: Callable[[], bool]) -> None:
        """Have reads and writes of the terminal that wait in the kernel return, in a thread, until the one that is
        meant is done. A change of the line discipline makes them all return, whether or not it may be another one."""

        def interrupt() -> None:
            while not is_done():
                with suppress(OSError):
                    fcntl.ioctl(self._descriptor, termios.TIOCSETD, _LINE_DISCIPLINE)
                time.sleep(_AGAIN)

        threading.Thread(target=interrupt, name="interrupt terminal", daemon=True).start()

    def resize(self, cols: int, rows: int) -> None:
        """Set the size of the terminal. Raises OSError when its other end is closed."""
        termios.tcsetwinsize(self.fileno(), (rows, cols))


def _is_done(future: Future[int] | None, deadline: float) -> bool:
    return future is None or bool(wait([future], max(deadline - time.monotonic(), 0)).done)


def _settle(future: Future[int], function: Callable[[], int]) -> None:
    try:
        future.set_result(function())
    except Exception as exc:
        future.set_exception(exc)


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
        # Any user of the box can open /dev/stderr. The pipe has no name anywhere else.
        os.fchmod(other, 0o666)  # nosec B103
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
            with suppress(OSError):  # it was opened as a path alone
                os.set_blocking(descriptors[0], False)
                return
    raise ProtocolError("no terminal came for a command with a terminal")
