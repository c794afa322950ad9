"""Finds, changes, starts, stops and removes boxes.

The row says what is desired before the worker is called, so that what a crash leaves behind can be finished. Each
operation has its turn; see `turns`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

from ... import errors
from ..._gen import worker_pb2 as pb
from ..events import Events
from ..fleet.calls import UNCERTAIN, Calls
from ..fleet.placement import Need
from ..fleet.registry import Fleet
from ..limits import DEFAULT_STOP_SECONDS, MAX_STOP_SECONDS
from ..states import BoxStatus, DesiredState
from ..store import RESERVING, Box, Page, Store, Tables, Worker
from .deadlines import Schedule, lifetimes
from .observing import RESTARTED, Observer
from .turns import Turns, ref, size
from .verdict import state_of, was_gone
from .warm import Warm

log = logging.getLogger(__name__)

# Errors of a start that say nothing about the box.
NOT_THE_BOX = (
    errors.UpstreamUnavailableError,
    errors.TimedOutError,
    errors.ResourceExhaustedError,
    errors.DatabaseError,
)


class Awaited(StrEnum):
    """What a client may wait for."""

    RUNNING = "running"
    STOPPED = "stopped"  # or failed, or removed
    REMOVED = "removed"


_REACHED: dict[Awaited, tuple[BoxStatus, ...]] = {
    Awaited.RUNNING: (BoxStatus.RUNNING,),
    Awaited.STOPPED: (BoxStatus.STOPPED, BoxStatus.FAILED),
    Awaited.REMOVED: (),
}

T = TypeVar("T")

Unless = Callable[[Box], Awaitable[bool]]


class Boxes:
    """All boxes of all prefixes, over the store and the fleet; `clock` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        calls: Calls,
        schedule: Schedule,
        turns: Turns,
        observer: Observer,
        warm: Warm,
        events: Events,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._calls = calls
        self._schedule = schedule
        self._turns = turns
        self._observer = observer
        self._warm = warm
        self._events = events
        self._clock = clock
        self._on_forgotten: list[Callable[[Box], object]] = []

    def on_forgotten(self, callback: Callable[[Box], object]) -> None:
        """Have `callback(box)` run with each box that is forgotten while its worker may still hold its container."""
        self._on_forgotten.append(callback)

    async def get(self, prefix: str, id_or_name: str) -> Box:
        """See `Turns.get`."""
        return await self._turns.get(prefix, id_or_name)

    async def list(self, prefix: str, **filters: Any) -> Page:
        """See `Store.list_boxes`."""
        return await self._store.list_boxes(prefix, **filters)

    async def wait(
        self, prefix: str, id_or_name: str, until: Awaited, seconds: float, stopping: asyncio.Event
    ) -> tuple[bool, Box | None]:
        """Wait until a box is as it is awaited, for that many seconds at most, and no longer than this coordinator
        serves: until `stopping`. Returns whether it is, and the box; None: it was removed. Raises NotFoundError."""
        box_id = (await self._turns.get(prefix, id_or_name)).id
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        with contextlib.closing(await self._events.watch_box(box_id)) as watch:
            while True:
                watch.news.clear()
                box = await self._store.get_box(box_id)
                is_reached = box.status in _REACHED[until] if box else until is not Awaited.RUNNING
                left = deadline - clock()
                if is_reached or box is None or left <= 0 or stopping.is_set():
                    return is_reached, box
                await _any_of(watch.news, stopping, seconds=left)

    # ---- changing -------------------------------------------------------------------------------------

    async def update(self, prefix: str, id_or_name: str, changes: Mapping[str, Any]) -> Box:
        """Change the name, labels, lifetimes, cpus or memory of a box, by the names of fields of its spec. A box that
        does not run has its new size at its next start.

        Raises AlreadyExistsError for a name that is taken, ResourceExhaustedError when the box's worker has no room,
        QuotaExceededError, and InvalidStateError when the box uses more memory than it is to have; nothing has changed
        then. After an error of `UNCERTAIN`, the larger size stays reserved until the box has its former size again; see
        `Observer.follow`.
        """
        async with self._turns.turn(prefix, id_or_name) as box:
            if box.status == BoxStatus.REMOVING:
                raise errors.InvalidStateError(f"box '{id_or_name}' is being removed")
            spec = dataclasses.replace(box.spec, **changes)
            await self._check_name(self._store, box, spec.name)
            if box.resizing or (spec.cpus, spec.memory_mib) != (box.cpus, box.memory_mib):
                await self._resize(box, spec.cpus, spec.memory_mib)
            columns = {"name": spec.name, "labels": dict(spec.labels), **size(spec), "resizing": False}
            async with self._turns.writing(box.id) as tx:
                await self._check_name(tx, box, spec.name)
                changed = await self._turns.write(tx, box.id, spec=spec.to_json(), **columns)
                changed = changed._replace(spec=spec)
                if lifetimes(changed) != lifetimes(box):
                    await self._schedule.plan(changed, tx=tx, anew=True)
            return changed

    @staticmethod
    async def _check_name(tables: Tables, box: Box, name: str | None) -> None:
        if name is not None and name != box.name and await tables.is_named(box.prefix, name):
            raise errors.AlreadyExistsError(f"box '{name}' already exists")

    async def _resize(self, box: Box, cpus: int, memory_mib: int) -> None:
        """Reserve what a box is to have more, and have its worker change its limits."""
        worker = await self._fleet.reachable(box.worker_id)
        await self._refuse_restoring(box)
        need = Need(cpus, memory_mib, worker.id, boxes=0)
        if box.status in RESERVING:
            begun = await self._with_room(need, partial(self._turns.reserve_more, box, worker, need))
        else:
            begun = await self._turns.change(box.id, resizing=True, wish=box.wish + 1)
        try:
            request = pb.UpdateBoxRequest(box=ref(begun), cpus=cpus, memory_mib=memory_mib)
            await self._calls.update_box(worker, request)
        except UNCERTAIN:
            raise
        except errors.BoxliteError:
            await self._turns.change(box.id, cpus=box.cpus, memory_mib=box.memory_mib, resizing=box.resizing)
            raise

    # ---- starting -------------------------------------------------------------------------------------

    async def start(self, prefix: str, id_or_name: str) -> Box:
        """Start a box; returns its state, also when it runs already. Raises ResourceExhaustedError when its worker
        has no room."""
        async with self._turns.locked(prefix, id_or_name) as (box, worker), self._schedule.use(box):
            return await self._start(box, worker)

    async def ensure_running(self, prefix: str, id_or_name: str) -> tuple[Box, bool]:
        """The box, started if it does not run, and whether it was started. Raises StoppedError when the box does not
        resume by itself."""
        box = await self._turns.get(prefix, id_or_name)
        if box.status == BoxStatus.RUNNING and not await self._turns.is_busy(box.id):
            return box, False
        async with self._turns.locked(prefix, box.id) as (box, worker):
            if box.status == BoxStatus.RUNNING:
                return box, False
            # A box that is about to be started again has the status configured, not stopped.
            if box.status == BoxStatus.STOPPED and not box.spec.auto_resume:
                raise errors.StoppedError(
                    f"box '{id_or_name}' is stopped and does not resume by itself; start it. "
                    f"Its main command ended with exit code {box.exit_code}; if it always does, {errors.GO_ON}"
                )
            return await self._start(box, worker), True

    async def restart(self, seen: Box, number: int) -> Box | None:
        """Start a box that should run, in its turn; returns the box, or None if it has changed since it was `seen`.
        The row counts this as restart `number`, unless it failed for a reason that says nothing about the box."""
        async with self._turns.alone(seen.id):
            box = await self._store.get_box(seen.id)
            if box is None or box.desired != DesiredState.RUNNING or box.status not in RESTARTED:
                return None
            if (box.restarts, box.restarted_at) != (seen.restarts, seen.restarted_at):
                return None  # another coordinator was faster
            try:
                started = await self._start(box, await self._fleet.reachable(box.worker_id), again=True)
            except NOT_THE_BOX:
                raise
            except errors.BoxliteError:
                await self._turns.change(box.id, restarts=number, restarted_at=self._clock())
                raise
            if await self._store.get_box(box.id) is None:  # it has ended again, and had auto_remove
                return started
            return await self._turns.change(box.id, restarts=number, restarted_at=self._clock())

    async def _start(self, box: Box, worker: Worker, *, again: bool = False) -> Box:
        """`again`: the coordinator restarts a box that should run; a failure does not change what is desired."""
        await self._refuse_restoring(box)
        wanted: dict[str, Any] = {}
        was_desired = box.desired == DesiredState.RUNNING
        if not was_desired:
            # Should the answer be lost with the coordinator's machine, this life tells whether the run ended with it.
            wanted |= {"engine_life": worker.engine_life}
        if box.restarts and not again:
            wanted |= {"restarts": 0, "restarted_at": None}
        if box.status not in RESERVING:
            box = await self._reserve_again(box, worker, {**wanted, "desired": DesiredState.RUNNING})
        elif not was_desired:
            box = await self._turns.want_running(box, **wanted)
        elif wanted:
            box = await self._turns.change(box.id, **wanted)
        try:
            state = await self._calls.start_box(worker, ref(box))
        except errors.BoxliteError as exc:
            # The box should still run if only its worker was at fault, or if the start may have been done.
            if not (again or isinstance(exc, UNCERTAIN) or (was_desired and isinstance(exc, NOT_THE_BOX))):
                box = await self._turns.change(box.id, desired=DesiredState.STOPPED)
            await self._not_started(box, exc)
            raise
        return await self._observer.started(box, state, worker, again=again)

    async def _reserve_again(self, box: Box, worker: Worker, changes: Mapping[str, Any]) -> Box:
        """See `Turns.reserve_again` and `_with_room`."""
        need = Need(box.cpus, box.memory_mib, worker.id)
        return await self._with_room(need, partial(self._turns.reserve_again, box, worker, **changes))

    async def _with_room(self, need: Need, reserve: Callable[[], Awaitable[T]]) -> T:
        """What `reserve` returns. Where the worker has no room, warm boxes are given up for what is needed, and
        `reserve` is called once more. Raises what it raises."""
        try:
            return await reserve()
        except errors.QuotaExceededError:
            raise
        except errors.ResourceExhaustedError:
            if not await self._warm.give_up(need):
                raise
            return await reserve()

    async def _refuse_restoring(self, box: Box) -> None:
        """Raise InvalidStateError for a box whose restoration nobody has finished yet: the box will have another state
        then."""
        if await self._store.is_restoring(box.id):
            raise errors.InvalidStateError(f"box {box.id} is being restored from a snapshot; try again in a moment")

    async def _not_started(self, box: Box, exc: errors.BoxliteError) -> None:
        await self._observer.observe(box)
        now = await self._store.get_box(box.id)
        if now and now.status == BoxStatus.FAILED:
            await self._turns.change(box.id, error=now.error if was_gone(state_of(now)) else exc.public)

    # ---- stopping and removing ------------------------------------------------------------------------

    async def stop(
        self, prefix: str, id_or_name: str, timeout_seconds: float | None, *, unless: Unless | None = None
    ) -> Box:
        """Stop a box: SIGTERM, and SIGKILL after the timeout. Returns its last state; a box with auto_remove is
        removed afterwards. Nothing is done if `unless(box)` is true once it is this operation's turn."""
        patience = DEFAULT_STOP_SECONDS if timeout_seconds is None else min(timeout_seconds, MAX_STOP_SECONDS)
        async with self._turns.locked(prefix, id_or_name) as (box, worker):
            if unless and await unless(box):
                return box
            await self._refuse_restoring(box)
            before = box
            status = BoxStatus.STOPPING if box.status in (BoxStatus.RUNNING, BoxStatus.PAUSED) else box.status
            if (box.status, box.desired) != (status, DesiredState.STOPPED):
                box = await self._turns.change(box.id, status=status, desired=DesiredState.STOPPED)
            try:
                request = pb.StopBoxRequest(box=ref(box), timeout_seconds=patience)
                state = await self._calls.stop_box(box.worker_id, request)
            except UNCERTAIN:
                raise  # the stop is finished as soon as the worker answers again
            except errors.BoxliteError:
                box = await self._turns.change(box.id, status=before.status, desired=before.desired)
                await self._observer.observe(box)
                raise
            stopped = await self._observer.apply(box, state, worker)
            if stopped.spec.auto_remove and stopped.status == BoxStatus.STOPPED:
                await self._remove(stopped, force=True)
            return stopped

    async def remove(self, prefix: str, id_or_name: str, *, force: bool, unless: Unless | None = None) -> str | None:
        """Remove a box and all it holds; a running box only with `force`.

        With `force` a box whose worker cannot be reached is forgotten too, and cleaned up there when the worker
        comes back: then the returned text says so. Nothing is done if `unless(box)` is true once it is this
        operation's turn.
        """
        async with self._turns.turn(prefix, id_or_name) as box:
            if unless and await unless(box):
                return None
            return await self._remove(box, force=force)

    async def _remove(self, box: Box, *, force: bool) -> str | None:
        worker: Worker | str = box.worker_id if force else await self._fleet.reachable(box.worker_id)
        if box.status == BoxStatus.RUNNING and not force:
            raise errors.InvalidStateError(f"box '{box.name or box.id}' is running; stop it first, or use force")
        request = pb.RemoveBoxRequest(box=ref(box), force=force)
        async with self._turns.writing(box.id) as tx:
            await tx.update_box(box.id, status=BoxStatus.REMOVING)
        left = None
        try:
            await self._calls.remove_box(worker, request)
        except (errors.UpstreamUnavailableError, errors.TimedOutError) as exc:
            if not force:
                if not isinstance(exc, UNCERTAIN):
                    async with self._turns.writing(box.id) as tx:
                        await tx.update_box(box.id, status=box.status)
                raise  # it may have been done; then it is finished as soon as the worker answers again
            left = f"box {box.id} is forgotten; its container is removed when its worker is back: {exc.public}"
            log.warning("%s", left)
        except errors.EngineError:
            raise  # a part may be gone; the rest goes as soon as the engine is able to
        except errors.BoxliteError:
            async with self._turns.writing(box.id) as tx:
                await tx.update_box(box.id, status=box.status)
            await self._observer.observe(box)
            raise
        await self._turns.forget(box.id, durable=False)  # a row that says "removing" ends the same way
        if left:
            for callback in self._on_forgotten:
                callback(box)
        return left


async def _any_of(*events: asyncio.Event, seconds: float) -> None:
    """Wait until one of the events is set, for that many seconds at most."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
