"""Temporary files for data that passes through the worker and must be held for a while.

A spooled file never has a name, so that nothing is left behind however the worker ends.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path

from ... import rpc
from ...errors import ResourceExhaustedError
from ...rpc import CHUNK_BYTES
from ..runtime import FilePart
from ..shares import Room, Shares

KEEP_FREE = 256 * 1024 * 1024  # bytes of the disk that spooled files leave free
_MIN_HOLE = 4096  # bytes of zeros that become a hole
_ZEROS = bytes(CHUNK_BYTES)
MAX_KEPT = 2  # chunks of a download in memory

log = logging.getLogger(__name__)


class Spool:
    """The directory of spooled files. They leave `keep_free` bytes of its disk free, and take at most `budget` bytes at
    once, half of the disk by default, which tenants share; those of one box take at most half of the budget."""

    def __init__(self, directory: Path, keep_free: int = KEEP_FREE, budget: int | None = None) -> None:
        self.directory = directory
        self._keep_free = keep_free
        self._budget = shutil.disk_usage(directory).total // 2 if budget is None else budget
        self._lock = threading.Lock()
        self.shares = Shares(self._budget, "has as much in transfers as its disk may take", quota="spooled_bytes")
        self._taken_by: Counter[str] = Counter()  # by box id

    def open(self, box_id: str) -> SpooledFile:
        """A new file, for a transfer of that box."""
        return SpooledFile(self, box_id, Room(self.shares, rpc.TENANT.get()))

    def take(self, box_id: str, room: Room, size: int) -> None:
        """Take as much room that it is `size` bytes at least. Raises `ResourceExhaustedError` when the disk or the
        budget has none, `QuotaExceededError` when the tenant may have none."""
        self.check_free()
        with self._lock:
            before = room.size
            if self._taken_by[box_id] + size - before > self._budget // 2:
                raise full(f"transfers of box {box_id} take {self._taken_by[box_id] >> 20} MiB of it already")
            room.reach(size)
            self._taken_by[box_id] += room.size - before

    def give_back(self, box_id: str, room: Room) -> None:
        with self._lock:
            self._taken_by[box_id] -= room.size
            room.close()
            if not self._taken_by[box_id]:
                del self._taken_by[box_id]

    def check_free(self, wanted: int = 0) -> None:
        """Raise `ResourceExhaustedError` when less than `keep_free` bytes would be free without `wanted` bytes."""
        free = shutil.disk_usage(self.directory).free
        if free - wanted < self._keep_free:
            log.warning("a transfer is refused: %d MiB are free, %d MiB are needed", free >> 20, wanted >> 20)
            raise full(f"{wanted >> 20} MiB are needed" if wanted else "it is nearly full")


def full(why: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(f"the worker's disk has no room for this transfer ({why}); try again later")


class SpooledFile:
    """A file without a name. It is written at its end and read anywhere, also by another thread.

    Long runs of zeros become holes and take no room, so that the holes of a sparse file cost nothing here.
    `size` counts them, `stored` does not; both in bytes.
    """

    def __init__(self, spool: Spool, box_id: str, room: Room) -> None:
        self._spool = spool
        self._box_id = box_id
        self._room = room  # of the spool's budget
        self._file = tempfile.TemporaryFile(dir=spool.directory, buffering=0)  # noqa: SIM115
        self.size = 0
        self.stored = 0

    def __enter__(self) -> SpooledFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._spool.give_back(self._box_id, self._room)

    def write(self, data: bytes) -> None:
        """Append `data`. Raises `ResourceExhaustedError` when the disk is too full."""
        view = memoryview(data)
        try:
            for start in range(0, len(data), CHUNK_BYTES):
                piece = view[start : start + CHUNK_BYTES]
                if _is_hole(piece):
                    os.ftruncate(self._file.fileno(), self.size + len(piece))
                    self.size += len(piece)
                else:
                    self._store(piece)
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise full(str(exc.strerror)) from exc
            raise

    def _store(self, rest: memoryview) -> None:
        if self.stored + len(rest) > self._room.size:
            self._spool.take(self._box_id, self._room, self.stored + len(rest))
        self.stored += len(rest)
        while rest:
            written = os.pwrite(self._file.fileno(), rest, self.size)
            self.size += written
            rest = rest[written:]

    def read(self, count: int, position: int) -> bytes:
        """Read `count` bytes from `position` on; fewer only at the end of the file."""
        return os.pread(self._file.fileno(), count, position)

    def parts(self, position: int, size: int) -> Iterator[bytes | FilePart]:
        """What lies there, of which this file has all: as it is if that is little, else as a part of the file."""
        if size >= CHUNK_BYTES:
            yield FilePart(self._file, position, size)
        elif size:
            yield self.read(size, position)


def _is_hole(piece: memoryview) -> bool:
    """Whether the piece is a long run of zeros. Views are slow to compare, so few bytes are looked at first."""
    return len(piece) >= _MIN_HOLE and piece[:64] == _ZEROS[:64] and bytes(piece) == _ZEROS[: len(piece)]


class Follower:
    """Iterates over the chunks of `source`, which a thread takes as fast as they come: a slow reader does not hold up
    the source. What the reader does not take at once is spooled, apart from a few chunks.

    The thread starts at once. `close` calls `close_source`, which must end the source even while the thread
    waits for its next chunk.
    """

    def __init__(self, spool: Spool, box_id: str, source: Iterator[bytes], close_source: Callable[[], None]) -> None:
        self._file = spool.open(box_id)
        self._source = source
        self._close_source = close_source
        self._changed = threading.Condition()
        self._next: deque[bytes] = deque()  # older than what is in the file
        self._position = 0  # how much of the file was read
        self._is_complete = False  # the source has ended
        self._is_closed = False
        self._error: BaseException | None = None
        threading.Thread(target=self._take, name="spool", daemon=True).start()

    def _take(self) -> None:
        error: BaseException | None = None
        try:
            for chunk in self._source:
                if not self._keep(chunk):
                    self._file.write(chunk)
                with self._changed:
                    self._changed.notify()
                    if self._is_closed:
                        break
        except BaseException as exc:
            error = exc
        with self._changed:
            self._is_complete, self._error = True, error
            self._changed.notify()
            if self._is_closed:
                self._file.close()

    def _keep(self, chunk: bytes) -> bool:
        """Keep a chunk in memory, if the reader is that close."""
        with self._changed:
            is_close = self._position == self._file.size and len(self._next) < MAX_KEPT
            if is_close:
                self._next.append(chunk)
            return is_close

    def __iter__(self) -> Iterator[bytes]:
        while self._wait():
            if self._next:
                yield self._next.popleft()
            else:
                data = self._file.read(CHUNK_BYTES, self._position)
                self._position += len(data)
                yield data
        if self._error is not None:
            raise self._error

    def _wait(self) -> bool:
        """Wait for a chunk, or for the end; False if nothing is left."""
        with self._changed:
            while not (self._next or self._file.size >= self._position + CHUNK_BYTES or self._is_complete):
                self._changed.wait()
            return bool(self._next) or self._file.size > self._position

    def close(self) -> None:
        """End the source and discard what is spooled. Called once, by the reader."""
        self._close_source()
        with self._changed:
            self._is_closed = True
            # A thread that still writes closes the file itself: its descriptor must not become another file's.
            if self._is_complete:
                self._file.close()
