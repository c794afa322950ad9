"""The output of one execution, kept from its first byte, in bounded space and over the death of the process.

The log is a file that grows at its end and is freed at its beginning. Positions address the whole history: a position
is the number of log bytes before it, and only the last `capacity` bytes still exist. A record is a header (stream: 1
byte, length: 4 bytes) and the payload. Positions handed out are always the start of a record.

The file alone tells what the log holds, whenever its writer is killed. Its first page, the head, names the position and
stream of the last record before any byte of that record is written; the size of the file tells how long the record is.
The kernel moves bytes from a pipe to the file, and counts them in the file's size, in one call that no signal cuts in
two: each byte is in the pipe or in the log. What was read into the memory of this process is in neither for a moment,
so that a log with such pieces is whole only once its command has ended.

The file is open while the log is written. A log that is closed keeps only the file's path, and each read opens it, so
that finished executions hold no descriptors.

A log also takes part in a budget of all logs, which tenants share. Where that has no room, the log is full with what it
has, but it may always hold two records.

When the log is full and an attached reader still needs the oldest record, the writer waits for that reader, so
that a slow reader slows the command and loses nothing. With no reader attached, the oldest records are
dropped, and a reader that comes too late is told how many bytes it missed.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import shutil
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self
from urllib.parse import quote

from ...errors import InvalidArgumentError, ResourceExhaustedError
from ..kernel.holes import punch_hole
from ..shares import Room

DEFAULT_CAPACITY = 64 * 1024 * 1024
MAX_CHUNK = 256 * 1024
KEEP_FREE = 16 * 1024 * 1024  # bytes of the logs' disk; no command is started when fewer are free
# Output that follows other output waits for more of it, so that a fast command costs a message for many of its writes.
BATCH_SECONDS = 0.005
_HEADER = struct.Struct("!BI")
_HEAD = struct.Struct("!8s5QB?")
_MAGIC = b"boxlite1"
_HEAD_BYTES = 4096
_STEP = 256 * 1024  # bytes of the budget that are taken at once
_HOLES = 64  # that free a whole log: the file has this part of the capacity more than the log
# A file may not become larger than this, in bytes. Larger ones, of ext4, end at 16 TiB.
_MAX_FILE = 1 << 40
_PREFIX = "output-"  # of the names of files


@dataclass(frozen=True, slots=True)
class Chunk:
    """Output of one stream, at most 256 KiB. The next event starts at `position`."""

    position: int
    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Dropped:
    """Output was dropped before the reader came. The next event starts at `position`.

    `byte_count` includes the framing between the lost pieces, unless the reader started at the beginning.
    """

    position: int
    byte_count: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Output of unknown size before `position` is lost, for the `reason` given."""

    position: int
    reason: str


class _Head(NamedTuple):
    """The first page of the file. `base`: the position of the file's second page. `last`: of the last record."""

    magic: bytes
    begin: int
    base: int
    start: int
    dropped_payload: int
    last: int
    stream: int
    is_whole: bool

    def is_sane(self, end: int) -> bool:
        """Whether the fields fit each other and the `end` of the log."""
        positions = [self.begin, self.start, self.last]
        return self.magic == _MAGIC and self.base <= self.start and positions == sorted(positions) and self.last <= end


