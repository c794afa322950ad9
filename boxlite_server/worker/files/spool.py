"""Disk in place of memory: what passes through the worker and must be held for a while.

A spooled file has no name from its first byte on, so that nothing is left behind however the worker ends.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from ...errors import ResourceExhaustedError
from ...rpc import CHUNK_BYTES

KEEP_FREE = 256 * 1024 * 1024  # bytes that no spooled file may take from the disk
_LOOK_EVERY = 4 * 1024 * 1024  # bytes between two looks at what is free


class Spool:
    """The directory of spooled files; `keep_free` bytes of its disk stay free."""

    def __init__(self, directory: Path, keep_free: int = KEEP_FREE) -> None:
        self.directory = directory
        self._keep_free = keep_free

    def open(self) -> SpooledFile:
        return SpooledFile(self)

    def check_free(self) -> None:
        """Raises `ResourceExhaustedError` when the disk is too full to take more."""
        free = shutil.disk_usage(self.directory).free
        if free < self._keep_free:
            raise full(f"{free >> 20} MiB are free, {self._keep_free >> 20} MiB have to stay so")


def full(why: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(f"the worker's disk has no room for this transfer ({why}); try again later")


class SpooledFile:
    """A file without a name: written at its end, read anywhere, also by another thread."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._file = tempfile.TemporaryFile(dir=spool.directory, buffering=0)  # noqa: SIM115
        self._until_look = 0
        self.size = 0

    def __enter__(self) -> SpooledFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        """Append `data`. Raises `ResourceExhaustedError` when the disk is too full."""
        self._until_look -= len(data)
        if self._until_look < 0:
            self._spool.check_free()
            self._until_look = _LOOK_EVERY
        rest = memoryview(data)
        try:
            while rest:
                written = os.pwrite(self._file.fileno(), rest, self.size)
                self.size += written
                rest = rest[written:]
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise full(str(exc.strerror)) from exc
            raise

    def read(self, count: int, position: int) -> bytes:
        """At most `count` bytes from `position` on; fewer only at the end."""
        return os.pread(self._file.fileno(), count, position)


class Follower:
    """The chunks of `source`, taken from it as fast as it gives them, whoever reads how slowly.

    For a source that must not be held up. Its thread begins at once. `let_go` ends the source, also one that
    is waited for; it is called once, when the reader has had the last byte or enough.
    """

    def __init__(self, spool: Spool, source: Iterator[bytes], let_go: Callable[[], None]) -> None:
        self._file = spool.open()
        self._source = source
        self._let_go = let_go
        self._changed = threading.Condition()
        self._is_taken = False
        self._is_left = False
        self._error: BaseException | None = None
        threading.Thread(target=self._take, name="spool", daemon=True).start()

    def _take(self) -> None:
        error: BaseException | None = None
        try:
            for chunk in self._source:
                self._file.write(chunk)
                with self._changed:
                    self._changed.notify()
                    if self._is_left:
                        break
        except BaseException as exc:
            error = exc
        with self._changed:
            self._is_taken, self._error = True, error
            self._changed.notify()
            if self._is_left:
                self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        position = 0
        while self._wait(position):
            data = self._file.read(CHUNK_BYTES, position)
            position += len(data)
            yield data
        if self._error is not None:
            raise self._error

    def _wait(self, position: int) -> bool:
        """Whether there is something behind `position`, once there is a whole chunk of it or the end."""
        with self._changed:
            while self._file.size < position + CHUNK_BYTES and not self._is_taken:
                self._changed.wait()
            return self._file.size > position

    def close(self) -> None:
        self._let_go()
        with self._changed:
            self._is_left = True
            # A thread that still takes closes the file itself: it must not find another one under its number.
            if self._is_taken:
                self._file.close()
