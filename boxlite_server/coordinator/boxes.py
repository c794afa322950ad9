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
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from .. import errors, ids
from .._gen import worker_pb2 as pb
from . import attachments, boxspec, plan, scheduler
from .fleet import Fleet
from .leases import Leases
from .link import target_of
from .plan import Kind
from .policy import REQUEST_SECONDS, Policy
from .schedule import Schedule
from .scheduler import Candidate, Need
from .store import RESERVING, Box, Page, Store, Tables, Worker
from .volumes import Volumes

log = logging.getLogger(__name__)

CREATE_SECONDS = 280.0  # on all workers that are tried; an image pull is part of it; released clients give up after 300
LAST_TRY_SECONDS = 5.0
CALL_SECONDS = 60.0
DEFAULT_STOP_SECONDS = 30.0
MAX_STOP_SECONDS = 240.0

# What is the worker's trouble and not the box's.
_TRY_ELSEWHERE = (errors.UpstreamUnavailableError, errors.ResourceExhaustedError, errors.EngineError)

# Afterwards nobody knows whether it was done; any other error says that it was not.
UNCERTAIN = (errors.UnreachableError, errors.TimedOutError, errors.EngineError)

RESTARTED = ("configured", "failed", "stopped")  # states of a box that is to run again

Unless = Callable[[Box], Awaitable[bool]]


