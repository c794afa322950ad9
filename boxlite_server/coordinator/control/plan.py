"""Plans what follows from the rows and a worker's inventory. Pure: nothing is asked here, and nothing done.

The desired state of a box is what was last asked of it. A start makes it running, and so does a command that starts
the box; a stop makes it stopped, and so do the creation of the box and the restoration of a snapshot, which leave the
box at rest. The desired state is written before the worker is called, so a crash cannot lose it. The observed state
is what the worker says. What follows from the two:

    the worker says     desired is running                          desired is stopped
    running, paused     adopt                                       finish_stop
    configured          restart: its start was broken off           adopt
    stopped             restart, where the engine ended it,         adopt
                        else settle: its command ended by itself
    failed              settle                                      adopt
    nothing             mark_gone                                   mark_gone

Operations that were broken off come first: rows in creation or removal, and boxes with an unfinished snapshot. A box
that is to be started again keeps its room meanwhile: its row is configured, and desired is running.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, NamedTuple

from ..domain.verdict import Kind, Seen, Verdict, judge
from ..states import BoxStatus, VolumeState
from ..store import Box, BoxState, Volume


class Inventory(NamedTuple):
    """The containers of one worker that carry the labels of this cluster and of that worker."""

    worker_id: str
    engine_life: str | None
    boxes: tuple[Seen, ...]
    volumes: tuple[str, ...] = ()  # ids
    snapshots: tuple[tuple[str, str], ...] = ()  # ids of the box and of the snapshot
    whole: bool = False  # whether the worker was asked for volumes and snapshots, too

    @classmethod
    def of_report(cls, worker_id: str, boxes: Iterable[Mapping[str, Any]], engine_life: str | None) -> Inventory:
        """The inventory in a registration or a heartbeat."""
        seen = (Seen(b["box_id"], b["generation"], BoxStatus(b["status"]), bool(b.get("interrupted"))) for b in boxes)
        return cls(worker_id, engine_life, tuple(seen))


class Rows(NamedTuple):
    """The rows of a worker, and the rows of boxes that it reports although they belong to other workers."""

    boxes: list[BoxState]
    elsewhere: Mapping[str, Box] = {}  # by id
    unfinished: frozenset[str] = frozenset()  # boxes with a snapshot that is not ready
    volumes: list[Volume] = []  # noqa: RUF012 - never changed
    snapshots: Set[str] = frozenset()  # ids


class Subject(NamedTuple):
    """A container, or a snapshot (with generation 0), that may turn out to be an orphan."""

    worker_id: str
    box_id: str
    generation: int
    snapshot_id: str


class Action(NamedTuple):
    """One thing to do about a worker, not before `due_at` (Unix seconds). An action on a volume names no box, and an
    action on a snapshot has generation 0."""

    kind: Kind
    worker_id: str
    box_id: str
    generation: int
    reason: str
    due_at: float = 0.0
    volume_id: str = ""
    snapshot_id: str = ""

    @property
    def subject(self) -> Subject:
        return Subject(self.worker_id, self.box_id, self.generation, self.snapshot_id)


def actions(
    rows: Rows, inventory: Inventory, now: float, *, grace: float, due: Mapping[Subject, float]
) -> list[Action]:
    """All that is to be done about a worker. `due`: when each known orphan is to be removed, in Unix seconds. One that
    is not known is removed `grace` seconds after `now` if it is a container, and at once if it is a snapshot."""
    worker_id = inventory.worker_id
    states = {box.id: box for box in rows.boxes}
    here: dict[str, Seen] = {}
    found: list[Action] = []
    for seen in inventory.boxes:
        state = states.get(seen.box_id)
        if state is not None and (state.generation == seen.generation or state.id in rows.unfinished):
            here[state.id] = seen  # during a restoration a box may have two containers; neither is an orphan
            continue
        stray = _stray(seen, state, rows.elsewhere.get(seen.box_id))
        found.append(Action(stray.kind, worker_id, seen.box_id, seen.generation, stray.reason))
    for box in rows.boxes:
        if box.id in rows.unfinished:
            reason = "an operation on a snapshot of it was broken off"
            found.append(Action(Kind.FINISH_SNAPSHOT, worker_id, box.id, box.generation, reason))
        elif verdict := judge(box, here.get(box.id), inventory.engine_life):
            found.append(Action(verdict.kind, worker_id, box.id, box.generation, verdict.reason))
    found += _about_snapshots(rows, inventory, found)
    found = [
        action._replace(due_at=due.get(action.subject, now if action.snapshot_id else now + grace))
        if action.kind is Kind.REMOVE_ORPHAN
        else action
        for action in found
    ]
    return found + _about_volumes(rows.volumes, inventory)


def _stray(seen: Seen, here: BoxState | None, elsewhere: Box | None) -> Verdict:
    row = here or elsewhere
    if row is None:
        return Verdict(Kind.REMOVE_ORPHAN, "no box has it")
    if seen.generation > row.generation:
        return Verdict(Kind.UNKNOWN, f"it is of a later generation than the box, {row.generation}; it is left alone")
    if here is None:
        return Verdict(Kind.REMOVE_ORPHAN, "the box is on another worker")
    return Verdict(Kind.REMOVE_ORPHAN, f"it is of a former generation; the box is of generation {row.generation}")


def _about_snapshots(rows: Rows, inventory: Inventory, about_boxes: list[Action]) -> list[Action]:
    """What becomes of snapshots without a row. Those of a box that goes as a whole go with it, and those of a box with
    a container of a later generation are left alone, as it is."""
    here = {box.id for box in rows.boxes}
    going = {a.box_id for a in about_boxes if a.kind is Kind.REMOVE_ORPHAN and a.box_id not in here}
    later = {a.box_id for a in about_boxes if a.kind is Kind.UNKNOWN}
    found = []
    for box_id, snapshot_id in inventory.snapshots:
        if snapshot_id in rows.snapshots or box_id in going:
            continue
        kind, reason = Kind.REMOVE_ORPHAN, f"snapshot {snapshot_id} has no row"
        if box_id in later:
            kind, reason = Kind.UNKNOWN, f"{reason}, and its box is of a later generation there; it is left alone"
        found.append(Action(kind, inventory.worker_id, box_id, 0, reason, snapshot_id=snapshot_id))
    return found


def _about_volumes(rows: list[Volume], inventory: Inventory) -> list[Action]:
    worker_id = inventory.worker_id
    broken = [row for row in rows if row.state != VolumeState.READY]
    actions = [
        Action(Kind.FINISH_VOLUME, worker_id, "", 0, f"it was left {row.state}", volume_id=row.id) for row in broken
    ]
    known = {row.id for row in rows}
    reason = "it has no row; it is left alone, since it may hold data"
    unknown = sorted(set(inventory.volumes) - known)
    return actions + [Action(Kind.UNKNOWN, worker_id, "", 0, reason, volume_id=volume_id) for volume_id in unknown]