class OutputLog:
    """The log of one execution. One thread writes it, many threads may read it."""

    def __init__(
        self,
        directory: Path,
        capacity: int = DEFAULT_CAPACITY,
        begin: int = 0,
        name: str = "",
        room: Room | None = None,
    ) -> None:
        """`capacity` is in bytes. `begin` is the first position; a high one keeps the positions of a former log
        of the same execution apart from those of this log. `name`: by which `recovered` finds the log. `room`: in the
        budget of all logs; None: there is no budget."""
        self.begin = begin
        self._capacity = capacity
        self._room = room
        # Two records always fit, so that a reader never has to wait for half a record.
        self._max_payload = min(MAX_CHUNK, capacity // 2 - _HEADER.size)
        self._path = _path(directory, name or secrets.token_hex(8))
        self._has_file = False  # there is none before something is written
        self._file: IO[bytes] | None = None
        self._changed = threading.Condition()
        self._base = begin
        self._start = begin
        self._freed = begin  # where the start was when space was freed last
        self._end = begin
        self._dropped_payload = 0
        self._is_whole = True  # whether the file holds all output that was taken, also while a record is written
        self._splices = True  # whether the file system takes bytes from a pipe
        self._closed = False
        self._waits_for_readers = True
        self._readers: set[Reader] = set()

    @classmethod
    def recovered(
        cls,
        directory: Path,
        name: str,
        capacity: int = DEFAULT_CAPACITY,
        *,
        has_ended: bool = False,
        room: Room | None = None,
    ) -> Self | None:
        """The log of a former process, to be read and written on. `has_ended`: it was written to its end.

        None: it is missing or damaged, or may lack output that the former process had taken when it was killed.
        """
        log = cls(directory, capacity, name=name, room=room)
        try:
            if not log._recover(has_ended):
                return None
        except OSError:
            return None
        if room is not None:
            room.take_anyway(log._end - log._start)
        return log

    def append(self, stream: int, data: bytes) -> None:
        """Add output. May wait for an attached reader. Raises OSError when the file cannot be written."""
        self._is_whole = False
        for at in range(0, len(data), self._max_payload):
            part = memoryview(data)[at : at + self._max_payload]
            self._add(stream, len(part), partial(_pwrite_all, data=part))

    def take(self, stream: int, pipe: int, count: int) -> int:
        """Move output from a pipe, in which there are `count` bytes at least. Returns how many of these were moved.

        May wait for an attached reader. Raises OSError when the file cannot be written.
        """
        count = min(count, self._max_payload)
        moved = self._add(stream, count, partial(self._splice, pipe=pipe, count=count))
        return moved or len(os.read(pipe, count))  # the log is closed

    def close(self) -> None:
        """Mark the end of the output: readers get what is left, then the end. May be called repeatedly."""
        with self._changed:
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None
            self._changed.notify_all()

    def discard(self) -> None:
        """Close the log and remove its file. Only readers that are attached can still read."""
        self.close()
        with self._changed:
            if self._has_file:
                if self._readers:
                    self._file = self._path.open("rb", buffering=0)
                self._path.unlink(missing_ok=True)
            if self._room is not None:
                self._room.close()

    def clear(self) -> None:
        """Remove the file that a former log of this name has left."""
        self._path.unlink(missing_ok=True)

    def release(self) -> None:
        """Stop waiting for readers: from now on the oldest records are dropped even if a reader needs them."""
        with self._changed:
            self._waits_for_readers = False
            self._changed.notify_all()

    def reader(self, position: int = 0) -> Reader:
        """Attach a reader that starts at `position` (0: the start); it stays attached until it is closed.

        Raises `InvalidArgumentError` for a position behind the end of the log.
        """
        with self._changed:
            if position > self._end:
                raise InvalidArgumentError(f"position {position} is behind the end of the output")
            reader = Reader(self, position or self.begin)
            self._readers.add(reader)
            return reader

    def size_at_end(self, timeout: float) -> int | None:
        """The bytes of the whole output, with its framing; None if the log is not closed within `timeout` seconds."""
        with self._changed:
            return self._end - self.begin if self._changed.wait_for(lambda: self._closed, timeout) else None

    @property
    def is_empty(self) -> bool:
        """Whether there has been no output."""
        with self._changed:
            return self._end == self.begin

    def holds(self, position: int) -> bool:
        """Whether `position` may belong to this log."""
        with self._changed:
            return position == 0 or self.begin <= position <= self._end

    # ---- for the writer ----

    def _add(self, stream: int, size: int, fill: Callable[[int, int], int]) -> int:
        """Add a record with a payload of at most `size` bytes, which `fill` puts at an offset of the file. Returns how
        many it has put there; 0 once the log is closed."""
        with self._changed:
            self._make_room(_HEADER.size + size)
            if self._closed:
                return 0
            if self._offset(self._end) > _MAX_FILE:
                self._renew()
            file = self._opened()
            self._write_head(file, stream)
            self._free(file)
            offset = self._offset(self._end)
            length = fill(file, offset + _HEADER.size)
            _pwrite_all(file, offset, _HEADER.pack(stream, length))
            self._end += _HEADER.size + length
            if any(reader.wanted <= self._end for reader in self._readers):
                self._changed.notify_all()
            return length

    def _make_room(self, size: int) -> None:
        while not (self._closed or self._has_room(self._end + size - self._start)):
            if self._waits_for_readers and any(r.position <= self._start for r in self._readers):
                self._changed.wait()
            else:
                self._drop_oldest()

    def _has_room(self, size: int) -> bool:
        """Whether the log may hold `size` bytes."""
        if size > self._capacity or self._room is None:
            return size <= self._capacity
        try:
            self._room.reach(size, _STEP)
        except ResourceExhaustedError:
            return size <= 2 * (_HEADER.size + self._max_payload)
        return True

    def _drop_oldest(self) -> None:
        _, length = _HEADER.unpack(self._read(self._start, _HEADER.size))
        self._start += _HEADER.size + length
        self._dropped_payload += length

    def _splice(self, file: int, offset: int, *, pipe: int, count: int) -> int:
        if self._splices:
            try:
                return os.splice(pipe, file, count, offset_dst=offset)
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
                self._splices = self._is_whole = False
                self._write_head(file, stream=1)
        return _pwrite_all(file, offset, os.read(pipe, count))

    # ---- for readers, with the lock held ----

    def _missed_by(self, position: int) -> int:
        return self._dropped_payload if position == self.begin else self._start - position

    def _chunks(self, position: int) -> list[Chunk]:
        """All whole records in the next 256 KiB, neighbours of one stream joined."""
        data = self._read(position, min(self._end - position, MAX_CHUNK + _HEADER.size))
        pieces: list[tuple[int, list[bytes]]] = []
        at = 0
        while at + _HEADER.size <= len(data):
            stream, length = _HEADER.unpack_from(data, at)
            after = at + _HEADER.size + length
            if not 0 < length <= self._max_payload or position + after > self._end:
                raise InvalidArgumentError(f"position {position} is not one that this output has")
            if after > len(data):
                break
            if not pieces or pieces[-1][0] != stream:
                pieces.append((stream, []))
            pieces[-1][1].append(data[at + _HEADER.size : after])
            at = after
        chunks = []
        for stream, parts in pieces:
            position += sum(_HEADER.size + len(part) for part in parts)
            chunks.append(Chunk(position, stream, b"".join(parts)))
        return chunks

    # ---- the file ----

    def _opened(self) -> int:
        if self._file is None:
            self._file = _open(self._path, 0 if self._has_file else os.O_CREAT | os.O_TRUNC)
            self._has_file = True
        return self._file.fileno()

    def _offset(self, position: int) -> int:
        return _HEAD_BYTES + position - self._base

    def _write_head(self, file: int, stream: int) -> None:
        """Announce a record of the stream at the end."""
        head = (self.begin, self._base, self._start, self._dropped_payload, self._end, stream, self._is_whole)
        os.pwrite(file, _HEAD.pack(_MAGIC, *head), 0)

    def _renew(self) -> None:
        """Go on in a new file, to which what the log holds is copied."""
        former, at, left = self._opened(), self._offset(self._start), self._end - self._start
        path = self._path.with_name(f"{self._path.name}.new")
        file = _open(path, os.O_CREAT | os.O_TRUNC)
        os.lseek(file.fileno(), _HEAD_BYTES, os.SEEK_SET)
        while left:
            copied = os.sendfile(file.fileno(), former, at, left)
            at, left = at + copied, left - copied
        self._base = self._freed = self._start
        self._write_head(file.fileno(), stream=1)
        path.replace(self._path)
        self._file = file

    def _free(self, file: int) -> None:
        """Free what lies before the start, once it is worth it. The head tells the start already."""
        if self._start - self._freed > self._capacity // _HOLES:
            if size := (self._offset(self._start) // _HEAD_BYTES - 1) * _HEAD_BYTES:  # whole pages behind the head
                try:
                    punch_hole(file, _HEAD_BYTES, size)
                except OSError as exc:
                    raise OSError(
                        exc.errno, "the log is full, and the worker's disk cannot free a part of a file"
                    ) from exc
            self._freed = self._start

    def _recover(self, has_ended: bool) -> bool:
        """Take over the file. Returns whether it can be."""
        with self._path.open("r+b", buffering=0) as file:
            beginning = file.read(_HEAD.size)
            if len(beginning) < _HEAD.size:
                return False
            head = _Head._make(_HEAD.unpack(beginning))
            self.begin, self._base = head.begin, head.base
            self._start = self._freed = head.start
            self._dropped_payload = head.dropped_payload
            self._end = os.fstat(file.fileno()).st_size - _HEAD_BYTES + head.base
            self._has_file = True
            if not head.is_sane(self._end) or not (head.is_whole or has_ended):
                return False
            length = self._end - head.last - _HEADER.size
            if length > 0:
                _pwrite_all(file.fileno(), self._offset(head.last), _HEADER.pack(head.stream, length))
            else:  # the process was killed before the record had a payload
                self._end = head.last
                file.truncate(self._offset(self._end))
        return True

    def _read(self, position: int, size: int) -> bytes:
        if not self._has_file:
            return b""
        with nullcontext(self._file) if self._file else self._path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), size, self._offset(position))


