"""What must not be shown: secrets that tests plant and those of the product, and where nobody may find them."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxlite_server import ids

if TYPE_CHECKING:
    from .cluster import Cluster

VARIABLE = "PLANTED"
PLANTED = f"planted-{ids.secret()}"  # the value of a variable in boxes of the tests

# Columns that are made to hold secrets, and what clients have given: the environment of boxes, and Idempotency-Keys.
MEANT = {("workers", "secret"), ("removed_workers", "secret"), ("meta", "value"), ("boxes", "spec"), ("answers", "key")}

# Keys of clients, access tokens and tickets, whoever made them.
_CREDENTIAL = re.compile(rb"blx_[0-9A-Za-z]{12}_[0-9A-Za-z_-]{43}|bl[ti]_[0-9A-Za-z-]{1,32}_[0-9]+_[0-9a-f]{64}")


class Search:
    """Looks for secrets of one cluster, and for `more` that a test has planted."""

    def __init__(self, cluster: Cluster, *more: str) -> None:
        self._cluster = cluster
        self._tables = dict(_tables(cluster.database))
        self._texts = {PLANTED, *more, *cluster.secrets}
        for table, column in (("workers", "secret"), ("removed_workers", "secret")):
            self._texts |= {str(row[column]) for row in self._tables.get(table, ())}
        rows = self._tables.get("meta", ())
        self._texts |= {str(row["value"]) for row in rows if "secret" in str(row["key"])}

    def found(self) -> list[str]:
        """Where secrets are that must not be there."""
        return [*self._in_logs(), *self._in_tables(), *self._in_command_lines()]

    def shows(self, data: bytes) -> bool:
        """Whether one of the secrets is in the data, or any key or token."""
        return any(text.encode() in data for text in self._texts if text) or _CREDENTIAL.search(data) is not None

    def _in_logs(self) -> Iterator[str]:
        for process in self._cluster.processes:
            for number, line in enumerate(process.log.read_bytes().splitlines() if process.log.exists() else (), 1):
                if self.shows(line):
                    yield f"{process.log}:{number}: {line[:500]!r}"

    def _in_tables(self) -> Iterator[str]:
        for table, rows in self._tables.items():
            for row in rows:
                for column, value in row.items():
                    data = value if isinstance(value, bytes) else str(value).encode(errors="replace")
                    if (table, column) not in MEANT and self.shows(data):
                        yield f"{table}.{column}: {data[:500]!r}"

    def _in_command_lines(self) -> Iterator[str]:
        """Of the cluster's processes, which name its directory, and of those that they have started."""
        for pid, line in _command_lines(self._cluster):
            if self.shows(line):
                yield f"process {pid}: {line[:500]!r}"


def _command_lines(cluster: Cluster) -> Iterator[tuple[int, bytes]]:
    parents: dict[int, int] = {}
    lines: dict[int, bytes] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError, ValueError):  # it has ended
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                lines[int(entry.name)] = (entry / "cmdline").read_bytes()
    ours = {process.pid for process in cluster.processes if process.running}
    ours |= {pid for pid, line in lines.items() if os.fsencode(cluster.directory) in line and pid != os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours and pid not in ours}:
        ours |= more
    yield from ((pid, lines[pid]) for pid in ours if pid in lines)


def _tables(database: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """All rows of all tables; nothing where there is no database, or its server was stopped."""
    if "://" in database:
        import psycopg

        names = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
        try:
            connection: Any = psycopg.connect(database)
        except psycopg.Error:
            return
    elif Path(database).exists():
        names = "SELECT name FROM sqlite_schema WHERE type = 'table'"
        connection = sqlite3.connect(database)
    else:
        return
    with closing(connection):
        for (name,) in connection.execute(names).fetchall():
            cursor = connection.execute(f"SELECT * FROM {name}")
            columns = [column[0] for column in cursor.description]
            yield name, [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
