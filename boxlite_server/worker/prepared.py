"""Boxes that were made before anybody asked for them. Their containers run and await their main commands, and for
everybody else such a box is not started yet. What each of them is to run is kept in a file, so that a restart of the
worker forgets none."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from ..errors import ResourceExhaustedError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Main:
    """The main command of a box, and what all commands of the box get. `as_first`: the command is process 1 itself."""

    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    env: tuple[str, ...]  # each `NAME=value`
    working_dir: str
    as_first: bool


class Stage(StrEnum):
    """How far a box has come."""

    PREPARED = "prepared"  # nobody's
    CLAIMED = "claimed"  # and not started
    STARTED = "started"  # at least once


@dataclass(frozen=True, slots=True)
class Record:
    """`made_of`: what is as the box was made and cannot be changed, as text. `image`: the main command that its image
    names."""

    stage: Stage
    made_of: str
    image: Main
    main: Main


class Prepared:
    """The records of boxes, by the names of their containers, in files below `directory`; with None, nothing outlives
    the process."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        if directory is not None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._records = {path.name: record for path in directory.iterdir() if (record := _read(path))}

    def __contains__(self, name: str) -> bool:
        """Whether the box counts as not started."""
        record = self._records.get(name)
        return record is not None and record.stage is not Stage.STARTED

    def get(self, name: str) -> Record | None:
        """The record of a box that was made before anybody asked for it; None for any other box."""
        return self._records.get(name)

    def unclaimed(self, name: str) -> Record | None:
        """The record of a box that is nobody's; None for any other box."""
        record = self._records.get(name)
        return record if record is not None and record.stage is Stage.PREPARED else None

    def names(self) -> list[str]:
        return list(self._records)

    def put(self, name: str, record: Record) -> None:
        """Keep the record on disk. Raises `ResourceExhaustedError` when it cannot be written."""
        try:
            self._write(name, record, durable=True)
        except OSError as exc:
            raise ResourceExhaustedError(f"what box {name} is to run cannot be kept: {exc}") from exc
        self._records[name] = record

    def start(self, name: str) -> None:
        """Note that the box is started. Where that cannot be written, a restart of the worker makes the box count as
        not started again; then its coordinator starts it again, which changes nothing about a box that runs."""
        if name not in self:
            return
        self._records[name] = record = replace(self._records[name], stage=Stage.STARTED)
        try:
            self._write(name, record, durable=False)
        except OSError as exc:
            log.warning("box %s will count as not started after a restart of this worker: %s", name, exc)

    def forget(self, name: str) -> None:
        """Drop the record of a box that is gone."""
        if self._records.pop(name, None) is not None and self._directory is not None:
            (self._directory / name).unlink(missing_ok=True)

    def _write(self, name: str, record: Record, *, durable: bool) -> None:
        if self._directory is None:
            return
        with self._lock, (self._directory / ".new").open("w") as file:
            json.dump(asdict(record), file)
            if durable:
                file.flush()
                os.fdatasync(file.fileno())
            (self._directory / ".new").replace(self._directory / name)


def _read(path: Path) -> Record | None:
    try:
        fields = json.loads(path.read_text())
        image, main = (_main(fields[name]) for name in ("image", "main"))
        return Record(Stage(fields["stage"]), str(fields["made_of"]), image, main)
    except (OSError, ValueError, TypeError, KeyError) as exc:
        if path.name != ".new":
            log.warning("what a box is to run cannot be read: %s: %s", path, exc)
        return None


def _main(fields: dict[str, object]) -> Main:
    texts = {key: tuple(map(str, fields[key])) for key in ("entrypoint", "cmd", "env")}  # type: ignore[call-overload]
    return Main(**texts, working_dir=str(fields["working_dir"]), as_first=bool(fields["as_first"]))
