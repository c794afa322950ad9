"""What there really is: the rows by themselves, the containers by themselves, and whether they fit."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .cluster import Cluster
from .engine import CPU_LIMIT, MEMORY_MIB
from .model import CONFIGURED, FAILED, RUNNING, STOPPED

QUIET = (CONFIGURED, RUNNING, STOPPED, FAILED)
HOLDING = ("creating", CONFIGURED, RUNNING, "stopping", "paused")  # they count against their worker's capacity

_SHOWN = {"creating": CONFIGURED, "removing": "stopping"}  # statuses as clients see them
_TOLD = (
    "SELECT box_id, kind, status FROM events "
    "WHERE box_id IS NOT NULL AND kind LIKE 'box.%' AND kind != 'box.unreachable' ORDER BY id"
)


class Row(NamedTuple):
    """A box as the database has it."""

    id: str
    prefix: str
    name: str | None
    worker_id: str
    generation: int
    status: str
    cpus: int
    memory_mib: int
    labels: str
    reserved: int
    spec: str

    @property
    def env(self) -> dict[str, str]:
        return dict(json.loads(self.spec)["env"])

    @property
    def claim(self) -> int:
        """The number of the creation that it came from; a clone has its original's labels."""
        if self.name and self.name.startswith("claim-"):
            return int(self.name.removeprefix("claim-"))
        return int(json.loads(self.labels)["claim"])


class Truth:
    """Looks past the product at the database and at the engines."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._database = sqlite3.connect(f"file:{cluster.database}?mode=ro", uri=True)

    def close(self) -> None:
        self._database.close()

    def rows(self) -> list[Row]:
        """The boxes of clients."""
        return [row for row in self._all_rows() if row.prefix]

    def _all_rows(self) -> list[Row]:
        """All boxes, the warm ones that nobody owns included."""
        return [Row(*row) for row in self._database.execute(f"SELECT {', '.join(Row._fields)} FROM boxes")]

    def snapshots(self, box_id: str) -> set[str]:
        query = "SELECT name FROM snapshots WHERE box_id = ? AND state = 'ready'"
        return {name for (name,) in self._database.execute(query, (box_id,))}

    def volumes(self) -> dict[str, str]:
        """The state of each volume, by name."""
        return dict(self._database.execute("SELECT name, state FROM volumes").fetchall())

    def never_right(self) -> Iterator[str]:
        """What is wrong although it must never be, not for a moment."""
        rows = self._all_rows()
        for row in rows:
            if row.status != "removing" and bool(row.reserved) != (row.status in HOLDING):
                yield f"box {row.id} is {row.status}, and reserved for it is {row.reserved}"
        for host in self._cluster.hosts:
            holding = [row for row in rows if row.worker_id == host.id and row.reserved]
            promised, cpus = sum(row.memory_mib for row in holding), sum(row.cpus for row in holding)
            counted, real = self._load(host.id), (cpus, promised, len(holding))
            if counted != real:
                yield f"of {host.name} {counted} (cpus, MiB, boxes) are counted as reserved, and {real} are"
            if cpus > CPU_LIMIT:
                yield f"{host.name} may promise {CPU_LIMIT} cpus, and {cpus} are promised"
            if promised > MEMORY_MIB:
                yield f"{host.name} has {MEMORY_MIB} MiB, and {promised} are promised"
            running = {box_id for box_id, state in host.containers().items() if state.status == RUNNING}
            used = sum(row.memory_mib for row in rows if row.worker_id == host.id and row.id in running)
            if used > MEMORY_MIB:
                yield f"{host.name} has {MEMORY_MIB} MiB, and boxes of {used} run"
        live = Counter(
            box_id
            for host in self._cluster.hosts
            for box_id, state in host.containers().items()
            if state.status == RUNNING
        )
        for box_id, count in live.items():
            if count > 1:
                yield f"box {box_id} runs {count} times"

        yield from self._wrongly_told({row.id: row for row in rows if row.prefix})

    def _wrongly_told(self, rows: Mapping[str, Row]) -> Iterator[str]:
        """Where the events of a box tell another story than its row."""
        told: dict[str, tuple[str, str | None]] = {}
        for box_id, kind, status in self._database.execute(_TOLD):
            before = told.get(box_id, ("", None))[0]
            if (not before and kind != "box.placed") or before == "box.removed":
                yield f"box {box_id}: {kind} is told after {before or 'nothing'}"
            told[box_id] = (kind, status)
        for box_id in rows.keys() | told.keys():
            kind, status = told.get(box_id, ("nothing", None))
            real = _SHOWN.get(rows[box_id].status, rows[box_id].status) if box_id in rows else None
            if status != real or (kind == "box.removed") != (real is None):
                yield f"box {box_id} is {real}, and told of it is {kind} ({status})"

    def not_yet_right(self) -> Iterator[str]:
        """What is wrong once all is quiet: rows and containers are to be one for one, and so are snapshots."""
        known = {snapshot_id for (snapshot_id,) in self._database.execute("SELECT id FROM snapshots")}
        for host in self._cluster.hosts:
            for box_id, snapshot_id in host.runtime.disks.list_snapshots():
                if snapshot_id not in known:
                    yield f"{host.name} has a snapshot of box {box_id} that is nobody's: {snapshot_id}"
        rows = {row.id: row for row in self._all_rows()}
        for host in self._cluster.hosts:
            for box_id, state in host.containers().items():
                row = rows.get(box_id)
                if row is None or (row.worker_id, row.generation) != (host.id, state.box.generation):
                    yield f"{host.name} has a container that is nobody's: {state.box}; the row is {row}"
                elif row.status not in (str(state.status), FAILED):
                    yield f"box {row.id} is {state.status}, and its row says {row.status}"
                elif state.unclaimed == bool(row.prefix):
                    yield f"box {row.id} of prefix {row.prefix!r} is {'not ' * (not state.unclaimed)}unclaimed"
                elif (told := host.told(box_id)) != row.env:
                    yield f"box {row.id} was told {told}, and its row says {row.env}"
        for row in rows.values():
            if row.status not in QUIET:
                yield f"box {row.id} stays {row.status}"
            if row.status != FAILED and row.id not in self._cluster.wires.hosts[row.worker_id].containers():
                yield f"box {row.id} is {row.status}, and its container is not there"

    def _load(self, worker_id: str) -> tuple[int, int, int]:
        query = "SELECT cpus, memory_mib, boxes FROM loads WHERE worker_id = ?"
        return self._database.execute(query, (worker_id,)).fetchone() or (0, 0, 0)
