"""What the next worker process must know of the executions of this one: a record of each, on a page of one file.

Nothing is synced to disk: the records need to survive the process, not the machine, whose end also ends the commands.
A page is written at once, which the kernel does whole or not at all when the process is killed. A record that is longer
than a page has a file of its own, as every record had in earlier versions.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from ..runtime import BoxRef
from .execution import Delivered, ExecutionState, Source

Words = tuple[str, ...]

log = logging.getLogger(__name__)

_PAGES = "records"  # the file
_PAGE = 4096  # bytes, of the kernel's page cache
_SUFFIX = ".json"  # of a file for one record
_FEW = 256  # pages; a file with more is emptied when no record is left
_FREE = b"\n"  # what a page without a record begins with
MAX_COMMAND = 1024  # characters of a command that are kept, each of its words with one more


@dataclass(frozen=True, slots=True)
class Record:
    """One execution. Times are Unix times in milliseconds, 0 means none."""

    execution_id: str
    box_id: str
    generation: int
    handle: str  # by which the runtime finds the command again; empty for a main command
    is_main: bool
    started_at_ms: int
    deadline_ms: int = 0
    hangup: float = 0  # seconds without a reader until SIGHUP; 0: never
    awaits_reader: bool = False  # `hangup` also counts when no reader comes at all
    tied: bool = False  # the command is killed when another process finds it: its caller or its input is lost
    delivered_bytes: int = 0  # these three are what `Delivered` has
    delivered_position: int = 0
    delivered_at_position: int = 0
    input_source: str = ""  # these two are what `Source` has
    input_base: int = 0
    has_output: bool = True  # whether there is output; where its log is missing, it is lost
    ended_at_ms: int = 0  # the fields below are set with this one
    status: str = ""
    exit_code: int = 0
    duration_ms: int = 0
    error_message: str = ""
    tenant: str = ""  # the prefix on whose behalf it was started; empty: nobody's
    command: Words = ()  # the program and its arguments; empty: they are not known
    is_command_cut: bool = False  # `command` is only the beginning

    @classmethod
    def started(
        cls, execution_id: str, box: BoxRef, handle: str, timeout: float = 0, command: Words = (), **fields: Any
    ) -> Self:
        """The record of an execution that starts now. `timeout` is in seconds, 0 means none."""
        now = now_ms()
        kept = beginning(command)
        deadline_ms = now + int(timeout * 1000) if timeout > 0 else 0
        fields = {"is_main": False, "started_at_ms": now, "deadline_ms": deadline_ms, "has_output": False, **fields}
        fields |= {"command": kept, "is_command_cut": kept != command}
        return cls(execution_id, box.box_id, box.generation, handle, **fields)

    @property
    def delivered(self) -> Delivered:
        return Delivered(self.delivered_bytes, self.delivered_position, self.delivered_at_position)

    @property
    def source(self) -> Source:
        return Source(self.input_source, self.input_base)


_FIELDS = tuple(field.name for field in fields(Record))


class Journal:
    """Keeps the records in `directory`. With None, nothing outlives the process.

    When the disk is full, a record is lost, but the execution runs on.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._long: set[str] = set()  # executions whose records have files of their own
        self._pages = _Pages(directory / _PAGES) if directory is not None else None

    def load(self) -> list[Record]:
        """Read the records of a former process. What is damaged is deleted."""
        if self._directory is None or self._pages is None:
            return []
        with self._lock:
            self._pages.read(self._take)
            for pattern in ("*.new", "*.free"):
                for unused in self._directory.glob(pattern):
                    unused.unlink(missing_ok=True)
            for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
                if (execution_id := self._take(_content(path))) is not None:
                    self._long.add(execution_id)
                else:
                    path.unlink(missing_ok=True)
            return list(self._records.values())

    def _take(self, content: bytes) -> str | None:
        """Take over a record. Returns the id of its execution; None if it is damaged, or empty because the process was
        killed before it was written."""
        try:
            if not content.strip():
                return None
            fields = json.loads(content)
            record = Record(**fields | {"command": tuple(fields.get("command", ()))})
        except (ValueError, TypeError) as exc:
            log.warning("a record of an execution is damaged, dropping it: %s", exc)
            return None
        self._records[record.execution_id] = record
        return record.execution_id

    def execution_ids(self) -> set[str]:
        """The executions that have a record."""
        with self._lock:
            return set(self._records)

    def add(self, record: Record) -> None:
        with self._lock:
            self._records[record.execution_id] = record
            self._write(record)

    def update(self, execution_id: str, **fields: Any) -> None:
        """Change fields of a record. An unknown id is ignored."""
        with self._lock:
            if record := self._records.get(execution_id):
                self._records[execution_id] = changed = replace(record, **fields)
                if changed != record:
                    self._write(changed)

    def record_delivered(self, execution_id: str, delivered: Delivered) -> None:
        """Write down how much output the attached client has received."""
        self.update(
            execution_id,
            delivered_bytes=delivered.total,
            delivered_position=delivered.position,
            delivered_at_position=delivered.at_position,
        )

    def record_source(self, execution_id: str, source: Source) -> None:
        """Write down who feeds the command from now on."""
        self.update(execution_id, input_source=source.name, input_base=source.base)

    def record_end(self, state: ExecutionState, ended_at_ms: int, *, has_output: bool) -> None:
        """Write down that the execution ended in `state`, at `ended_at_ms` (Unix time)."""
        self.update(
            state.execution_id,
            ended_at_ms=ended_at_ms,
            status=str(state.status),
            exit_code=state.exit_code,
            duration_ms=state.duration_ms,
            error_message=state.error_message,
            has_output=has_output,
        )

    def remove(self, execution_id: str) -> None:
        with self._lock:
            if self._records.pop(execution_id, None) is None or self._pages is None:
                return
            with suppress(OSError):
                self._pages.free(execution_id)
                if execution_id in self._long:
                    self._long.discard(execution_id)
                    self._path(execution_id).unlink(missing_ok=True)

    def _write(self, record: Record) -> None:
        if self._pages is None:
            return
        execution_id = record.execution_id
        content = json.dumps({name: getattr(record, name) for name in _FIELDS}).encode()
        try:
            if len(content) <= _PAGE and execution_id not in self._long:
                self._pages.write(execution_id, content)
                return
            path = self._path(execution_id)
            new = path.with_suffix(".new")
            new.write_bytes(content)
            new.replace(path)
            self._long.add(execution_id)  # for good, so that there are never two files that differ
            self._pages.free(execution_id)
        except OSError as exc:
            log.warning("execution %s will not outlive this process: %s", execution_id, exc)

    def _path(self, execution_id: str) -> Path:
        assert self._directory is not None
        return self._directory / f"{quote(execution_id, safe='')}{_SUFFIX}"


