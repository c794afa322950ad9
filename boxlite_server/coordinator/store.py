"""The coordinator's database: workers, boxes, and nothing else that speaks SQL.

One SQLite connection, used from the event loop's thread. Point reads run directly. Every write is one
``BEGIN IMMEDIATE`` transaction: a caller that has to look before it writes puts both into `transaction()`,
and nobody, not even another process on the same file, comes in between.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from .. import errors, ids

# A box in one of these states holds its reservation of cpus and memory; a stopped or failed one does not.
RESERVING = ("creating", "configured", "running", "stopping", "paused")


class Worker(NamedTuple):
    """One row of the registry; times in Unix seconds."""

    id: str
    name: str
    url: str
    secret: str
    status: str  # what the operator wants: active or draining
    epoch: str
    labels: dict[str, str]
    cpus: int
    memory_mib: int
    max_boxes: int | None
    version: str
    engine_version: str
    registered_at: float
    last_heartbeat: float


class Box(NamedTuple):
    """One box; times in Unix seconds, `spec` as the client asked for it with the defaults filled in."""

    id: str
    prefix: str
    name: str | None
    worker_id: str
    generation: int
    status: str
    spec: dict[str, Any]
    cpus: int
    memory_mib: int
    labels: dict[str, str]
    pid: int | None
    exit_code: int | None
    error: str | None
    created_at: float
    updated_at: float
    started_at: float | None
    stopped_at: float | None


class Load(NamedTuple):
    """What is reserved on one worker."""

    cpus: int = 0
    memory_mib: int = 0
    boxes: int = 0
    running: int = 0


class Page(NamedTuple):
    boxes: list[Box]
    next_token: tuple[float, str] | None


_JSON_COLUMNS = {"labels", "spec"}
_WORKER_COLUMNS = ", ".join(Worker._fields)
_BOX_COLUMNS = ", ".join(Box._fields)


class Store:
    """Opens the database at `path` (``:memory:`` for a private one) and brings its schema up to date.

    Any failure of SQLite surfaces as `errors.DatabaseError`.
    """

    def __init__(self, path: Path | str) -> None:
        try:
            if path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.executescript(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000;"
                "PRAGMA foreign_keys = ON;"
            )
            self._migrate()
        except (OSError, sqlite3.Error) as exc:
            raise errors.DatabaseError(f"cannot open the database {path}: {exc}") from exc

    def close(self) -> None:
        self._db.close()

    def _migrate(self) -> None:
        scripts = sorted(
            (entry for entry in (resources.files(__package__) / "schema").iterdir() if entry.name.endswith(".sql")),
            key=lambda entry: entry.name,
        )
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(scripts):
            raise sqlite3.DatabaseError(f"its schema {version} is newer than this program's {len(scripts)}")
        for number, script in enumerate(scripts[version:], start=version + 1):
            self._db.executescript(f"BEGIN IMMEDIATE; {script.read_text()} PRAGMA user_version = {number}; COMMIT;")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and alone: reads inside stay true until the writes are done. Not nested."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._execute("COMMIT")

    def _execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, parameters)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as exc:
            raise errors.DatabaseError(f"the database failed: {exc}") from exc

    # ---- meta -----------------------------------------------------------------------------------------

    def cluster_id(self) -> str:
        """The id of this cluster, minted with the database; it marks the containers that are ours."""
        self._execute("INSERT OR IGNORE INTO meta VALUES ('cluster_id', ?)", (ids.new_id(),))
        (value,) = self._execute("SELECT value FROM meta WHERE key = 'cluster_id'").fetchone()
        return str(value)

    # ---- workers --------------------------------------------------------------------------------------

    def put_worker(self, worker: Worker) -> None:
        """Insert or replace the row of `worker.id`. Raises AlreadyExistsError when the name is another's."""
        columns = Worker._fields
        updates = ", ".join(f"{column} = excluded.{column}" for column in columns if column != "id")
        try:
            self._execute(
                f"INSERT INTO workers ({_WORKER_COLUMNS}) VALUES ({', '.join('?' * len(columns))}) "
                f"ON CONFLICT (id) DO UPDATE SET {updates}",
                _to_row(worker._asdict()),
            )
        except sqlite3.IntegrityError as exc:
            raise errors.AlreadyExistsError(f"worker name '{worker.name}' belongs to another worker") from exc

    def get_worker(self, worker_id: str) -> Worker | None:
        rows = self._workers("WHERE id = ?", (worker_id,))
        return rows[0] if rows else None

    def list_workers(self) -> list[Worker]:
        """All workers, oldest first."""
        return self._workers("ORDER BY registered_at, id", ())

    def update_worker(self, worker_id: str, **changes: Any) -> None:
        self._update("workers", worker_id, changes)

    def delete_worker(self, worker_id: str) -> None:
        """Forget a worker; its boxes' rows must be gone before."""
        self._execute("DELETE FROM workers WHERE id = ?", (worker_id,))

    def loads(self) -> dict[str, Load]:
        """Reservations by worker id; a worker without any is missing."""
        marks = ", ".join("?" * len(RESERVING))
        rows = self._execute(
            "SELECT worker_id, sum(cpus), sum(memory_mib), count(*), sum(status = 'running') "
            f"FROM boxes WHERE status IN ({marks}) GROUP BY worker_id",
            RESERVING,
        )
        return {row[0]: Load(*row[1:]) for row in rows}

    def _workers(self, tail: str, parameters: tuple[Any, ...]) -> list[Worker]:
        rows = self._execute(f"SELECT {_WORKER_COLUMNS} FROM workers {tail}", parameters)
        return [Worker(**_from_row(Worker._fields, row)) for row in rows]

    # ---- boxes ----------------------------------------------------------------------------------------

    def insert_box(self, box: Box) -> None:
        """Raises AlreadyExistsError when the name is taken in its prefix."""
        try:
            self._execute(
                f"INSERT INTO boxes ({_BOX_COLUMNS}) VALUES ({', '.join('?' * len(Box._fields))})",
                _to_row(box._asdict()),
            )
        except sqlite3.IntegrityError as exc:
            raise errors.AlreadyExistsError(f"box '{box.name}' already exists") from exc

    def find_box(self, prefix: str, id_or_name: str) -> Box | None:
        """The box of that id, else of that name, in that prefix."""
        rows = self._boxes(
            "WHERE prefix = ? AND (id = ? OR name = ?) ORDER BY id = ? DESC LIMIT 1",
            (prefix, id_or_name, id_or_name, id_or_name),
        )
        return rows[0] if rows else None

    def get_box(self, box_id: str) -> Box | None:
        """The box of that id, in whatever prefix."""
        rows = self._boxes("WHERE id = ?", (box_id,))
        return rows[0] if rows else None

    def list_boxes(
        self,
        prefix: str,
        *,
        statuses: tuple[str, ...] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        after: tuple[float, str] | None = None,
        limit: int | None = None,
    ) -> Page:
        """Boxes of a prefix that are not about to go, oldest first. `after` is the token of the page before;
        it stays good when boxes come and go. Without `limit` the page holds all."""
        clauses: list[str] = ["prefix = ?", "status != 'removing'"]
        parameters: list[Any] = [prefix]
        if statuses:
            clauses.append(f"status IN ({', '.join('?' * len(statuses))})")
            parameters += statuses
        if name is not None:
            clauses.append("name = ?")
            parameters.append(name)
        for key, value in (labels or {}).items():
            clauses.append("EXISTS (SELECT 1 FROM json_each(labels) WHERE key = ? AND value = ?)")
            parameters += [key, value]
        if after is not None:
            clauses.append("(created_at, id) > (?, ?)")
            parameters += after
        tail = f"WHERE {' AND '.join(clauses)} ORDER BY created_at, id"
        if limit is not None:
            tail += f" LIMIT {limit + 1}"
        found = self._boxes(tail, tuple(parameters))
        if limit is None or len(found) <= limit:
            return Page(found, None)
        last = found[limit - 1]
        return Page(found[:limit], (last.created_at, last.id))

    def boxes_of_worker(self, worker_id: str) -> list[Box]:
        return self._boxes("WHERE worker_id = ?", (worker_id,))

    def update_box(self, box_id: str, **changes: Any) -> None:
        self._update("boxes", box_id, changes)

    def delete_box(self, box_id: str) -> None:
        self._execute("DELETE FROM boxes WHERE id = ?", (box_id,))

    def _boxes(self, tail: str, parameters: tuple[Any, ...]) -> list[Box]:
        rows = self._execute(f"SELECT {_BOX_COLUMNS} FROM boxes {tail}", parameters)
        return [Box(**_from_row(Box._fields, row)) for row in rows]

    def _update(self, table: str, row_id: str, changes: Mapping[str, Any]) -> None:
        assignments = ", ".join(f"{column} = ?" for column in changes)
        self._execute(f"UPDATE {table} SET {assignments} WHERE id = ?", (*_to_row(changes), row_id))


def _to_row(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(json.dumps(value) if key in _JSON_COLUMNS else value for key, value in fields.items())


def _from_row(columns: tuple[str, ...], row: tuple[Any, ...]) -> dict[str, Any]:
    return {
        column: json.loads(value) if column in _JSON_COLUMNS else value
        for column, value in zip(columns, row, strict=True)
    }
