"""Removes orphans after a grace period: containers and snapshots with this cluster's labels, but without a row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator

from ... import errors
from ..._gen import worker_pb2 as pb
from ..domain.turns import Turns
from ..domain.verdict import Kind
from ..fleet.calls import Calls
from ..store import Store
from .plan import Action, Inventory, Subject

log = logging.getLogger(__name__)

ORPHAN_GRACE_SECONDS = 60.0


class Orphans:
    """Remembers orphans, and removes them; `clock` gives Unix seconds. `grace`: seconds from the first sight of an
    orphan to its removal."""

    def __init__(self, store: Store, calls: Calls, turns: Turns, clock: Callable[[], float], *, grace: float) -> None:
        self.grace = grace
        self.since: dict[Subject, float] = {}  # when each orphan was first seen
        self._store = store
        self._calls = calls
        self._turns = turns
        self._clock = clock

    def note(self, inventory: Inventory, actions: Iterable[Action]) -> None:
        """Remember the orphans that `actions`, which follow from a worker's inventory, would remove; forget that
        worker's others. Snapshots count only where the inventory lists them."""
        self.since = {
            orphan: since
            for orphan, since in self.since.items()
            if orphan.worker_id != inventory.worker_id or (orphan.snapshot_id and not inventory.whole)
        }
        for action in actions:
            if action.kind is Kind.REMOVE_ORPHAN:
                self.since[action.subject] = action.due_at - self.grace

    def due(self, reachable: Collection[str]) -> Iterator[Action]:
        """The removals whose grace period is over, at the workers of these ids."""
        now = self._clock()
        for orphan, since in self.since.items():
            if orphan.worker_id in reachable and now >= since + self.grace:
                worker_id, box_id, generation, snapshot_id = orphan
                yield Action(Kind.REMOVE_ORPHAN, worker_id, box_id, generation, "", snapshot_id=snapshot_id)

    async def remove(self, orphan: Subject) -> None:
        """Remove an orphan from its worker, unless a row stands for it by now. Raises InvalidStateError when the
        database was restored from a backup, whose rows may be older than the container."""
        if orphan in self.since:
            self.since[orphan] = self._clock()  # if the removal fails, the next try is a grace period later
        if await self._store.is_backup():
            raise errors.InvalidStateError(
                "the database was restored from a backup, and the container may belong to a box that is younger than "
                "the backup; if it is not wanted, confirm that with 'boxlite-server reconcile' for all workers"
            )
        if orphan.snapshot_id:
            await self._remove_snapshot(orphan)
        else:
            await self._remove_container(orphan)
        self.since.pop(orphan, None)

    async def _remove_container(self, orphan: Subject) -> None:
        async with self._turns.alone(orphan.box_id):
            box = await self._store.get_box(orphan.box_id)
            if box and (
                box.generation < orphan.generation
                or (box.worker_id, box.generation) == (orphan.worker_id, orphan.generation)
            ):
                return  # it is the box itself, or a later generation of it: the worker would remove the box with it
            log.warning(
                "removing the container of box %s from worker %s: no box has it", orphan.box_id, orphan.worker_id
            )
            ref = pb.BoxRef(box_id=orphan.box_id, generation=orphan.generation)
            await self._calls.remove_box(orphan.worker_id, pb.RemoveBoxRequest(box=ref, force=True))

    async def _remove_snapshot(self, orphan: Subject) -> None:
        async with self._turns.alone(orphan.box_id):
            if await self._store.has_snapshot(orphan.snapshot_id):
                return
            box = await self._store.get_box(orphan.box_id)
            log.warning(
                "removing snapshot %s of box %s from worker %s: it has no row",
                orphan.snapshot_id,
                orphan.box_id,
                orphan.worker_id,
            )
            ref = pb.BoxRef(box_id=orphan.box_id, generation=box.generation if box else 1)
            await self._calls.remove_snapshot(orphan.worker_id, pb.SnapshotRef(box=ref, snapshot_id=orphan.snapshot_id))
