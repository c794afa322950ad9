"""Removes orphans: containers and snapshots with this cluster's labels, but without a row.

A container has a grace period first, and with it the snapshots of its box, which go when it goes; but that of a box
that a client removed by force while the worker was away goes as soon as the worker is back. A snapshot alone has
none: its row is written before the snapshot is made, and deleted after it is removed, so without a row nobody can ask
for it. A removal that fails is tried again after a growing pause, also when the container is gone by then, since disks
of the box may be left. A removal that is refused is not tried again before something has changed: the worker has
registered anew, or the operator asks for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ... import errors
from ..._gen import worker_pb2 as pb
from ..domain.turns import Turns
from ..domain.verdict import Kind
from ..fleet.calls import Calls
from ..store import Box, Store
from .plan import Action, Inventory, Subject

log = logging.getLogger(__name__)

ORPHAN_GRACE_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0  # seconds, after a removal that has failed


@dataclass
class _Orphan:
    due_at: float  # Unix seconds
    attempts: int = 0  # to remove it, of which none is known to have succeeded
    refusal: str = ""  # why it cannot be removed, until something changes


class Count(NamedTuple):
    """How many orphans a worker holds, as far as this coordinator knows. `refused`: those that are left alone."""

    total: int
    refused: int


class Orphans:
    """Remembers orphans, and removes them; `clock` gives Unix seconds. `grace`: seconds from the first sight of a
    container that is an orphan to its removal."""

    def __init__(self, store: Store, calls: Calls, turns: Turns, clock: Callable[[], float], *, grace: float) -> None:
        self.grace = grace
        self._found: dict[Subject, _Orphan] = {}
        self._store = store
        self._calls = calls
        self._turns = turns
        self._clock = clock

    @property
    def due_at(self) -> dict[Subject, float]:
        """When each orphan is to be removed, in Unix seconds."""
        return {subject: orphan.due_at for subject, orphan in self._found.items()}

    def count(self, worker_id: str) -> Count:
        there = [orphan for subject, orphan in self._found.items() if subject.worker_id == worker_id]
        return Count(len(there), sum(bool(orphan.refusal) for orphan in there))

    def note(self, inventory: Inventory, actions: Iterable[Action]) -> list[Action]:
        """Remember the orphans that `actions`, which follow from a worker's inventory, would remove, and forget that
        worker's others. Returns the actions, without the removals that were refused: those orphans are left alone."""
        noted = []
        seen: dict[Subject, float] = {}
        for action in actions:
            if action.kind is Kind.REMOVE_ORPHAN:
                seen[action.subject] = action.due_at
                if (known := self._found.get(action.subject)) and known.refusal:
                    reason = f"{action.reason}; it is left alone: {known.refusal}"
                    action = action._replace(kind=Kind.UNKNOWN, reason=reason, due_at=0.0)
            noted.append(action)
        self._found = {
            subject: orphan
            for subject, orphan in self._found.items()
            if subject.worker_id != inventory.worker_id or subject in seen or _may_remain(subject, orphan, inventory)
        }
        for subject, due_at in seen.items():
            self._found.setdefault(subject, _Orphan(due_at))
        return noted

    def forgotten(self, box: Box) -> None:
        """Remove what is left of a box as soon as its worker can be reached: somebody has asked for that, so there is
        no grace period."""
        self._found[Subject(box.worker_id, box.id, box.generation, "")] = _Orphan(self._clock(), attempts=1)

    def due(self, reachable: Collection[str]) -> Iterator[Action]:
        """The removals that are due, at the workers of these ids."""
        now = self._clock()
        for subject, orphan in self._found.items():
            if subject.worker_id in reachable and now >= orphan.due_at and not orphan.refusal:
                worker_id, box_id, generation, snapshot_id = subject
                yield Action(Kind.REMOVE_ORPHAN, worker_id, box_id, generation, "", snapshot_id=snapshot_id)

    def reconsider(self, worker_ids: Collection[str]) -> None:
        """Have removals that failed or were refused at these workers tried again now."""
        for subject, orphan in self._found.items():
            if subject.worker_id in worker_ids and orphan.attempts:
                orphan.refusal, orphan.due_at = "", self._clock()

    async def remove(self, subject: Subject) -> None:
        """Remove an orphan from its worker, unless a row stands for it by now. Raises InvalidStateError when the
        worker refuses that, or the database was restored from a backup, whose rows may be older than the orphan."""
        orphan = self._found.setdefault(subject, _Orphan(self._clock()))
        orphan.attempts += 1
        orphan.due_at = self._clock() + min(FIRST_PAUSE * 2.0 ** (orphan.attempts - 1), LONGEST_PAUSE)
        try:
            await self._remove(subject)
        except errors.InvalidStateError as exc:
            orphan.refusal = exc.message
            raise
        self._found.pop(subject, None)

    async def _remove(self, subject: Subject) -> None:
        if await self._store.is_backup():
            raise errors.InvalidStateError(
                "the database was restored from a backup, and the container may belong to a box that is younger than "
                "the backup; if it is not wanted, confirm that with 'boxlite-server reconcile' for all workers"
            )
        async with self._turns.alone(subject.box_id):
            if subject.snapshot_id:
                await self._remove_snapshot(subject)
            else:
                await self._remove_container(subject)

    async def _remove_container(self, orphan: Subject) -> None:
        box = await self._store.get_box(orphan.box_id)
        if box and (
            box.generation < orphan.generation
            or (box.worker_id, box.generation) == (orphan.worker_id, orphan.generation)
        ):
            return  # it is the box itself, or a later generation of it: the worker would remove the box with it
        log.warning("removing the container of box %s from worker %s: no box has it", orphan.box_id, orphan.worker_id)
        ref = pb.BoxRef(box_id=orphan.box_id, generation=orphan.generation)
        await self._calls.remove_box(orphan.worker_id, pb.RemoveBoxRequest(box=ref, force=True))

    async def _remove_snapshot(self, orphan: Subject) -> None:
        if await self._store.has_snapshot(orphan.snapshot_id):
            return
        log.warning(
            "removing snapshot %s of box %s from worker %s: it has no row",
            orphan.snapshot_id,
            orphan.box_id,
            orphan.worker_id,
        )
        # The worker takes any generation for the removal of a snapshot.
        box = await self._store.get_box(orphan.box_id)
        ref = pb.BoxRef(box_id=orphan.box_id, generation=box.generation if box else 1)
        await self._calls.remove_snapshot(orphan.worker_id, pb.SnapshotRef(box=ref, snapshot_id=orphan.snapshot_id))


def _may_remain(subject: Subject, orphan: _Orphan, inventory: Inventory) -> bool:
    """Whether something may be left of an orphan that the inventory of its worker does not show."""
    if subject.snapshot_id:
        return not inventory.whole
    return orphan.attempts > 0 and not orphan.refusal