def beginning(command: Words) -> Words:
    """The words of a command as far as `MAX_COMMAND` goes, the last of them cut if need be."""
    if sum(map(len, command)) + len(command) <= MAX_COMMAND:
        return command
    words, left = [], MAX_COMMAND
    for word in command:
        if left <= 0:
            break
        words.append(word[:left])
        left -= len(word) + 1
    return tuple(words)


def _content(path: Path) -> bytes:
    """The content of a file; empty if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as exc:
        log.warning("a record of an execution cannot be read, dropping it: %s", exc)
        return b""


class _Pages:
    """A file of pages, each with the record of an execution or free."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._count = 0
        self._used: dict[str, int] = {}  # by execution id
        self._free: list[int] = []

    def __del__(self) -> None:
        os.close(self._file)

    def read(self, take: Callable[[bytes], str | None]) -> None:
        """Read the file of a former process. `take` gets each record, and returns the id of its execution, or None if
        the record is none."""
        self._count = os.fstat(self._file).st_size // _PAGE
        for page in range(self._count):
            content = os.pread(self._file, _PAGE, page * _PAGE)
            if content.startswith((_FREE, b"\0")) or (execution_id := take(content)) is None:
                self._free.append(page)
            else:
                self._used[execution_id] = page

    def write(self, execution_id: str, content: bytes) -> None:
        page = self._used.get(execution_id)
        if page is None:
            page = self._used[execution_id] = self._free.pop() if self._free else self._count
            self._count = max(self._count, page + 1)
        os.pwrite(self._file, content.ljust(_PAGE), page * _PAGE)

    def free(self, execution_id: str) -> None:
        """Free the page of an execution, if it has one."""
        page = self._used.pop(execution_id, None)
        if page is not None:
            self._free.append(page)
            os.pwrite(self._file, _FREE, page * _PAGE)
        if not self._used and self._count > _FEW:
            os.ftruncate(self._file, 0)
            self._count, self._free = 0, []


def now_ms() -> int:
    """Unix time in milliseconds."""
    return int(time.time() * 1000)
