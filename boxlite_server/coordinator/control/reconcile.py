"""Brings what workers report in line with what the rows say, and finishes operations that were broken off.

A report is a hint, never an order: it may be older than the operation that just ended. `plan` says what follows from
it. Before anything is done, the worker is asked about that box in the box's turn, and that answer counts. Operations
that a crash or a lost answer left unfinished are in no report; the rows are searched for them every few seconds.
Nothing is changed about a worker that cannot be reached.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ... import errors
from ...metrics import coordinator as metrics
from ..domain.observing import Observer
from ..domain.snapshots import Snapshots
from ..domain.turns import Turns
from ..domain.verdict import Kind, seen_of
from ..domain.volumes import Volumes
from ..fleet.calls import Calls
from ..fleet.registry import Fleet
from ..loops import Backoff, Loop, Tasks
from ..store import Store, Worker
from .orphans import Count, Orphans
from .plan import Action, Inventory, Rows
from .plan import actions as follow_up
from .restarts import Restarts

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
SURVEY_SECONDS = 60.0  # between two looks at everything that all workers hold, snapshots and volumes included
LONGEST_PAUSE = 60.0  # seconds between two tries to finish a broken-off operation; the shortest is LOOK_SECONDS
MAX_AT_ONCE = 32


class Done(NamedTuple):
    """What became of an action. `error`: why it could not be done. An action without an error that is not done was
    not due yet, or was nothing to be done about."""

    action: Action
    done: bool
    error: str | None = None


class Outcome(NamedTuple):
    """One run over the fleet. `unreachable`: by name of a worker, why it could not be asked."""

    done: list[Done]
    names: Mapping[str, str]  # of the workers, by id
    unreachable: Mapping[str, str]


class Reconciler:
    """Plans what is to be done about each worker, and does it; `clock` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        calls: Calls,
        turns: Turns,
        observer: Observer,
        snapshots: Snapshots,
        volumes: Volumes,
        orphans: Orphans,
        restarts: Restarts,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._calls = calls
        self._turns = turns
        self._observer = observer
        self._snapshots = snapshots
        self._volumes = volumes
        self._orphans = orphans
        self._restarts = restarts
        self._clock = clock
        self._surveyed_at = clock()
        self._to_survey: set[str] = set()  # ids of workers that have registered since the last look
        self._reached: set[str] = set()  # ids of the workers that could be reached at the last look
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks = Tasks()  # by box, volume or snapshot id
        self._pauses = Backoff(LOOK_SECONDS, LONGEST_PAUSE, clock)  # by box, volume or snapshot id
        self._loop = Loop("broken-off operations cannot be looked for", self._look_again, retry=LOOK_SECONDS)

    def start(self) -> None:
        self._loop.start(after=LOOK_SECONDS)

    async def close(self) -> None:
        await self._loop.close()
        await self._tasks.close()

    # ---- what is to be done ---------------------------------------------------------------------------

    async def report(self, worker_id: str, boxes: Iterable[Mapping[str, Any]], engine_life: str | None = None) -> None:
        """Compare a worker's inventory with its rows, and begin to bring in line what differs. Without an
        `engine_life` the one that the worker told last counts."""
        if engine_life is None and (worker := await self._store.get_worker(worker_id)):
            engine_life = worker.engine_life
        for action in await self._plan(Inventory.of_report(worker_id, boxes, engine_life)):
            self._begin(action)

    def survey_soon(self, worker_id: str) -> None:
        """Ask a worker at the next look for all that it holds, and try again what it has refused. A worker that
        registers is asked, because its former process may have left things half done."""
        self._to_survey.add(worker_id)
        self._orphans.reconsider({worker_id})

    @property
    def under_way(self) -> int:
        """How many boxes, volumes and snapshots are being brought in line."""
        return len(self._tasks)

    def orphans(self, worker_id: str) -> Count:
        """How many orphans the worker holds, as far as this coordinator knows."""
        return self._orphans.count(worker_id)

    async def look(self) -> None:
        """Begin with broken-off operations, and with what has become due."""
        workers = await self._store.list_workers()
        await self._fleet.note_lost(workers)
        reachable = {worker.id for worker in workers if self._fleet.is_reachable(worker)}
        self._to_survey |= reachable - self._reached  # what was asked of a worker that was away may be left undone
        self._reached = reachable
        now = self._clock()
        for box in await self._store.unsettled_boxes():
            if box.worker_id not in reachable or now < max(self._restarts.due_at(box.id), self._pauses.due_at(box.id)):
                continue
            if not await self._turns.is_busy(box.id):
                self._begin(Action(Kind.ADOPT, box.worker_id, box.id, 0, "an operation on it was broken off"))
        for volume in await self._store.unsettled_volumes():
            if volume.worker_id not in reachable or now < self._pauses.due_at(volume.id):
                continue
            if not await self._volumes.is_busy(volume.id):
                self._begin(Action(Kind.FINISH_VOLUME, volume.worker_id, "", 0, "", volume_id=volume.id))
        for action in self._orphans.due(reachable):
            self._begin(action)
        for action in (await self._survey(await self._to_be_surveyed(now)))[0]:
            self._begin(action)
        self._restarts.drop_past()

    async def _look_again(self) -> float:
        with metrics.RECONCILE_SECONDS.time(), metrics.RECONCILE_FAULTS.count_exceptions():
            await self.look()
        return LOOK_SECONDS

    async def _to_be_surveyed(self, now: float) -> list[Worker]:
        workers = await self._store.list_workers()
        if now >= self._surveyed_at + SURVEY_SECONDS:
            self._surveyed_at = now
            self._to_survey.clear()
            return workers
        named, self._to_survey = self._to_survey, set()
        return [worker for worker in workers if worker.id in named]

    async def _plan(self, inventory: Inventory) -> list[Action]:
        now = self._clock()
        rows = await self._rows(inventory)
        actions = follow_up(rows, inventory, now, grace=self._orphans.grace, due=self._orphans.due_at)
        return [
            a._replace(due_at=self._restarts.due_at(a.box_id)) if a.kind is Kind.RESTART else a
            for a in self._orphans.note(inventory, actions)
            if not (a.volume_id and await self._volumes.is_busy(a.volume_id))
        ]

    async def _rows(self, inventory: Inventory) -> Rows:
        """The rows, read after the inventory was taken: whatever happened before it is in them."""
        worker_id = inventory.worker_id
        boxes = await self._store.inventory_of_worker(worker_id)
        known = {box.id for box in boxes}
        elsewhere = {}
        for seen in inventory.boxes:
            if seen.box_id not in known and (box := await self._store.get_box(seen.box_id)):
                elsewhere[box.id] = box
        return Rows(
            boxes,
            elsewhere,
            frozenset(await self._store.boxes_with_unfinished_snapshots(worker_id)),
            await self._store.volumes_of_worker(worker_id),
            await self._store.snapshots_of_worker(worker_id) if inventory.whole else frozenset(),
        )

    # ---- unasked --------------------------------------------------------------------------------------

    def _begin(self, action: Action) -> None:
        """Carry out an action as the one task of its box, volume or snapshot. A task that is under way may not know
        what was reported meanwhile, so the action is carried out once more after it."""
        if action.kind is not Kind.UNKNOWN and action.due_at <= self._clock():
            self._tasks.begin(_key(action), functools.partial(self._carry_out_unasked, action), again=True)

    async def _carry_out_unasked(self, action: Action) -> None:
        what, key = _named(action), _key(action)
        try:
            await self._carry_out(action)
            self._pauses.succeeded(key)
        except errors.ResourceExhaustedError as exc:
            log.info("%s has to wait: %s", what, exc)
        except errors.BoxliteError as exc:
            log.warning("%s could not be reconciled: %s", what, exc)
            self._pauses.failed(key)
            self._fleet.want_inventory(action.worker_id)
        except Exception:
            log.exception("fault while reconciling %s", what)
            self._pauses.failed(key)

    async def _carry_out(self, action: Action) -> None:
        """Do what an action is about, and count it."""
        result = "failed"
        try:
            await self._act(action)
            result = "done"
        except errors.ResourceExhaustedError:
            result = "waits"
            raise
        finally:
            metrics.REPAIRS[action.kind.value, result].inc()

    async def _act(self, action: Action) -> None:
        """Do what an action is about. The action says only where to look; what is found there decides."""
        match action.kind:
            case Kind.REMOVE_ORPHAN:
                async with self._slots:
                    await self._orphans.remove(action.subject)
            case Kind.FINISH_VOLUME:
                async with self._slots:
                    await self._volumes.finish(action.volume_id)
            case _:
                async with self._slots:
                    await self._snapshots.finish(action.box_id)
                    box = await self._observer.reconcile(action.box_id)
                if box is not None:
                    await self._restarts.restart(box)

    # ---- when asked -----------------------------------------------------------------------------------

    async def run(self, *, dry_run: bool, worker: str | None = None) -> Outcome:
        """Ask every worker that can be reached, or the one of that id or name, for what it holds, and do what
        follows; with `dry_run` only say it. When the database was restored from a backup, a run over all workers
        declares everything without a row an orphan. Raises NotFoundError for an unknown worker."""
        workers = [w for w in await self._store.list_workers() if worker in (None, w.id, w.name)]
        if worker is not None and not workers:
            raise errors.NotFoundError(f"worker not found: {worker}")
        names = {w.id: w.name for w in workers}
        if worker is None and not dry_run:
            await self._store.accept_backup()
        if not dry_run:
            self._orphans.reconsider(names)
        actions, unreachable = await self._survey(workers)
        if dry_run:
            return Outcome([Done(action, False) for action in actions], names, unreachable)
        return Outcome(list(await asyncio.gather(*(self._try(action) for action in actions))), names, unreachable)

    async def _survey(self, workers: Iterable[Worker]) -> tuple[list[Action], dict[str, str]]:
        """What is to be done about these workers; and by name of a worker, why it could not be asked."""
        actions: list[Action] = []
        unreachable = {}
        asked = list(workers)
        for worker, answer in zip(asked, await asyncio.gather(*(self._ask(w) for w in asked)), strict=True):
            if isinstance(answer, errors.BoxliteError):
                unreachable[worker.name] = answer.message
            else:
                actions += await self._plan(answer)
        return actions, unreachable

    async def _ask(self, worker: Worker) -> Inventory | errors.BoxliteError:
        if reason := self._fleet.why_unreachable(worker):
            return errors.UpstreamUnavailableError(reason)
        try:
            async with self._slots:
                held = await self._calls.list_boxes(worker.id)
                volumes = await self._calls.list_volumes(worker.id)
                kept = await self._calls.list_snapshots(worker.id)
        except errors.BoxliteError as exc:
            return exc
        life = held.engine_life or worker.engine_life
        seen = tuple(seen_of(box) for box in held.boxes)
        snapshots = tuple((snapshot.box.box_id, snapshot.snapshot_id) for snapshot in kept.snapshots)
        return Inventory(worker.id, life, seen, tuple(v.volume_id for v in volumes.volumes), snapshots, whole=True)

    async def _try(self, action: Action) -> Done:
        if action.kind is Kind.UNKNOWN or action.due_at > self._clock():
            return Done(action, False)
        try:
            await self._carry_out(action)
        except errors.BoxliteError as exc:
            return Done(action, False, exc.message)
        return Done(action, True)


def _key(action: Action) -> str:
    return action.snapshot_id or action.box_id or action.volume_id


def _named(action: Action) -> str:
    """What the action is about, for the log."""
    if action.volume_id:
        return f"volume {action.volume_id}"
    return f"snapshot {action.snapshot_id} of box {action.box_id}" if action.snapshot_id else f"box {action.box_id}"
