"""What feeds a command, and knows at any moment what the command has been handed."""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from .command import News
from .ends import PIPE_BYTES, End, Owned, Terminal, unread

_STEP = 4096  # bytes of input at once to a terminal


class Input:
    """The input of a command, through its pipe or terminal.

    Input goes to the pipe out of a file in memory, the spool. The kernel moves the bytes, and the file's own offset
    with them, in one call that no signal cuts in two. The holder keeps the file, so that its offset tells the next
    worker process what the command was handed, at whatever moment this one is killed. To a terminal, bytes go through
    one more pipe, the hop, which the holder keeps as well: what is still in it was not handed over.
    """

    def __init__(self, end: End, keep: Callable[..., None], kept: Sequence[int] = ()) -> None:
        """`keep` has the holder keep descriptors: those of the pipe, of the spool and of the hop. `kept`: the last two,
        as the holder has kept them."""
        self._end = end
        self._keep = keep
        self._kept = [Owned(descriptor) for descriptor in kept]
        self._taken = 0
        self._count()

    @property
    def taken(self) -> int:
        """How many bytes the command has been handed since its start."""
        return self._taken

    def _count(self) -> None:
        """Look how many bytes the command has been handed. The hop cannot be asked while a write to a terminal waits in
        the kernel, so that only the thread that writes may do so."""
        if self._kept:
            self._taken = os.lseek(self._kept[0].fileno(), 0, os.SEEK_CUR) - self._in_hop()

    def _in_hop(self) -> int:
        return unread(self._kept[1].fileno()) if len(self._kept) > 1 else 0

    def write(self, data: bytes, timeout: float, news: News) -> int:
        """Write for at most `timeout` seconds, and not on after `news`. Returns the number of bytes written. Raises
        OSError when the other end is closed."""
        if not isinstance(self._end, Terminal):
            return self._write(data, timeout, news)
        before = self._taken
        written = self._end.within(timeout, lambda: self._write(data, timeout, news))
        return min(self._taken - before, len(data)) if written is None else written

    def _write(self, data: bytes, timeout: float, news: News) -> int:
        if not self._kept or self._in_hop():
            self._prepare(self._taken)
        spool, begin = self._kept[0].fileno(), self._taken
        end = begin + os.pwrite(spool, data, begin)
        try:
            self._push(end, time.monotonic() + timeout, news)
        finally:
            os.ftruncate(spool, 0)  # frees the memory; what is in a pipe stays
        return self._taken - begin

    def _prepare(self, taken: int) -> None:
        """Make spool and hop, in place of those that the terminal did not take all bytes from. The holder goes from the
        ones to the others at once."""
        pipe = []
        numbers = [os.memfd_create("input", os.MFD_CLOEXEC)]
        os.lseek(numbers[0], taken, os.SEEK_SET)
        if isinstance(self._end, Terminal):
            numbers += os.pipe()
        else:
            pipe.append(self._end.fileno())
            with suppress(OSError):  # each write takes a page of the pipe
                fcntl.fcntl(self._end.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._kept = [Owned(number) for number in numbers]
        self._keep(*pipe, *numbers)

    def _push(self, end: int, deadline: float, news: News) -> None:
        poll = select.poll()
        poll.register(self._end, select.POLLOUT)
        poll.register(news, select.POLLIN)
        while self._taken < end:
            try:
                self._step(end)
            except BlockingIOError:
                left = deadline - time.monotonic()
                ready = poll.poll(left * 1000) if left > 0 else []
                if not ready or any(number == news.fileno() for number, _ in ready):
                    return

    def _step(self, end: int) -> None:
        """Move some of the bytes. Raises BlockingIOError when the command has to read first."""
        spool, *hop = (owned.fileno() for owned in self._kept)
        left = end - os.lseek(spool, 0, os.SEEK_CUR)
        try:
            if not hop:
                os.splice(spool, self._end.fileno(), left, flags=os.SPLICE_F_NONBLOCK)
                return
            if not (waiting := self._in_hop()):
                waiting = os.splice(spool, hop[1], min(left, _STEP), flags=os.SPLICE_F_NONBLOCK)
            os.splice(hop[0], self._end.fileno(), waiting, flags=os.SPLICE_F_NONBLOCK)
        finally:
            self._count()