class Reader:
    """A reader's position in a log. As a context manager, it detaches at the end of the block."""

    def __init__(self, log: OutputLog, position: int) -> None:
        self.position = position
        self.wanted = sys.maxsize  # the end of the log that this reader waits for
        self._log = log
        self._closed = False
        self._read_at = -math.inf  # when there was output last, on the monotonic clock

    def read(self, timeout: float | None = None) -> list[Chunk | Dropped]:
        """Wait for the next events and return them, at most 256 KiB of output.

        Output that comes after a pause is returned at once. The list is empty when all output is read and the log is
        closed, when this reader is closed, or when `timeout` seconds have passed.
        """
        log = self._log
        with log._changed:
            self._wait(1, timeout)
            if self.position < log._end:
                self._wait(min(MAX_CHUNK, log._capacity // 2), self._read_at + BATCH_SECONDS - time.monotonic())
            if self._closed:
                return []
            events: list[Chunk | Dropped] = []
            if self.position < log._start:
                missed = log._missed_by(self.position)
                self.position = log._start
                events.append(Dropped(self.position, missed))
            events.extend(log._chunks(self.position))
            if events:
                self.position = events[-1].position
                self._read_at = time.monotonic()
                log._changed.notify_all()
            return events

    def _wait(self, size: int, timeout: float | None) -> None:
        """Wait, with the lock held, until there are `size` bytes to read, or the end of the log or of this reader."""
        log = self._log
        self.wanted = self.position + size
        log._changed.wait_for(lambda: self._closed or log._closed or self.wanted <= log._end, timeout)
        self.wanted = sys.maxsize

    @property
    def is_done(self) -> bool:
        """Whether all output is read, and none will follow."""
        with self._log._changed:
            return self._log._closed and self.position == self._log._end and not self._closed

    @property
    def left(self) -> bool:
        """Whether this reader was closed; an empty `read` then does not mean the end of the output."""
        return self._closed

    def close(self) -> None:
        """Detach, and wake a blocked `read`. May be called from any thread, more than once."""
        with self._log._changed:
            self._closed = True
            self._log._readers.discard(self)
            self._log._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def remove_logs(directory: Path, kept: Collection[str] = ()) -> None:
    """Remove the files that the logs of a former process have left in the directory, except those with a name that is
    `kept`."""
    known = {_path(directory, name) for name in kept}
    for path in directory.glob(f"{_PREFIX}*"):
        if path not in known:
            with suppress(OSError):
                path.unlink()


def refuse_full_disk(directory: Path) -> None:
    """Raise ResourceExhaustedError when the disk has no room for the output of one more command."""
    with suppress(OSError):
        if shutil.disk_usage(directory).free < KEEP_FREE:
            raise ResourceExhaustedError(
                "the worker's disk is full: there is no room for the command's output; try again later"
            )


def _path(directory: Path, name: str) -> Path:
    return directory / f"{_PREFIX}{quote(name, safe='')}"


def _open(path: Path, flags: int) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600), "r+b", buffering=0)


def _pwrite_all(file: int, offset: int, data: bytes | memoryview) -> int:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view = view[written:]
        offset += written
    return len(data)
