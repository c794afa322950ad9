"""Copies of a SQLite database, consistent while it is written."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from ... import errors

PATIENCE_MS = 5000


def back_up(database: Path, target: Path) -> None:
    """Copy a coordinator's database to a new file; the coordinator goes on meanwhile. The copy knows that it is one:
    boxes that are younger than it are no orphans, until an operator says so.

    Raises InvalidArgumentError when there is something at `target`, DatabaseError when the copy cannot be made.
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
    """Write all of a database as it is now to one file, and keep it only when it is whole and on the disk. `mark`:
    what is run in the copy alone."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL, 0o600))  # it holds the workers' secrets
        with closing(sqlite3.connect(partial, isolation_level=None)) as copied:
            # In one step, which is one read of what was committed: writers go on, and never make it begin anew.
            source.backup(copied)
            copied.execute("PRAGMA journal_mode = DELETE")  # one file alone
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
