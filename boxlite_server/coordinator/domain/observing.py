"""Asks workers about boxes, and does what follows from their answers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from ... import errors
from ..._gen import worker_pb2 as pb
from .. import host_access
from ..fleet.calls import Calls
from ..fleet.link import target_of
from ..fleet.registry import Fleet
from ..limits import DEFAULT_STOP_SECONDS
from ..states import BoxStatus, DesiredState
from ..store import RESERVING, Box, Store, Worker
from .turns import Turns, ref, size
from .verdict import (
    GONE,
    OVER,
    STATUS,
    Kind,
    judge,
    seen_of,
    state_of,
    stopped_by_worker,
    was_stopped_by_worker,
)

log = logging.getLogger(__name__)

RESTARTED = (BoxStatus.CONFIGURED, BoxStatus.FAILED, BoxStatus.STOPPED)  # states of a box that is to run again

_UNTOLD = "its engine could not start it; start it again to be told why"


class Observer:
    """Asks workers about boxes and brings boxes and rows in line; `clock` gives Unix seconds."""

    def __init__(self, store: Store, fleet: Fleet, calls: Calls, turns: Turns, clock: Callable[[], float]) -> None:
        self._store = store
        self._fleet = fleet
        self._calls = calls
        self._turns = turns
        self._clock = clock

    # ---- which take the turn --------------------------------------------------------------------------

    async def refresh(self, box_id: str) -> None:
        """Ask the worker how the box is and write it down; finish what was broken off."""
        async with self._turns.alone(box_id):
            if box := await self._store.get_box(box_id):
                await self.observe(box)

    async def reconcile(self, box_id: str) -> Box | None:
        """`follow` in the box's turn. Returns the box if it should be started again."""
        async with self._turns.alone(box_id):
            box = await self._store.get_box(box_id)
            if box is not None and await self.follow(box) is Kind.RESTART:
                return await self._store.get_box(box_id)
            return None

    async def give_up(self, box_id: str, reason: str) -> None:
        """Leave a box that should run as it is, until somebody starts it."""
        async with self._turns.alone(box_id):
            box = await self._store.get_box(box_id)
            if box is not None and box.desired == DesiredState.RUNNING and box.status in RESTARTED:
                await self._turns.change(
                    box.id, status=BoxStatus.FAILED, desired=DesiredState.STOPPED, pid=None, published=[], error=reason
                )

    # ---- in the box's turn ----------------------------------------------------------------------------

    async def observe(self, box: Box) -> None:
        """`follow`, but leave the row as it is when the worker does not answer."""
        try:
            await self.follow(box)
        except errors.BoxliteError as exc:
            log.warning("box %s cannot be asked about: %s", box.id, exc)

    async def follow(self, box: Box) -> Kind | None:
        """Ask the box's worker how the box is, and do what follows from that; see `verdict.judge`. Returns what
        was done. Only the start of a box that should run again is left to do, and the row says so."""
        worker = await self._fleet.reachable(box.worker_id)
        try:
            state: pb.Box | None = await self._calls.get_box(worker, ref(box))
        except errors.NotFoundError:
            state = None
        if box.resizing and box.status != BoxStatus.REMOVING:
            box = await self._undo_resizing(box, is_there=state is not None)
        life = (state.engine_life if state else None) or worker.engine_life
        verdict = judge(state_of(box), seen_of(state) if state else None, life)
        kind = verdict.kind if verdict else None
        if verdict:
            log.info("box %s of worker %s: %s, since %s", box.id, worker.name, kind, verdict.reason)
        match kind:
            case Kind.MARK_GONE:
                await self._turns.change(box.id, status=BoxStatus.FAILED, pid=None, published=[], error=GONE)
            case Kind.UNDO_CREATE:
                await self.clean_up(box)  # a box without a container may still have disks
            case Kind.FINISH_REMOVE:
                await self.clean_up(await self._turns.change(box.id, status=BoxStatus.REMOVING))
            case Kind.FINISH_STOP:
                request = pb.StopBoxRequest(box=ref(box), timeout_seconds=DEFAULT_STOP_SECONDS)
                await self._adopt(box, await self._calls.stop_box(box.worker_id, request), worker)
            case Kind.RESTART:
                if box.status not in RESERVING:
                    box = await self._turns.reserve_again(box, worker)
                await self._await_restart(box, state, verdict.reason if verdict else "")
            case _ if state is not None and (verdict or box.status == STATUS[state.status]):
                await self._adopt(box, state, worker)
        return kind

    async def _undo_resizing(self, box: Box, *, is_there: bool) -> Box:
        """Give a box whose change of size was broken off its former size again, or, where the box uses more memory than
        that by now, the size that is reserved for it. Returns its row, which says so."""
        spec = box.spec
        if is_there:
            box = await self._turns.change(box.id, wish=box.wish + 1)  # the call that was broken off comes too late now
            try:
                await self._calls.update_box(box.worker_id, pb.UpdateBoxRequest(box=ref(box), **size(spec)))
            except errors.InvalidStateError:
                spec = dataclasses.replace(spec, cpus=box.cpus, memory_mib=box.memory_mib)
                await self._calls.update_box(box.worker_id, pb.UpdateBoxRequest(box=ref(box), **size(spec)))
        changed = await self._turns.change(box.id, spec=spec.to_json(), **size(spec), resizing=False)
        return changed._replace(spec=spec)

    async def _await_restart(self, box: Box, state: pb.Box | None, reason: str) -> None:
        changes: dict[str, Any] = {"pid": None, "published": [], "error": f"{reason}; it is being started again"}
        if state and state.status == pb.BOX_STATUS_STOPPED:
            changes["engine_life"] = OVER  # from now on the row says that this run did not end by itself
        await self._turns.change(box.id, status=BoxStatus.CONFIGURED, **changes)

    async def _adopt(self, box: Box, state: pb.Box, worker: Worker) -> None:
        if state.status == pb.BOX_STATUS_CONFIGURED and box.status not in (*RESERVING, BoxStatus.REMOVING):
            box = await self._turns.reserve_again(box, worker)  # the box was gone, and its room was free
        now = await self.apply(box, state, worker)
        if now.status == BoxStatus.STOPPED and now.spec.auto_remove and not was_stopped_by_worker(now.error):
            await self.clean_up(await self._turns.change(box.id, status=BoxStatus.REMOVING))

    async def started(
        self, box: Box, state: pb.Box, worker: Worker, *, again: bool = False, durable: bool = False
    ) -> Box:
        """`apply` what the worker answers to a start. `again`: the coordinator restarts a box that should run."""
        if state.status == pb.BOX_STATUS_STOPPED and (again or state.interrupted):
            # The box has ended at once; `follow` finds out whether by itself or killed by an engine that is stopping.
            status = BoxStatus.CONFIGURED if box.status == BoxStatus.CREATING else box.status
            box = await self._turns.change(box.id, status=status, engine_life=state.engine_life or None)
            await self.follow(box)
            return await self._store.get_box(box.id) or box
        return await self.apply(box, state, worker, durable=durable)

    async def apply(self, box: Box, state: pb.Box, worker: Worker, *, durable: bool = False) -> Box:
        """Write into the box's row what its worker says of it; returns the row. That need not be `durable` where the
        row says already what is desired: after a crash the worker is asked again."""
        status = STATUS[state.status]
        is_up = status in (BoxStatus.RUNNING, BoxStatus.PAUSED)
        changes: dict[str, Any] = {
            "status": status,
            "pid": state.pid if state.HasField("pid") else None,
            "exit_code": state.exit_code if state.HasField("exit_code") else None,
            "error": _error(box, state),
            "published": host_access.published(state, _host_of(worker)),
            "supervisor": state.supervisor or None,
            "desired": DesiredState.RUNNING if is_up else DesiredState.STOPPED,
        }
        if is_up:
            changes["engine_life"] = state.engine_life or worker.engine_life
        if status == BoxStatus.RUNNING and box.status != BoxStatus.RUNNING:
            changes["started_at"] = self._clock()
        if status == BoxStatus.STOPPED and box.status != BoxStatus.STOPPED:
            changes["stopped_at"] = self._clock()
        return await self._turns.change(box.id, durable=durable, **changes)

    async def clean_up(self, box: Box) -> None:
        """Have the worker remove all that it has of the box, then delete the row."""
        await self._calls.remove_box(box.worker_id, pb.RemoveBoxRequest(box=ref(box), force=True))
        await self._turns.forget(box.id)


def _error(box: Box, state: pb.Box) -> str | None:
    """Why the box failed, was stopped unasked or ran out of memory; None for any other box."""
    if state.status == pb.BOX_STATUS_FAILED:
        return box.error or _UNTOLD
    if state.status != pb.BOX_STATUS_STOPPED:
        return None
    if state.reason:
        return stopped_by_worker(state.reason)
    if state.out_of_memory:
        return f"out of memory: the box hit its memory limit of {box.memory_mib} MiB, and the kernel killed a process"
    return box.error if box.status == BoxStatus.STOPPED else None  # a worker that was restarted knows less


def _host_of(worker: Worker) -> str:
    return target_of(worker.url).rpartition(":")[0].strip("[]")
