"""The rows of boxes: whose turn it is to change them, and what follows from what a worker says of a box."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from ... import errors
from ..._gen import worker_pb2 as pb
from ..fleet import placement
from ..fleet.link import target_of
from ..fleet.placement import Candidate, Need
from ..fleet.registry import Fleet
from ..leases import Leases
from ..limits import CALL_SECONDS, DEFAULT_STOP_SECONDS
from ..store import RESERVING, Box, Store, Tables, Worker
from . import host_access
from .deadlines import Schedule
from .turns import forgotten, lease_of, ref
from .verdict import OVER, STATUS, Kind, gone, judge, seen_of, state_of

log = logging.getLogger(__name__)


_UNTOLD = "its engine could not start it; start it again to be told why"

RESTARTED = ("configured", "failed", "stopped")  # states of a box that is to run again


class ObservedBoxes:
    """What all operations on boxes stand on; `clock` gives Unix seconds."""

    def __init__(
        self, store: Store, fleet: Fleet, schedule: Schedule, leases: Leases, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._schedule = schedule
        self._leases = leases
        self._clock = clock

    async def get(self, prefix: str, id_or_name: str) -> Box:
        box = await self._store.find_box(prefix, id_or_name)
        if box is None:
            raise errors.NotFoundError(f"box not found: {id_or_name}")
        return box

    async def is_busy(self, box_id: str) -> bool:
        """Whether an operation on the box is under way, through whatever coordinator."""
        return await self._leases.is_held(lease_of(box_id))

    # ---- rows and turns -------------------------------------------------------------------------------

    async def _change(self, box_id: str, **changes: Any) -> Box:
        async with self.writing(box_id) as tx:
            return await self._write(tx, box_id, **changes)

    async def _write(self, tx: Tables, box_id: str, **changes: Any) -> Box:
        before = await tx.get_box(box_id)
        if before is None:  # rows go only under the box's lock, or with their worker
            raise forgotten(box_id)
        if changes.get("desired", before.desired) != before.desired:
            changes["wish"] = before.wish + 1
        box = before._replace(updated_at=self._clock(), **changes)
        await tx.update_box(box_id, updated_at=box.updated_at, **changes)
        if box.status != before.status:
            await self._schedule.plan(box, tx=tx)
        return box

    async def _forget(self, box_id: str) -> None:
        async with self.writing(box_id) as tx:
            await tx.delete_box(box_id)

    def writing(self, box_id: str) -> AbstractAsyncContextManager[Tables]:
        """A transaction of the operation whose turn it is. Raises LeaseLostError when it is no longer."""
        return self._leases.writing(lease_of(box_id))

    @asynccontextmanager
    async def alone(self, box_id: str) -> AsyncIterator[None]:
        """Operations on one box in turn. Raises BusyError when the turn does not come."""
        async with self._leases.hold(lease_of(box_id), f"box {box_id}"):
            yield

    @asynccontextmanager
    async def locked(self, prefix: str, id_or_name: str, *, removing: bool = False) -> AsyncIterator[Box]:
        """The box as it is once it is this operation's turn. One whose removal was begun, and broken off by
        a crash, is for `removing` alone, and so is one whose worker cannot be reached."""
        box_id = (await self.get(prefix, id_or_name)).id
        async with self.alone(box_id):
            box = await self.get(prefix, box_id)
            if box.status == "removing" and not removing:
                raise errors.InvalidStateError(f"box '{id_or_name}' is being removed")
            if not removing:
                await self._fleet.check_reachable(box.worker_id)
            yield box

    async def reserve_again(self, box: Box, **changes: Any) -> Box:
        """A stopped box gave its room away; take it again, in one step with other changes, or say why not."""
        async with self.writing(box.id) as tx:
            worker = await tx.get_worker(box.worker_id)
            if worker is None:
                raise forgotten(box.id)
            candidate = Candidate(worker, await tx.load(worker.id), True)
            if reason := placement.no_room(Need(box.cpus, box.memory_mib), candidate):
                raise errors.ResourceExhaustedError(
                    f"box {box.id} cannot start: its worker {worker.name} {reason}; stop another box there first"
                )
            return await self._write(tx, box.id, status="configured", **changes)

    async def _clean_up(self, box: Box) -> None:
        """Forget a box, once its worker has nothing left of it."""
        request = pb.RemoveBoxRequest(box=ref(box), force=True)
        await self._fleet.call(box.worker_id, "RemoveBox", request, timeout=CALL_SECONDS)
        await self._forget(box.id)

    # ---- observing ------------------------------------------------------------------------------------

    async def refresh(self, box_id: str) -> None:
        """Ask the worker how the box is and write it down; finishes what was broken off."""
        async with self.alone(box_id):
            if box := await self._store.get_box(box_id):
                await self.observe(box)

    async def observe(self, box: Box) -> None:
        """`follow`, where a worker that does not answer leaves the row as it is."""
        try:
            await self.follow(box)
        except errors.BoxliteError as exc:
            log.warning("box %s cannot be asked about: %s", box.id, exc)

    async def reconcile(self, box_id: str) -> Box | None:
        """`follow` in the box's turn: the box, if it should be started again."""
        async with self.alone(box_id):
            box = await self._store.get_box(box_id)
            if box is not None and await self.follow(box) is Kind.RESTART:
                return await self._store.get_box(box_id)
            return None

    async def follow(self, box: Box) -> Kind | None:
        """Under the box's lock: ask its worker how it is, and do what follows from that; see `verdict.judge`. Only
        the start of a box that should run again is left, and its row says so. What was done."""
        try:
            state: pb.Box | None = await self._fleet.call(box.worker_id, "GetBox", ref(box), timeout=CALL_SECONDS)
        except errors.NotFoundError:
            state = None
        worker = await self._fleet.get(box.worker_id)
        life = (state.engine_life if state else None) or worker.engine_life
        verdict = judge(state_of(box), seen_of(state) if state else None, life)
        kind = verdict.kind if verdict else None
        if verdict:
            log.info("box %s of worker %s: %s, since %s", box.id, worker.name, kind, verdict.reason)
        match kind:
            case Kind.MARK_GONE:
                await self._change(box.id, status="failed", pid=None, published=[], error=gone(worker.name))
            case Kind.UNDO_CREATE:
                await self._clean_up(box)  # of a box without container there may still be disks
            case Kind.FINISH_REMOVE:
                await self._clean_up(await self._change(box.id, status="removing"))
            case Kind.FINISH_STOP:
                request = pb.StopBoxRequest(box=ref(box), timeout_seconds=DEFAULT_STOP_SECONDS)
                timeout = DEFAULT_STOP_SECONDS + CALL_SECONDS
                await self._adopt(box, await self._fleet.call(box.worker_id, "StopBox", request, timeout=timeout))
            case Kind.RESTART:
                if box.status not in RESERVING:
                    box = await self.reserve_again(box)
                await self._await_restart(box, state, verdict.reason if verdict else "")
            case _ if state is not None and (verdict or box.status == STATUS[state.status]):
                await self._adopt(box, state)
        return kind

    async def _await_restart(self, box: Box, state: pb.Box | None, reason: str) -> None:
        changes: dict[str, Any] = {"pid": None, "published": [], "error": f"{reason}; it is being started again"}
        if state and state.status == pb.BOX_STATUS_STOPPED:
            changes["engine_life"] = OVER  # that this run ended so is known from here on
        await self._change(box.id, status="configured", **changes)

    async def _adopt(self, box: Box, state: pb.Box) -> None:
        if state.status == pb.BOX_STATUS_CONFIGURED and box.status not in (*RESERVING, "removing"):
            box = await self.reserve_again(box)  # it was gone, and so was its room
        now = await self.apply(box, state)
        if now.status == "stopped" and now.spec["auto_remove"]:
            await self._clean_up(await self._change(box.id, status="removing"))

    async def give_up(self, box_id: str, reason: str) -> None:
        """Leave a box that should run as it is, until somebody starts it."""
        async with self.alone(box_id):
            box = await self._store.get_box(box_id)
            if box is not None and box.desired == "running" and box.status in RESTARTED:
                await self._change(box.id, status="failed", desired="stopped", pid=None, published=[], error=reason)

    async def remove_orphan(self, worker_id: str, orphan: pb.BoxRef) -> None:
        """Remove a container of ours that no row stands for."""
        async with self.alone(orphan.box_id):
            box = await self._store.get_box(orphan.box_id)
            if box and (
                box.generation < orphan.generation or (box.worker_id, box.generation) == (worker_id, orphan.generation)
            ):
                return  # it is the box; or a later generation of it, with which the box itself would go
            log.warning("removing the container of box %s from worker %s: no box has it", orphan.box_id, worker_id)
            request = pb.RemoveBoxRequest(box=orphan, force=True)
            await self._fleet.call(worker_id, "RemoveBox", request, timeout=CALL_SECONDS)

    async def remove_orphaned_snapshot(self, worker_id: str, orphan: pb.SnapshotRef) -> None:
        """Remove a snapshot of ours that no row stands for."""
        async with self.alone(orphan.box.box_id):
            if await self._store.has_snapshot(orphan.snapshot_id):
                return
            box = await self._store.get_box(orphan.box.box_id)
            orphan.box.generation = box.generation if box else 1
            log.warning(
                "removing snapshot %s of box %s from worker %s: it has no row",
                orphan.snapshot_id,
                orphan.box.box_id,
                worker_id,
            )
            await self._fleet.call(worker_id, "RemoveSnapshot", orphan, timeout=CALL_SECONDS)

    async def apply(self, box: Box, state: pb.Box) -> Box:
        """Write the worker's word about a box into its row."""
        status = STATUS[state.status]
        worker = await self._fleet.get(box.worker_id)
        changes: dict[str, Any] = {
            "status": status,
            "pid": state.pid if state.HasField("pid") else None,
            "exit_code": state.exit_code if state.HasField("exit_code") else None,
            "error": (box.error or _UNTOLD) if status == "failed" else None,
            "published": host_access.published(state, _host_of(worker)),
            "desired": "running" if status in ("running", "paused") else "stopped",
        }
        if status in ("running", "paused"):
            changes["engine_life"] = state.engine_life or worker.engine_life
        if status == "running" and box.status != "running":
            changes["started_at"] = self._clock()
        if status == "stopped" and box.status != "stopped":
            changes["stopped_at"] = self._clock()
        return await self._change(box.id, **changes)


def _host_of(worker: Worker) -> str:
    return target_of(worker.url).rpartition(":")[0].strip("[]")
