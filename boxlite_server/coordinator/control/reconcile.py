"""What workers report, held against what the registry says, and what was broken off, brought to an end.

A report is a hint, never an order: it may be older than the operation that just ended. `plan.py` says what follows
from it. To do it, the worker is asked about that box in the box's turn, and that answer counts. What no report
touches is looked for every few seconds: operations that a crash or a lost answer left in the middle. Nothing is
changed about a worker that cannot be reached.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ... import errors
from ..._gen import worker_pb2 as pb
from ..domain.boxes import Boxes
from ..domain.snapshots import Snapshots
from ..domain.verdict import Kind, seen_of
from ..domain.volumes import Volumes
from ..fleet.registry import Fleet
from ..limits import CALL_SECONDS
from ..store import Box, Store, Worker
from .plan import Action, Inventory, Rows, Subject
from .plan import actions as follow_up

log = logging.getLogger(__name__)

ORPHAN_GRACE_SECONDS = 60.0
LOOK_SECONDS = 5.0
SURVEY_SECONDS = 600.0  # between two inventories that nobody has to ask for: of snapshots and volumes, too
MAX_AT_ONCE = 32
MAX_STARTS = 4  # per worker; its clients want to start boxes, too

# A box that has to be started again and again is left alone in the end.
MAX_RESTARTS = 6
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds
FULL_PAUSE = 2.0  # when the worker has too much to start
FORGET_SECONDS = 600.0  # how long a box must run for its restarts to be forgotten


class Done(NamedTuple):
    """`error`: why it could not be done. Neither done nor an error: not due yet, or nothing to do."""

    action: Action
    done: bool
    error: str | None = None


class Outcome(NamedTuple):
    """Of one run over the fleet; `unreachable`: by name, why a worker could not be asked."""

    done: list[Done]
    names: Mapping[str, str]  # of the workers, by id
    unreachable: Mapping[str, str]


class Reconciler:
    """Over all that it brings in line; `clock` gives Unix seconds. `orphan_grace`: for how many seconds a container
    that no box has is left alone."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        boxes: Boxes,
        snapshots: Snapshots,
        volumes: Volumes,
        clock: Callable[[], float],
        *,
        orphan_grace: float = ORPHAN_GRACE_SECONDS,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._boxes = boxes
        self._snapshots = snapshots
        self._volumes = volumes
        self._clock = clock
        self._grace = orphan_grace
        self._orphans: dict[Subject, float] = {}  # since when
        self._surveyed_at = clock()
        self._to_survey: set[str] = (
            set()
        )  # workers that came in since; a life that was cut short leaves things half done
        self._due_at: dict[str, float] = {}  # of restarts by box id; who looks earlier finds it in the row
        self._starts: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MAX_STARTS))
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by box or volume id
        self._again: dict[str, Action] = {}
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        self._again.clear()
        tasks = [*self._tasks.values(), *([self._keeper] if self._keeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- what is to be done ---------------------------------------------------------------------------

    async def report(self, worker_id: str, boxes: Iterable[Mapping[str, Any]], engine_life: str | None = None) -> None:
        """Compare a worker's inventory with its rows, and begin to bring in line what differs. Without an
        `engine_life` the one counts that the worker told last."""
        if engine_life is None and (worker := await self._store.get_worker(worker_id)):
            engine_life = worker.engine_life
        for action in await self._plan(Inventory.of_report(worker_id, boxes, engine_life)):
            self._begin(action)

    def survey_soon(self, worker_id: str) -> None:
        """Ask a worker at the next look for all that it holds: for a new life of it."""
        self._to_survey.add(worker_id)

    async def look(self) -> None:
        """Begin with what no report touches, and with what has become due."""
        reachable = {worker.id for worker in await self._store.list_workers() if self._fleet.is_reachable(worker)}
        now = self._clock()
        for box in await self._store.unsettled_boxes():
            if box.worker_id not in reachable or now < self._restart_due(box.id):
                continue
            if not await self._boxes.is_busy(box.id):
                self._begin(Action(Kind.ADOPT, box.worker_id, box.id, 0, "an operation on it was broken off"))
        for volume in await self._store.unsettled_volumes():
            if volume.worker_id in reachable and not await self._volumes.is_busy(volume.id):
                self._begin(Action(Kind.FINISH_VOLUME, volume.worker_id, "", 0, "", volume_id=volume.id))
        for orphan, since in self._orphans.items():
            if orphan.worker_id in reachable and now >= since + self._grace:
                worker_id, box_id, generation, snapshot_id = orphan
                self._begin(Action(Kind.REMOVE_ORPHAN, worker_id, box_id, generation, "", snapshot_id=snapshot_id))
        workers = await self._to_be_surveyed(now)
        for action in (await self._survey(workers))[0]:
            self._begin(action)
        self._due_at = {key: due_at for key, due_at in self._due_at.items() if now < due_at}

    async def _to_be_surveyed(self, now: float) -> list[Worker]:
        workers = await self._store.list_workers()
        if now >= self._surveyed_at + SURVEY_SECONDS:
            self._surveyed_at = now
            self._to_survey.clear()
            return workers
        named, self._to_survey = self._to_survey, set()
        return [worker for worker in workers if worker.id in named]

    async def _plan(self, inventory: Inventory) -> list[Action]:
        now, worker_id = self._clock(), inventory.worker_id
        actions = follow_up(await self._rows(inventory), inventory, now, grace=self._grace, since=self._orphans)
        self._orphans = {
            orphan: since
            for orphan, since in self._orphans.items()
            if orphan.worker_id != worker_id or (orphan.snapshot_id and not inventory.whole)
        }
        for action in actions:
            if action.kind is Kind.REMOVE_ORPHAN:
                self._orphans[action.subject] = action.due_at - self._grace
        return [
            a._replace(due_at=self._restart_due(a.box_id)) if a.kind is Kind.RESTART else a
            for a in actions
            if not (a.volume_id and await self._volumes.is_busy(a.volume_id))
        ]

    async def _rows(self, inventory: Inventory) -> Rows:
        """Read after the inventory was taken: what is older than it is in the rows already."""
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

    # ---- by itself ------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except errors.BoxliteError as exc:
                log.error("what was broken off cannot be looked for, trying again: %s", exc)
            except Exception:
                log.exception("fault while looking for what was broken off")

    def _begin(self, action: Action) -> None:
        """One task per box at a time. What is reported meanwhile may be news to it: then once more."""
        key = action.box_id or action.volume_id
        if action.kind is Kind.UNKNOWN or action.due_at > self._clock():
            return
        if key in self._tasks:
            self._again[key] = action
            return
        task = asyncio.create_task(self._by_itself(action))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._ended(key))

    async def _by_itself(self, action: Action) -> None:
        what = f"volume {action.volume_id}" if action.volume_id else f"box {action.box_id}"
        try:
            await self._carry_out(action)
        except errors.ResourceExhaustedError as exc:
            log.info("%s has to wait: %s", what, exc)
        except errors.BoxliteError as exc:
            log.warning("%s could not be reconciled: %s", what, exc)
            self._fleet.want_inventory(action.worker_id)
        except Exception:
            log.exception("fault while reconciling %s", what)

    def _ended(self, key: str) -> None:
        del self._tasks[key]
        if action := self._again.pop(key, None):
            self._begin(action)

    # ---- doing it -------------------------------------------------------------------------------------

    async def _carry_out(self, action: Action) -> None:
        """The plan's word is taken for where to look; what is done there follows from what is found."""
        match action.kind:
            case Kind.REMOVE_ORPHAN:
                async with self._slots:
                    await self._remove_orphan(action)
            case Kind.FINISH_VOLUME:
                async with self._slots:
                    await self._volumes.finish(action.volume_id)
            case _:
                async with self._slots:
                    await self._snapshots.finish(action.box_id)
                    box = await self._boxes.reconcile(action.box_id)
                if box is not None:
                    await self._restart(box)

    async def _remove_orphan(self, action: Action) -> None:
        orphan = action.subject
        if orphan in self._orphans:
            self._orphans[orphan] = self._clock()  # if it fails, the next time is a grace later
        if await self._store.is_backup():
            raise errors.InvalidStateError(
                "the database is a backup, and the container may be of a box that is younger; "
                "'boxlite-server reconcile' for all workers says that it is not wanted"
            )
        box = pb.BoxRef(box_id=action.box_id, generation=action.generation)
        if action.snapshot_id:
            ref = pb.SnapshotRef(box=box, snapshot_id=action.snapshot_id)
            await self._boxes.remove_orphaned_snapshot(action.worker_id, ref)
        else:
            await self._boxes.remove_orphan(action.worker_id, box)
        self._orphans.pop(orphan, None)

    def _restart_due(self, box_id: str) -> float:
        return self._due_at.get(box_id, 0.0)

    async def _restart(self, box: Box) -> None:
        now, attempts = self._clock(), 0
        if box.restarted_at is not None and now < box.restarted_at + FORGET_SECONDS:
            attempts = box.restarts
            self._due_at[box.id] = max(self._restart_due(box.id), box.restarted_at + _pause(attempts))
        if now < self._restart_due(box.id):
            return
        if attempts >= MAX_RESTARTS:
            await self._give_up(box, "it was ended again each time")
            return
        try:
            async with self._starts[box.worker_id]:
                started = await self._boxes.restart(box, attempts + 1)
        except errors.ResourceExhaustedError:
            self._due_at[box.id] = self._clock() + FULL_PAUSE
            raise
        except (errors.UpstreamUnavailableError, errors.TimedOutError, errors.DatabaseError):
            raise  # it says nothing about the box
        except errors.BoxliteError as exc:
            self._due_at[box.id] = self._clock() + _pause(attempts + 1)
            if attempts + 1 >= MAX_RESTARTS:
                await self._give_up(box, exc.message)
            raise
        if started is not None:
            log.info("box %s runs again", box.id)
            self._due_at[box.id] = self._clock() + _pause(attempts + 1)

    async def _give_up(self, box: Box, reason: str) -> None:
        self._due_at.pop(box.id, None)
        await self._boxes.give_up(box.id, f"it was started again {MAX_RESTARTS} times, in vain: {reason}")

    # ---- when asked -----------------------------------------------------------------------------------

    async def run(self, *, dry_run: bool, worker: str | None = None) -> Outcome:
        """Ask every worker that can be reached, or the one of that id or name, for what it holds, and do what
        follows; with `dry_run` only say it. Of a database that was put back from a backup, a run over all workers makes
        what has no row an orphan. Raises NotFoundError for an unknown worker."""
        workers = [w for w in await self._store.list_workers() if worker in (None, w.id, w.name)]
        if worker is not None and not workers:
            raise errors.NotFoundError(f"worker not found: {worker}")
        names = {w.id: w.name for w in workers}
        if worker is None and not dry_run:
            await self._store.accept_backup()
        actions, unreachable = await self._survey(workers)
        if dry_run:
            return Outcome([Done(action, False) for action in actions], names, unreachable)
        return Outcome(list(await asyncio.gather(*(self._try(action) for action in actions))), names, unreachable)

    async def _survey(self, workers: Iterable[Worker]) -> tuple[list[Action], dict[str, str]]:
        """What is to be done about these workers, and by name why one of them could not be asked."""
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
                held = await self._fleet.call(worker.id, "ListBoxes", pb.Empty(), timeout=CALL_SECONDS)
                volumes = await self._fleet.call(worker.id, "ListVolumes", pb.Empty(), timeout=CALL_SECONDS)
                kept = await self._fleet.call(worker.id, "ListSnapshots", pb.Empty(), timeout=CALL_SECONDS)
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


def _pause(attempts: int) -> float:
    """Seconds after so many restarts of a box until the next one."""
    return min(FIRST_PAUSE * 2.0 ** (attempts - 1), LONGEST_PAUSE)
