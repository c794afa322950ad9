"""Consistent copies of a SQLite database, taken while the coordinator writes to it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from ... import errors

PATIENCE_MS = 5000


def back_up(database: Path, target: Path) -> None:
    """Copy a coordinator's database to a new file; the coordinator may run meanwhile. The copy is marked as a backup:
    a coordinator that opens it removes no container as an orphan until an operator accepts the backup.

    Raises InvalidArgumentError when `target` exists, DatabaseError when the copy cannot be made.
    """
    if target.exists():
        raise errors.InvalidArgumentError(f"{target} exists; name a new file")
    if not database.is_file():
        raise errors.DatabaseError(f"there is no database {database}")
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as source:
            source.execute(f"PRAGMA busy_timeout = {PATIENCE_MS}")
            if source.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'boxes'").fetchone() != (1,):
                raise errors.DatabaseError(f"{database} is no coordinator's database")
            copy(source, target, "INSERT OR IGNORE INTO meta VALUES ('is_backup', '1')")
    except (OSError, sqlite3.Error) as exc:
        raise errors.DatabaseError(f"the database {database} cannot be copied to {target}: {exc}") from exc


def copy(source: sqlite3.Connection, target: Path, mark: str = "") -> None:
    """Copy a database as it is now to the file `target`, which appears only once the copy is whole and on disk.
    `mark`: a statement that is run in the copy."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL, 0o600))  # it holds the workers' secrets
        with closing(sqlite3.connect(partial, isolation_level=None)) as copied:
            # In one step, which is one read transaction: a concurrent write neither waits nor restarts the copy.
            source.backup(copied)
            copied.execute("PRAGMA journal_mode = DELETE")  # the copy is a single file, without a log beside it
            copied.execute(mark)
            (verdict,) = copied.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(f"the copy is damaged: {verdict}")
        _sync(partial)
        partial.rename(target)
        _sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
