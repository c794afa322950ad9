"""The life of a box, as the coordinator leads it.

The row comes first: the id is minted, the row written and the capacity reserved in one transaction, and only
then is the worker called. Every worker call is idempotent by (box id, generation), so whatever a crash leaves
behind can be asked about and finished. Operations on one box run one after the other, through whichever
coordinator they come; different boxes do not wait for each other.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ... import errors, ids
from ..._gen import worker_pb2 as pb
from ..fleet.calls import TRY_ELSEWHERE, UNCERTAIN
from ..fleet.placement import Need, not_placed, place
from ..fleet.registry import Fleet
from ..leases import Leases
from ..limits import (
    CALL_SECONDS,
    CREATE_SECONDS,
    DEFAULT_STOP_SECONDS,
    LAST_TRY_SECONDS,
    MAX_STOP_SECONDS,
    REQUEST_SECONDS,
    Policy,
)
from ..store import RESERVING, Box, Page, Store, Tables, Worker
from . import host_access
from . import spec as boxspec
from .deadlines import Schedule
from .observing import RESTARTED, ObservedBoxes
from .turns import ref
from .verdict import state_of, was_gone
from .volumes import Volumes

log = logging.getLogger(__name__)


# What says nothing about a box that cannot be started.
_NOT_THE_BOX = (
    errors.UpstreamUnavailableError,
    errors.TimedOutError,
    errors.ResourceExhaustedError,
    errors.DatabaseError,
)

Unless = Callable[[Box], Awaitable[bool]]


class Boxes(ObservedBoxes):
    """All boxes of all prefixes, over the store and the fleet; `clock` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        volumes: Volumes,
        schedule: Schedule,
        leases: Leases,
        policy: Policy,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(store, fleet, schedule, leases, clock)
        self._volumes = volumes
        self._policy = policy

    async def list(self, prefix: str, **filters: Any) -> Page:
        """See `Store.list_boxes`."""
        return await self._store.list_boxes(prefix, **filters)

    # ---- creating -------------------------------------------------------------------------------------

    async def create(self, prefix: str, request: Mapping[str, Any], *, request_key: str | None = None) -> Box:
        """Create a box on the least loaded worker that has room; the next one is tried where one cannot, under
        the next generation: what may still come about at the first is a stray there. A box with volumes goes to
        the worker that has them. With a `request_key`, see `made_before`.

        One that does not answer in time has used up the time of the others too: the box is forgotten, and what
        comes about of it is a stray.

        Raises AlreadyExistsError, ImageError, InvalidArgumentError, UnsupportedError, NotFoundError (of a volume),
        UpstreamUnavailableError (no worker can take it; the text says why), TimedOutError.
        """
        spec = boxspec.normalise(request, self._policy)
        if left := await self.made_before(request_key, spec):
            return left
        spec["mounts"], home = await self._volumes.resolve(prefix, spec["mounts"])
        box_id = ids.new_id()
        async with self.alone(box_id):
            tried: dict[str, str] = {}
            refused: errors.BoxliteError | None = None
            ends_at = asyncio.get_running_loop().time() + CREATE_SECONDS
            for generation in itertools.count(1):
                try:
                    worker = await self._reserve(
                        box_id, prefix, spec, generation, tried, home=home, request_key=request_key
                    )
                except errors.BoxliteError as exc:
                    if tried:
                        await self._forget(box_id)
                        await self._store.count(prefix, "boxes_failed")
                    if refused and isinstance(exc, errors.UpstreamUnavailableError):
                        raise refused from None
                    raise
                try:
                    await self._create_on(worker, box_id, generation, spec, ends_at)
                    return await self._change(box_id, status="configured")
                except TRY_ELSEWHERE as exc:
                    log.warning("box %s cannot be created on %s: %s", box_id, worker.name, exc)
                    tried[worker.name] = exc.message
                except (errors.InvalidArgumentError, errors.UnsupportedError) as exc:
                    if not host_access.depends_on_operator(spec):
                        await self._forget(box_id)
                        raise
                    tried[worker.name], refused = exc.message, exc  # another one's operator may allow it
                except Exception:  # one that is broken off leaves its row, to be finished or undone
                    await self._forget(box_id)
                    await self._store.count(prefix, "boxes_failed")
                    raise
            raise AssertionError("every worker was tried, and _reserve did not say so")

    async def made_before(self, request_key: str | None, spec: Mapping[str, Any]) -> Box | None:
        """The box that an earlier attempt at the same request made, which a crash kept from being answered. What
        such a one left half made is finished or undone first. `request_key`: the owner and the Idempotency-Key;
        whoever asks has that key's lease.

        Raises KeyReusedError when the box was asked for differently.
        """
        left = await self._store.find_box_by_request(request_key) if request_key else None
        if left is None or self._is_past(left):
            return None
        if not boxspec.is_same(left.spec, spec):
            raise errors.KeyReusedError("this Idempotency-Key was used for a request with another body")
        async with self.alone(left.id):
            box = await self._store.get_box(left.id)
            if box and box.status in ("creating", "removing"):
                await self.observe(box)
                box = await self._store.get_box(left.id)
            if box and box.status == "creating":
                await self._forget(box.id)  # whoever was to make it does not answer; what it has is then a stray
                box = None
        if box and box.status == "removing":
            raise errors.UpstreamUnavailableError(
                f"box {box.id}, which this request made, is being removed, and its worker does not answer; try again"
            )
        return box

    def _is_past(self, box: Box) -> bool:
        """Whether the key of the request that made the box may be another request's by now."""
        return box.created_at + REQUEST_SECONDS <= self._clock()

    async def _reserve(
        self,
        box_id: str,
        prefix: str,
        spec: dict[str, Any],
        generation: int,
        tried: Mapping[str, str],
        *,
        home: str | None,
        only: str | None = None,
        request_key: str | None = None,
    ) -> Worker:
        """Choose a worker that was not tried yet and write the row, or move it there, in one step. `home` is the
        id of the one worker that has the box's volumes, `only` of the one that can be for another reason."""
        need = Need(spec["cpus"], spec["memory_mib"], home)
        async with self.writing(box_id) as tx:
            if request_key and (other := await tx.find_box_by_request(request_key)) and other.id != box_id:
                if not self._is_past(other):
                    raise errors.LeaseLostError("another attempt at this request has gone on; ask again")
                await tx.update_box(other.id, request_key=None)
            await self._volumes.check_ready(tx, spec["mounts"])
            candidates = [c for c in await self._fleet.candidates(tx) if only in (None, c.worker.id)]
            placement = place(need, [c for c in candidates if c.worker.name not in tried])
            if not placement.workers:
                raise not_placed("box", need, placement, tried)
            now = self._clock()
            if generation > 1 and await tx.get_box(box_id):  # else its worker was removed, and the row with it
                moved = {"worker_id": placement.workers[0].id, "generation": generation, "updated_at": now}
                await tx.update_box(box_id, **moved)
                return placement.workers[0]
            await self._refuse_too_many(tx, prefix)
            await tx.insert_box(
                Box(
                    id=box_id,
                    prefix=prefix,
                    name=spec["name"],
                    worker_id=placement.workers[0].id,
                    generation=generation,
                    status="creating",
                    spec=spec,
                    cpus=spec["cpus"],
                    memory_mib=spec["memory_mib"],
                    labels=spec["labels"],
                    pid=None,
                    exit_code=None,
                    error=None,
                    created_at=now,
                    updated_at=now,
                    started_at=None,
                    stopped_at=None,
                    request_key=request_key,
                )
            )
            return placement.workers[0]

    async def _refuse_too_many(self, tx: Tables, prefix: str) -> None:
        limit = self._policy.max_boxes_per_prefix
        if limit is not None and await tx.count_boxes(prefix) >= limit:
            raise errors.ResourceExhaustedError(
                f"prefix '{prefix}' has {limit} boxes, as many as this server allows; remove one first"
            )

    @asynccontextmanager
    async def being_made(
        self, prefix: str, spec: dict[str, Any], *, only: str | None = None, request_key: str | None = None
    ) -> AsyncIterator[tuple[pb.BoxRef, Worker]]:
        """A new box's row and reservation around the one call that makes the box with a disk of its own.
        Configured afterwards; where that fails, nothing is left of it. See `made_before` for `request_key`."""
        spec["mounts"], home = await self._volumes.resolve(prefix, spec.get("mounts", []))
        box_id = ids.new_id()
        async with self.alone(box_id):
            worker = await self._reserve(box_id, prefix, spec, 1, {}, home=home, only=only, request_key=request_key)
            try:
                yield pb.BoxRef(box_id=box_id, generation=1), worker
            except Exception:  # one that is broken off leaves its row, to be finished or undone
                await self._store.count(prefix, "boxes_failed")
                box = await self._change(box_id, status="removing")
                try:
                    await self._clean_up(box)
                except errors.BoxliteError as exc:
                    log.warning("box %s will be cleaned up later: %s", box_id, exc)  # by `reconcile`
                raise
            await self._change(box_id, status="configured")

    async def _create_on(
        self, worker: Worker, box_id: str, generation: int, spec: dict[str, Any], ends_at: float
    ) -> None:
        request = pb.CreateBoxRequest(
            box=pb.BoxRef(box_id=box_id, generation=generation), spec=boxspec.to_proto(spec, box_id)
        )
        timeout = max(ends_at - asyncio.get_running_loop().time(), LAST_TRY_SECONDS)
        await self._fleet.call(worker.id, "CreateBox", request, timeout=timeout)

    # ---- operating ------------------------------------------------------------------------------------

    async def start(self, prefix: str, id_or_name: str) -> Box:
        """Start a box; of a running one the state. Raises ResourceExhaustedError when its worker is full."""
        async with self.locked(prefix, id_or_name) as box, self._schedule.use(box):
            return await self._start(box)

    async def ensure_running(self, prefix: str, id_or_name: str) -> Box:
        """The box, started if it does not run. Raises StoppedError where the box forbids that."""
        box = await self.get(prefix, id_or_name)
        if box.status == "running" and not await self.is_busy(box.id):
            return box
        async with self.locked(prefix, box.id) as box:
            if box.status == "running":
                return box
            if box.status == "stopped" and not box.spec["auto_resume"]:  # one that is to run again is not stopped
                raise errors.StoppedError(f"box '{id_or_name}' is stopped and does not resume by itself; start it")
            return await self._start(box)

    async def _start(self, box: Box, *, again: bool = False) -> Box:
        """`again`: by ourselves, because it ought to run; what then hinders it changes nothing about that."""
        if await self._store.is_restoring(box.id):
            raise errors.InvalidStateError(f"box {box.id} is being restored from a snapshot; try again in a moment")
        wanted: dict[str, Any] = {} if box.desired == "running" else {"desired": "running", "engine_life": None}
        if box.restarts and not again:
            wanted |= {"restarts": 0, "restarted_at": None}
        if box.status not in RESERVING:
            box = await self.reserve_again(box, **wanted)
        elif wanted:
            box = await self._change(box.id, **wanted)
        try:
            state = await self._fleet.call(box.worker_id, "StartBox", ref(box), timeout=CALL_SECONDS)
        except errors.BoxliteError as exc:
            if not again and not isinstance(exc, UNCERTAIN):
                box = await self._change(box.id, desired="stopped")
            await self.observe(box)
            now = await self._store.get_box(box.id)
            if now and now.status == "failed":
                is_gone = was_gone(state_of(now))
                await self._change(box.id, error=now.error if is_gone else exc.message)
            raise
        if state.status == pb.BOX_STATUS_STOPPED and (again or state.interrupted):
            # It has ended at once: by itself, or killed by an engine that is about to end?
            box = await self._change(box.id, engine_life=state.engine_life or None)
            await self.follow(box)
            return await self._store.get_box(box.id) or box
        return await self.apply(box, state)

    async def restart(self, seen: Box, number: int) -> Box | None:
        """Start a box that should run, in its turn; the box, unless it has changed since it was `seen`. That this
        was tried for the `number`th time is noted, unless what hindered it says nothing about the box."""
        async with self.alone(seen.id):
            box = await self._store.get_box(seen.id)
            if box is None or box.desired != "running" or box.status not in RESTARTED:
                return None
            if (box.restarts, box.restarted_at) != (seen.restarts, seen.restarted_at):
                return None  # another coordinator was faster
            try:
                started = await self._start(box, again=True)
            except _NOT_THE_BOX:
                raise
            except errors.BoxliteError:
                await self._change(box.id, restarts=number, restarted_at=self._clock())
                raise
            if await self._store.get_box(box.id) is None:  # it has ended, and was to go then
                return started
            return await self._change(box.id, restarts=number, restarted_at=self._clock())

    async def stop(
        self, prefix: str, id_or_name: str, timeout_seconds: float | None, *, unless: Unless | None = None
    ) -> Box:
        """Stop a box: SIGTERM, and SIGKILL after the timeout. A box made with auto_remove is gone afterwards;
        the answer is its last state. `unless` is asked once it is this operation's turn."""
        patience = DEFAULT_STOP_SECONDS if timeout_seconds is None else min(timeout_seconds, MAX_STOP_SECONDS)
        async with self.locked(prefix, id_or_name) as box:
            if unless and await unless(box):
                return box
            before = box
            status = "stopping" if box.status in ("running", "paused") else box.status
            if (box.status, box.desired) != (status, "stopped"):
                box = await self._change(box.id, status=status, desired="stopped")
            try:
                state = await self._fleet.call(
                    box.worker_id,
                    "StopBox",
                    pb.StopBoxRequest(box=ref(box), timeout_seconds=patience),
                    timeout=patience + CALL_SECONDS,
                )
            except UNCERTAIN:
                raise  # it is finished as soon as the worker answers again
            except errors.BoxliteError:
                await self.observe(await self._change(box.id, status=before.status, desired=before.desired))
                raise
            stopped = await self.apply(box, state)
            if stopped.spec["auto_remove"] and stopped.status == "stopped":
                await self._remove(stopped, force=True)
            return stopped

    async def remove(self, prefix: str, id_or_name: str, *, force: bool, unless: Unless | None = None) -> str | None:
        """Remove a box and all it holds. A running one only with `force`; with `force` the box of a worker
        that cannot be reached is forgotten too, and cleaned up there when the worker comes back: then the answer
        says so. `unless` is asked once it is this operation's turn."""
        async with self.locked(prefix, id_or_name, removing=True) as box:
            if unless and await unless(box):
                return None
            return await self._remove(box, force=force)

    async def _remove(self, box: Box, *, force: bool) -> str | None:
        if not force:
            await self._fleet.check_reachable(box.worker_id)
        if box.status == "running" and not force:
            raise errors.InvalidStateError(f"box '{box.name or box.id}' is running; stop it first, or use force")
        request = pb.RemoveBoxRequest(box=ref(box), force=force)
        async with self.writing(box.id) as tx:
            await tx.update_box(box.id, status="removing")
        left = None
        try:
            await self._fleet.call(box.worker_id, "RemoveBox", request, timeout=CALL_SECONDS)
        except (errors.UpstreamUnavailableError, errors.TimedOutError) as exc:
            if not force:
                if not isinstance(exc, UNCERTAIN):
                    async with self.writing(box.id) as tx:
                        await tx.update_box(box.id, status=box.status)
                raise  # perhaps it was done; then it is finished as soon as the worker answers again
            left = f"box {box.id} is forgotten; its container is removed when its worker is back: {exc.message}"
            log.warning("%s", left)
        except errors.BoxliteError:
            async with self.writing(box.id) as tx:
                await tx.update_box(box.id, status=box.status)
            await self.observe(box)
            raise
        await self._forget(box.id)
        return left
