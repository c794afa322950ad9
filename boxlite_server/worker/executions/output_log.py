"""The output of one execution, kept from its first byte, in bounded space.

The log is a circular buffer in a temporary file. Positions address the whole history: a position is the number of
log bytes before it, and only the last `capacity` bytes still exist. A record is a header (stream: 1 byte, length: 4
bytes) and the payload. Positions handed out are always the start of a record.

The file is open while the log is written. A log that is closed keeps only the file's path, and each read opens it, so
that finished executions hold no descriptors.

When the buffer is full and an attached reader still needs the oldest record, `append` waits for that reader, so
that a slow reader slows the command and loses nothing. With no reader attached, the oldest records are
dropped, and a reader that comes too late is told how many bytes it missed.
"""

from __future__ import annotations

import math
import os
import shutil
import struct
import sys
import tempfile
import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ...errors import InvalidArgumentError, ResourceExhaustedError

DEFAULT_CAPACITY = 64 * 1024 * 1024
MAX_CHUNK = 256 * 1024
KEEP_FREE = 16 * 1024 * 1024  # bytes of the logs' disk; no command is started when fewer are free
# Output that follows other output waits for more of it, so that a fast command costs a message for many of its writes.
BATCH_SECONDS = 0.005
_HEADER = struct.Struct("!BI")
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


class OutputLog:
    """The log of one execution. One thread writes it, many threads may read it."""

    def __init__(self, directory: Path, capacity: int = DEFAULT_CAPACITY, begin: int = 0) -> None:
        """`capacity` is in bytes. `begin` is the first position; a high one keeps the positions of a former log
        of the same execution apart from those of this log."""
        self._directory = directory
        self._begin = begin
        self._capacity = capacity
        # Two records always fit, so that a reader never has to wait for half a record.
        self._max_payload = min(MAX_CHUNK, capacity // 2 - _HEADER.size)
        self._path: Path | None = None  # None: there is no file, because nothing was written
        self._file: IO[bytes] | None = None
        self._changed = threading.Condition()
        self._start = begin
        self._end = begin
        self._dropped_payload = 0
        self._closed = False
        self._waits_for_readers = True
        self._readers: set[Reader] = set()

    def append(self, stream: int, data: bytes) -> None:
        """Add output. May wait for an attached reader. Raises OSError when the file cannot be written."""
        view = memoryview(data)
        for offset in range(0, len(data), self._max_payload):
            self._append_record(stream, view[offset : offset + self._max_payload])

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
            if self._path is not None:
                if self._readers:
                    self._file = self._path.open("rb", buffering=0)
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
            reader = Reader(self, position or self._begin)
            self._readers.add(reader)
            return reader

    @property
    def is_empty(self) -> bool:
        """Whether there has been no output."""
        with self._changed:
            return self._end == self._begin

    def holds(self, position: int) -> bool:
        """Whether `position` may belong to this log."""
        with self._changed:
            return position == 0 or self._begin <= position <= self._end

    # ---- for the writer ----

    def _append_record(self, stream: int, payload: memoryview) -> None:
        size = _HEADER.size + len(payload)
        with self._changed:
            while self._end + size - self._start > self._capacity and not self._closed:
                if self._waits_for_readers and any(r.position <= self._start for r in self._readers):
                    self._changed.wait()
                else:
                    self._drop_oldest()
            if self._closed:
                return
            self._write(self._end, _HEADER.pack(stream, len(payload)) + payload)
            self._end += size
            if any(reader.wanted <= self._end for reader in self._readers):
                self._changed.notify_all()

    def _drop_oldest(self) -> None:
        _, length = _HEADER.unpack(self._read(self._start, _HEADER.size))
        self._start += _HEADER.size + length
        self._dropped_payload += length

    # ---- for readers, with the lock held ----

    def _missed_by(self, position: int) -> int:
        return self._dropped_payload if position == self._begin else self._start - position

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

    def _write(self, position: int, data: bytes) -> None:
        if self._file is None:
            descriptor, path = tempfile.mkstemp(dir=self._directory, prefix=_PREFIX)
            self._file, self._path = os.fdopen(descriptor, "r+b", buffering=0), Path(path)
        offset = position % self._capacity
        first = min(len(data), self._capacity - offset)
        _pwrite_all(self._file.fileno(), data[:first], offset)
        if first < len(data):
            _pwrite_all(self._file.fileno(), data[first:], 0)

    def _read(self, position: int, size: int) -> bytes:
        if self._path is None:
            return b""
        with nullcontext(self._file) if self._file else self._path.open("rb", buffering=0) as file:
            offset = position % self._capacity
            first = min(size, self._capacity - offset)
            data = os.pread(file.fileno(), first, offset)
            if first < size:
                data += os.pread(file.fileno(), size - first, 0)
            return data


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


def remove_logs(directory: Path) -> None:
    """Remove the files that the logs of a former process have left in the directory."""
    for path in directory.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            path.unlink()


def refuse_full_disk(directory: Path) -> None:
    """Raise ResourceExhaustedError when the disk has no room for the output of one more command."""
    with suppress(OSError):
        if shutil.disk_usage(directory).free < KEEP_FREE:
            raise ResourceExhaustedError(
                "the worker's disk is full: there is no room for the command's output; try again later"
            )


def _pwrite_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
