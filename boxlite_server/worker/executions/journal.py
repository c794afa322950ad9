"""What the next worker process must know of the executions of this one: a small file for each execution.

The files are not synced to disk: they need to survive the process, not the machine, whose end also ends the
commands. A file is written in place, a page at once, which the kernel does whole or not at all when the process is
killed; and it is used again for another execution, since file systems take long to make files where many were just
removed.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from ..runtime import BoxRef
from .execution import Delivered, ExecutionState, Source

log = logging.getLogger(__name__)

_SUFFIX = ".json"
_PAGE = 4096  # bytes, of the kernel's page cache
_FREE = ".free"
_MAX_FREE = 256  # files that wait to be used again


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

    @classmethod
    def started(cls, execution_id: str, box: BoxRef, handle: str, timeout: float = 0, **fields: Any) -> Self:
        """The record of an execution that starts now. `timeout` is in seconds, 0 means none."""
        now = now_ms()
        deadline_ms = now + int(timeout * 1000) if timeout > 0 else 0
        fields = {"is_main": False, "started_at_ms": now, "deadline_ms": deadline_ms, "has_output": False, **fields}
        return cls(execution_id, box.box_id, box.generation, handle, **fields)

    @property
    def delivered(self) -> Delivered:
        return Delivered(self.delivered_bytes, self.delivered_position, self.delivered_at_position)

    @property
    def source(self) -> Source:
        return Source(self.input_source, self.input_base)


_FIELDS = tuple(field.name for field in fields(Record))


class Journal:
    """Keeps the records in `directory`, one file for each execution. With None, nothing outlives the process.

    When the disk is full, a record is lost, but the execution runs on.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._free: list[Path] = []  # files without a record
        self._numbers = itertools.count()  # the names of these

    def load(self) -> list[Record]:
        """Read the records of a former process. Damaged files are deleted."""
        found = []
        for pattern in ("*.new", f"*{_FREE}"):
            for unused in self._directory.glob(pattern) if self._directory else ():
                unused.unlink(missing_ok=True)
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")) if self._directory else ():
            try:
                if content := path.read_text():  # empty: the process was killed before the execution began
                    found.append(Record(**json.loads(content)))
                else:
                    path.unlink()
            except (OSError, ValueError, TypeError) as exc:
                log.warning("a record of an execution is damaged, dropping it: %s: %s", path, exc)
                path.unlink(missing_ok=True)
        with self._lock:
            self._records = {record.execution_id: record for record in found}
        return found

    def execution_ids(self) -> set[str]:
        """The executions that have a record."""
        with self._lock:
            return set(self._records)

    def add(self, record: Record) -> None:
        with self._lock:
            self._records[record.execution_id] = record
            self._write(record, is_new=True)

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
            if self._records.pop(execution_id, None) is None or self._directory is None:
                return
            path = self._path(execution_id)
            with suppress(OSError):
                if len(self._free) < _MAX_FREE and _is_page(path):
                    self._free.append(path.rename(self._directory / f"{next(self._numbers)}{_FREE}"))
                else:
                    path.unlink(missing_ok=True)

    def _write(self, record: Record, *, is_new: bool = False) -> None:
        if self._directory is None:
            return
        path = self._path(record.execution_id)
        content = json.dumps({name: getattr(record, name) for name in _FIELDS}).encode().ljust(_PAGE)
        is_page = len(content) == _PAGE
        try:
            if is_page and is_new and self._free:
                free = self._free.pop()
                _overwrite(free, content)
                free.replace(path)
            elif is_page and (is_new or _is_page(path)):
                _overwrite(path, content)
            else:
                new = path.with_suffix(".new")
                new.write_bytes(content)
                new.replace(path)
        except OSError as exc:
            log.warning("execution %s will not outlive this process: %s", record.execution_id, exc)

    def _path(self, execution_id: str) -> Path:
        assert self._directory is not None
        return self._directory / f"{quote(execution_id, safe='')}{_SUFFIX}"


def _is_page(path: Path) -> bool:
    """Whether there is a file of one page."""
    with suppress(FileNotFoundError):
        return path.stat().st_size == _PAGE
    return False


def _overwrite(path: Path, page: bytes) -> None:
    """Replace the content of a file of one page, or of none yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, page, 0)
    finally:
        os.close(descriptor)


def now_ms() -> int:
    """Unix time in milliseconds."""
    return int(time.time() * 1000)
