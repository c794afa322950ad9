"""Gives the operations on a box their turns, one at a time, and writes the box's row for the operation in turn.

Operations on one box run one after the other, through whichever coordinator they come; different boxes do not
wait for each other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from ... import errors
from ..._gen import worker_pb2 as pb
from ..fleet import placement
from ..fleet.placement import Candidate, Need
from ..fleet.registry import Fleet
from ..leases import Leases
from ..spec import Spec
from ..states import BoxStatus, DesiredState
from ..store import Box, Store, Tables, Use, Worker
from ..tenants.quotas import QuotaRows
from .deadlines import Schedule

RUNNING = (BoxStatus.RUNNING, BoxStatus.STOPPING, BoxStatus.PAUSED)  # counted as running, whatever is desired


class Turns:
    """Turns on boxes, and their rows, over the store and the leases; `clock` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        schedule: Schedule,
        leases: Leases,
        quotas: QuotaRows,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._schedule = schedule
        self._leases = leases
        self._quotas = quotas
        self._clock = clock

    async def get(self, prefix: str, id_or_name: str) -> Box:
        """The box as its row says now, whosever turn it is. Raises NotFoundError."""
        box = await self._store.find_box(prefix, id_or_name)
        if box is None:
            raise errors.NotFoundError(f"box not found: {id_or_name}")
        return box

    # ---- turns ----------------------------------------------------------------------------------------

    async def is_busy(self, box_id: str) -> bool:
        """Whether an operation on the box is under way, through whatever coordinator."""
        return await self._leases.is_held(lease_of(box_id))

    @asynccontextmanager
    async def alone(self, box_id: str) -> AsyncIterator[None]:
        """The turn of one operation on the box. Raises BusyError when the turn does not come."""
        async with self._leases.hold(lease_of(box_id), f"box {box_id}"):
            yield

    @asynccontextmanager
    async def turn(self, prefix: str, id_or_name: str) -> AsyncIterator[Box]:
        """The turn of one operation. Yields the box as it is then, even when it is half removed or its worker
        cannot be reached."""
        box_id = (await self.get(prefix, id_or_name)).id
        async with self.alone(box_id):
            yield await self.get(prefix, box_id)

    @asynccontextmanager
    async def locked(self, prefix: str, id_or_name: str) -> AsyncIterator[tuple[Box, Worker]]:
        """The turn of one operation. Yields the box as it is then, and its worker, which can be reached.

        Raises InvalidStateError when a removal of the box was begun and broken off, and UpstreamUnavailableError
        when its worker cannot be reached.
        """
        async with self.turn(prefix, id_or_name) as box:
            if box.status == BoxStatus.REMOVING:
                raise errors.InvalidStateError(f"box '{id_or_name}' is being removed")
            yield box, await self._fleet.reachable(box.worker_id)

    # ---- rows, in a turn ------------------------------------------------------------------------------

    def writing(self, box_id: str, *, durable: bool = True) -> AbstractAsyncContextManager[Tables]:
        """A transaction of the operation whose turn it is; see `Store.transaction`. Raises LeaseLostError when its turn
        is over."""
        return self._leases.writing(lease_of(box_id), durable=durable)

    async def change(self, box_id: str, *, durable: bool = True, **changes: Any) -> Box:
        """Change columns of the box's row; returns the row. Raises what `writing` and `write` raise."""
        async with self.writing(box_id, durable=durable) as tx:
            return await self.write(tx, box_id, **changes)

    async def want_running(self, box: Box, **changes: Any) -> Box:
        """`change` for a box that has its room and is to run from now on. Raises QuotaExceededError."""
        async with self.writing(box.id) as tx:
            if box.status not in RUNNING:
                await self._quotas.check(tx, box.prefix, Use(running_boxes=1))
            return await self.write(tx, box.id, desired=DesiredState.RUNNING, **changes)

    async def write(self, tx: Tables, box_id: str, **changes: Any) -> Box:
        """`change` within the transaction `tx`. Raises UpstreamUnavailableError when the row has gone with its
        worker's."""
        before = await tx.get_box(box_id)
        if before is None:  # a row is deleted only in the box's turn, or with its worker
            raise forgotten(box_id)
        if changes.get("desired", before.desired) != before.desired:
            changes["wish"] = before.wish + 1
        box = before._replace(updated_at=self._clock(), **changes)
        await tx.update_box(box_id, updated_at=box.updated_at, **changes)
        if box.status != before.status:
            await self._schedule.plan(box, tx=tx)
        return box

    async def forget(self, box_id: str, *, durable: bool = True) -> None:
        """Delete the box's row."""
        async with self.writing(box_id, durable=durable) as tx:
            await tx.delete_box(box_id)

    async def reserve_again(self, box: Box, worker: Worker, **changes: Any) -> Box:
        """Reserve room on its worker for a box that gave its room away when it stopped, in one step with other
        changes of its row. Raises ResourceExhaustedError, with the reason, when the worker has no room, and
        QuotaExceededError."""
        async with self.writing(box.id) as tx:
            await self._quotas.check(tx, box.prefix, Use(running_boxes=1, cpus=box.cpus, memory_mib=box.memory_mib))
            candidate = Candidate(worker, await tx.load(worker.id), True)
            if reason := placement.no_room(Need(box.cpus, box.memory_mib), candidate):
                raise errors.ResourceExhaustedError(
                    f"box {box.id} cannot start: its worker {worker.name} {reason}; stop another box there first",
                    f"box {box.id} cannot start: its worker has no room for it now; try again later",
                )
            return await self.write(tx, box.id, status=BoxStatus.CONFIGURED, **changes)

    async def reserve_more(self, box: Box, worker: Worker, need: Need) -> Box:
        """Reserve what `need` is larger than the box, which has its room already, and note that the box's size is about
        to change; returns the row. Raises what `reserve_again` raises."""
        cpus, memory_mib = max(need.cpus, box.cpus), max(need.memory_mib, box.memory_mib)
        async with self.writing(box.id) as tx:
            more = Use(cpus=cpus - box.cpus, memory_mib=memory_mib - box.memory_mib)
            await self._quotas.check(tx, box.prefix, more)
            load = await tx.load(worker.id)
            others = load._replace(cpus=load.cpus - box.cpus, memory_mib=load.memory_mib - box.memory_mib)
            reason = placement.no_room(need, Candidate(worker, others, True))
            if reason and any(more):
                raise errors.ResourceExhaustedError(
                    f"box {box.id} cannot grow: its worker {worker.name} {reason}; stop another box there first",
                    f"box {box.id} cannot grow: its worker has no room for that now; try again later",
                )
            return await self.write(tx, box.id, cpus=cpus, memory_mib=memory_mib, resizing=True, wish=box.wish + 1)


def ref(box: Box) -> pb.BoxRef:
    """The box as a worker knows it."""
    return pb.BoxRef(box_id=box.id, generation=box.generation, wish=box.wish)


def size(spec: Spec) -> dict[str, Any]:
    """The columns of a box's row that say what is reserved for it, by its spec."""
    return {"cpus": spec.cpus, "memory_mib": spec.memory_mib}


def forgotten(box_id: str) -> errors.BoxliteError:
    return errors.UpstreamUnavailableError(f"box {box_id} was forgotten, together with its worker")


def lease_of(box_id: str) -> str:
    return f"box/{box_id}"
