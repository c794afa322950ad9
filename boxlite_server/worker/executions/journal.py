"""What the worker's next process must know of the executions of this one: a small file for each.

Not forced to the disk: it is there for the death of the process. With the machine the commands are gone, too.
"""

from __future__ import annotations

import json
import logging
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

log = logging.getLogger(__name__)

_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Record:
    """One execution. Times are Unix milliseconds; 0: none."""

    execution_id: str
    box_id: str
    generation: int
    handle: str  # by which the runtime finds the command again; of a main command: none
    is_main: bool
    started_at_ms: int
    deadline_ms: int = 0
    hangup: float = 0  # seconds
    awaits_reader: bool = False  # it is hung up while nobody reads
    delivered_bytes: int = 0
    ended_at_ms: int = 0  # with it the rest:
    status: str = ""
    exit_code: int = 0
    duration_ms: int = 0
    error_message: str = ""


class Journal:
    """The records, by execution id, in `directory`; None: nowhere, and nothing outlives the process.

    A disk that is full costs a record, never an execution.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}

    def load(self) -> list[Record]:
        """What a former process has left."""
        found = []
        for unfinished in self._directory.glob("*.new") if self._directory else ():
            unfinished.unlink(missing_ok=True)
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")) if self._directory else ():
            try:
                found.append(Record(**json.loads(path.read_text())))
            except (OSError, ValueError, TypeError) as exc:
                log.warning("a record of an execution is damaged, dropping it: %s: %s", path, exc)
                path.unlink(missing_ok=True)
        with self._lock:
            self._records = {record.execution_id: record for record in found}
        return found

    def add(self, record: Record) -> None:
        with self._lock:
            self._records[record.execution_id] = record
            self._write(record)

    def update(self, execution_id: str, **fields: Any) -> None:
        """Change fields of a record; nothing when there is none."""
        with self._lock:
            if record := self._records.get(execution_id):
                self._records[execution_id] = changed = replace(record, **fields)
                if changed != record:
                    self._write(changed)

    def remove(self, execution_id: str) -> None:
        with self._lock:
            if self._records.pop(execution_id, None) is not None and self._directory:
                with suppress(OSError):
                    self._path(execution_id).unlink(missing_ok=True)

    def _write(self, record: Record) -> None:
        if self._directory is None:
            return
        path = self._path(record.execution_id)
        temporary = path.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(asdict(record)))
            temporary.replace(path)
        except OSError as exc:
            log.warning("execution %s will not outlive this process: %s", record.execution_id, exc)

    def _path(self, execution_id: str) -> Path:
        assert self._directory is not None
        return self._directory / f"{quote(execution_id, safe='')}{_SUFFIX}"