class Boxes:
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
        self._store = store
        self._fleet = fleet
        self._volumes = volumes
        self._schedule = schedule
        self._leases = leases
        self._policy = policy
        self._clock = clock

    # ---- reading --------------------------------------------------------------------------------------

    async def get(self, prefix: str, id_or_name: str) -> Box:
        box = await self._store.find_box(prefix, id_or_name)
        if box is None:
            raise errors.NotFoundError(f"box not found: {id_or_name}")
        return box

    async def list(self, prefix: str, **filters: Any) -> Page:
        """See `Store.list_boxes`."""
        return await self._store.list_boxes(prefix, **filters)

    async def is_busy(self, box_id: str) -> bool:
        """Whether an operation on the box is under way, through whatever coordinator."""
        return await self._leases.is_held(_lease(box_id))

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
                except _TRY_ELSEWHERE as exc:
                    log.warning("box %s cannot be created on %s: %s", box_id, worker.name, exc)
                    tried[worker.name] = exc.message
                except (errors.InvalidArgumentError, errors.UnsupportedError) as exc:
                    if not attachments.depends_on_operator(spec):
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
        if box and not boxspec.is_same(box.spec, spec):
            raise errors.KeyReusedError("this Idempotency-Key was used for a request with another body")
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
            placement = scheduler.place(need, [c for c in candidates if c.worker.name not in tried])
            if not placement.workers:
                raise scheduler.not_placed("box", need, placement, tried)
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

    async def _clean_up(self, box: Box) -> None:
        """Forget a box, once its worker has nothing left of it."""
        request = pb.RemoveBoxRequest(box=ref(box), force=True)
        await self._fleet.call(box.worker_id, "RemoveBox", request, timeout=CALL_SECONDS)
        await self._forget(box.id)

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
        if box.status not in RESERVING:
            box = await self.reserve_again(box)
        if box.desired != "running":
            box = await self._change(box.id, desired="running", engine_life=None)
        try:
            state = await self._fleet.call(box.worker_id, "StartBox", ref(box), timeout=CALL_SECONDS)
        except errors.BoxliteError as exc:
            if not again and not isinstance(exc, UNCERTAIN):
                box = await self._change(box.id, desired="stopped")
            await self.observe(box)
            now = await self._store.get_box(box.id)
            if now and now.status == "failed":
                await self._change(box.id, error=now.error or exc.message)
            raise
        return await self.apply(box, state)

    async def reserve_again(self, box: Box) -> Box:
        """A stopped box gave its room away; take it again in one step, or say why not."""
        async with self.writing(box.id) as tx:
            worker = await tx.get_worker(box.worker_id)
            if worker is None:
                raise _forgotten(box.id)
            candidate = Candidate(worker, await tx.load(worker.id), True)
            if reason := scheduler.no_room(Need(box.cpus, box.memory_mib), candidate):
                raise errors.ResourceExhaustedError(
                    f"box {box.id} cannot start: its worker {worker.name} {reason}; stop another box there first"
                )
            return await self._write(tx, box.id, status="configured")

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
        """Under the box's lock: ask its worker how it is, and do what follows from that; see `plan.judge`. Only
        the start of a box that should run again is left, and its row says so. What was done."""
        try:
            state: pb.Box | None = await self._fleet.call(box.worker_id, "GetBox", ref(box), timeout=CALL_SECONDS)
        except errors.NotFoundError:
            state = None
        worker = await self._fleet.get(box.worker_id)
        life = (state.engine_life if state else None) or worker.engine_life
        verdict = plan.judge(plan.state_of(box), plan.seen_of(state) if state else None, life)
        kind = verdict.kind if verdict else None
        if verdict:
            log.info("box %s of worker %s: %s, since %s", box.id, worker.name, kind, verdict.reason)
        match kind:
            case Kind.MARK_GONE:
                await self._change(box.id, status="failed", pid=None, published=[], error=plan.gone(worker.name))
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
            case _ if state is not None and (verdict or box.status == plan.STATUS[state.status]):
                await self._adopt(box, state)
        return kind

    async def _await_restart(self, box: Box, state: pb.Box | None, reason: str) -> None:
        changes: dict[str, Any] = {"pid": None, "published": [], "error": f"{reason}; it is being started again"}
        if state and state.status == pb.BOX_STATUS_STOPPED:
            changes["engine_life"] = plan.OVER  # that this run ended so is known from here on
        await self._change(box.id, status="configured", **changes)

    async def _adopt(self, box: Box, state: pb.Box) -> None:
        now = await self.apply(box, state)
        if now.status == "stopped" and now.spec["auto_remove"]:
            await self._clean_up(await self._change(box.id, status="removing"))

    async def restart(self, box_id: str) -> Box | None:
        """Start a box that should run, in its turn; the box, unless that is not so any more."""
        async with self.alone(box_id):
            box = await self._store.get_box(box_id)
            if box is None or box.desired != "running" or box.status not in RESTARTED:
                return None
            return await self._start(box, again=True)

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
        status = plan.STATUS[state.status]
        worker = await self._fleet.get(box.worker_id)
        changes: dict[str, Any] = {
            "status": status,
            "pid": state.pid if state.HasField("pid") else None,
            "exit_code": state.exit_code if state.HasField("exit_code") else None,
            "error": None,
            "published": attachments.published(state, _host_of(worker)),
            "desired": "running" if status in ("running", "paused") else "stopped",
        }
        if status in ("running", "paused"):
            changes["engine_life"] = state.engine_life or worker.engine_life
        if status == "running" and box.status != "running":
            changes["started_at"] = self._clock()
        if status == "stopped" and box.status != "stopped":
            changes["stopped_at"] = self._clock()
        return await self._change(box.id, **changes)

    # ---- rows and turns -------------------------------------------------------------------------------

    async def _change(self, box_id: str, **changes: Any) -> Box:
        async with self.writing(box_id) as tx:
            return await self._write(tx, box_id, **changes)

    async def _write(self, tx: Tables, box_id: str, **changes: Any) -> Box:
        before = await tx.get_box(box_id)
        if before is None:  # rows go only under the box's lock, or with their worker
            raise _forgotten(box_id)
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
        return self._leases.writing(_lease(box_id))

    @asynccontextmanager
    async def alone(self, box_id: str) -> AsyncIterator[None]:
        """Operations on one box in turn. Raises BusyError when the turn does not come."""
        async with self._leases.hold(_lease(box_id), f"box {box_id}"):
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


def _host_of(worker: Worker) -> str:
    return target_of(worker.url).rpartition(":")[0].strip("[]")


def ref(box: Box) -> pb.BoxRef:
    """The box as a worker knows it."""
    return pb.BoxRef(box_id=box.id, generation=box.generation)


def _forgotten(box_id: str) -> errors.BoxliteError:
    return errors.UpstreamUnavailableError(f"box {box_id} was forgotten, together with its worker")


def _lease(box_id: str) -> str:
    return f"box/{box_id}"
