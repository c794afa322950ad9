"""Creates, restores and removes snapshots of a box's disk, and clones boxes.

A snapshot's row comes first and says what is under way; only then is the worker called, in a way that can be
repeated. After a crash or a lost answer, a creation is undone, and a removal or a restoration is finished, at the
latest with the worker's next heartbeat. All of it happens in the box's turn.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from ... import errors, ids
from ..._gen import worker_pb2 as pb
from ..fleet.calls import UNCERTAIN, Calls
from ..fleet.registry import Fleet
from ..limits import REQUEST_SECONDS
from ..states import BoxStatus, SnapshotState
from ..store import RESERVING, Box, Snapshot, Store
from .creating import Creation
from .observing import Observer
from .turns import Turns, ref

log = logging.getLogger(__name__)


class Snapshots:
    """The snapshots of all boxes, over the store and the fleet; `clock` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        calls: Calls,
        turns: Turns,
        observer: Observer,
        creation: Creation,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._calls = calls
        self._turns = turns
        self._observer = observer
        self._creation = creation
        self._clock = clock

    async def list(self, prefix: str, id_or_name: str, **page: Any) -> list[Snapshot]:
        """See `Store.list_snapshots`."""
        return await self._store.list_snapshots((await self._turns.get(prefix, id_or_name)).id, **page)

    async def get(self, prefix: str, id_or_name: str, name: str) -> Snapshot:
        return await self._find(await self._turns.get(prefix, id_or_name), name)

    async def create(self, prefix: str, id_or_name: str, name: str, *, request_key: str | None = None) -> Snapshot:
        """Keep the disk of a box, which is paused meanwhile if it runs. `request_key` (owner and Idempotency-Key):
        a snapshot that an earlier attempt at the same request made is the answer. Raises AlreadyExistsError, and
        InvalidStateError for a box that has no disk any more."""
        async with self._turns.locked(prefix, id_or_name) as (box, _):
            box = await self._finished(box)
            request = request_key and f"{request_key} {box.id} {name}"
            left = await self._store.find_snapshot(box.id, name)
            is_own = left and request and left.id.startswith(ids.stem(request))
            if left and is_own and left.created_at + REQUEST_SECONDS > self._clock():
                return left
            snapshot_id = ids.of_request(request) if request else ids.new_id()
            row = Snapshot(
                id=snapshot_id, box_id=box.id, name=name, state=SnapshotState.CREATING, created_at=self._clock()
            )
            async with self._turns.writing(box.id) as tx:
                await tx.insert_snapshot(row)
            try:
                made = await self._calls.create_snapshot(box.worker_id, _snapshot_ref(box, row))
            except UNCERTAIN:
                raise
            except errors.BoxliteError as exc:
                async with self._turns.writing(box.id) as tx:
                    await tx.delete_snapshot(row.id)
                raise _without_disk(box, exc) from exc
            sizes = {"container_disk_bytes": made.container_disk_bytes, "size_bytes": made.size_bytes}
            async with self._turns.writing(box.id) as tx:
                await tx.update_snapshot(row.id, state=SnapshotState.READY, **sizes)
            return await self._find(box, name)

    async def remove(self, prefix: str, id_or_name: str, name: str) -> None:
        async with self._turns.locked(prefix, id_or_name) as (box, _):
            box = await self._finished(box)
            row = await self._find(box, name)
            async with self._turns.writing(box.id) as tx:
                await tx.update_snapshot(row.id, state=SnapshotState.REMOVING)
            await self._discard(box, row)

    async def restore(self, prefix: str, id_or_name: str, name: str) -> Box:
        """Restore the disk of a box from a snapshot, in a new container, which is not started. Raises
        InvalidStateError when the box runs, ResourceExhaustedError when its worker has no room for it."""
        async with self._turns.locked(prefix, id_or_name) as (box, worker):
            box = await self._finished(box)
            row = await self._find(box, name)
            if box.status not in (BoxStatus.CONFIGURED, BoxStatus.STOPPED, BoxStatus.FAILED):
                raise errors.InvalidStateError(f"box '{id_or_name}' is {box.status}; stop it first")
            if box.status not in RESERVING:
                box = await self._turns.reserve_again(box, worker)
            async with self._turns.writing(box.id) as tx:
                await tx.update_snapshot(row.id, state=SnapshotState.RESTORING)
            return await self._restore(box, row)

    async def clone(self, prefix: str, id_or_name: str, name: str | None, *, request_key: str | None = None) -> Box:
        """Make a new box with the disk and the spec of this one, on the same worker; it is not started. Raises
        AlreadyExistsError, ResourceExhaustedError when the worker takes no further box."""
        async with self._turns.locked(prefix, id_or_name) as (source, _):
            source = await self._finished(source)
            spec = dataclasses.replace(source.spec, name=name)
            if left := await self._creation.made_before(request_key, spec):
                return left
            making = self._creation.being_made(prefix, spec, only=source.worker_id, request_key=request_key)
            async with making as (box, worker):
                request = pb.CloneBoxRequest(source=ref(source), box=box, spec=spec.to_proto(box.box_id))
                try:
                    await self._calls.clone_box(worker, request)
                except errors.NotFoundError as exc:
                    raise _without_disk(source, exc) from exc
        return await self._turns.get(prefix, box.box_id)

    async def finish(self, box_id: str) -> None:
        """Finish or undo operations on a box's snapshots that were broken off."""
        async with self._turns.alone(box_id):
            box = await self._store.get_box(box_id)
            if box is not None:
                await self._finished(box)

    async def _finished(self, box: Box) -> Box:
        """`finish` in the box's turn, when no operation on its snapshots is under way. Returns the box's row."""
        for row in await self._store.unfinished_snapshots(box.id):
            log.info("box %s: snapshot %s was left %s", box.id, row.name, row.state)
            if row.state == SnapshotState.RESTORING:
                box = await self._restore(box, row, again=True)
            else:
                await self._discard(box, row)
        return box

    async def _restore(self, box: Box, row: Snapshot, *, again: bool = False) -> Box:
        """`again`: an earlier call may have restored the box, so a call that is not sent says nothing about it."""
        request = pb.RestoreSnapshotRequest(
            snapshot=_snapshot_ref(box, row),
            new_generation=box.generation + 1,
            spec=box.spec.to_proto(box.id),
        )
        try:
            worker = await self._fleet.reachable(box.worker_id)
            state = await self._calls.restore_snapshot(worker, request)
        except UNCERTAIN:
            raise
        except errors.BoxliteError as exc:
            if again and isinstance(exc, errors.UpstreamUnavailableError):
                raise
            async with self._turns.writing(box.id) as tx:
                await tx.update_snapshot(row.id, state=SnapshotState.READY)
            await self._observer.observe(box)
            raise
        async with self._turns.writing(box.id) as tx:
            await tx.update_snapshot(row.id, state=SnapshotState.READY)
            await tx.update_box(box.id, generation=state.generation)
        return await self._observer.apply(box, state, worker)

    async def _discard(self, box: Box, row: Snapshot) -> None:
        await self._calls.remove_snapshot(box.worker_id, _snapshot_ref(box, row))
        async with self._turns.writing(box.id) as tx:
            await tx.delete_snapshot(row.id)

    async def _find(self, box: Box, name: str) -> Snapshot:
        row = await self._store.find_snapshot(box.id, name)
        if row is None:
            raise errors.NotFoundError(f"snapshot not found: {name}")
        return row


def _snapshot_ref(box: Box, row: Snapshot) -> pb.SnapshotRef:
    return pb.SnapshotRef(box=ref(box), snapshot_id=row.id)


def _without_disk(box: Box, exc: errors.BoxliteError) -> errors.BoxliteError:
    """The error for the client: "not found" would seem to speak of the box, whose container alone is missing."""
    if isinstance(exc, errors.NotFoundError):
        return errors.InvalidStateError(f"box '{box.name or box.id}' has no container any more, and so no disk")
    return exc
