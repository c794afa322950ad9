"""Creates boxes: each on a worker that has room, and once for each request.

The row comes first: the id is minted, the row written and the capacity reserved in one transaction, and only then is
the worker called. Every call to a worker is idempotent by (box id, generation), so whatever a crash leaves behind can
be asked about and finished.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ... import errors, ids
from ..._gen import worker_pb2 as pb
from ..fleet.calls import TRY_ELSEWHERE, UNCERTAIN, Calls
from ..fleet.placement import Need, not_placed, place
from ..fleet.pulls import FailedPulls
from ..fleet.registry import Fleet
from ..limits import CREATE_SECONDS, LAST_TRY_SECONDS, REQUEST_SECONDS, Policy
from ..spec import Spec
from ..states import BoxStatus, DesiredState
from ..store import Box, Store, Tables, Worker
from .observing import Observer
from .turns import Turns, forgotten
from .volumes import Volumes

log = logging.getLogger(__name__)


class Creation:
    """Makes boxes, over the store and the fleet; `clock` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        calls: Calls,
        volumes: Volumes,
        turns: Turns,
        observer: Observer,
        pulls: FailedPulls,
        policy: Policy,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._calls = calls
        self._volumes = volumes
        self._turns = turns
        self._observer = observer
        self._pulls = pulls
        self._policy = policy
        self._clock = clock

    async def create(self, prefix: str, request: Mapping[str, Any], *, request_key: str | None = None) -> Box:
        """Create a box on the least loaded worker that has room. A box with volumes goes to the worker that has
        them. With a `request_key`, see `made_before`. A request with `start` has the box started by the same call to
        the worker; a box that cannot be started is not made. Only a worker of an earlier version, and a crash in the
        middle, leave such a box configured.

        When a worker cannot create the box, the next one is tried under the next generation: a container that still
        comes about at the first worker is an orphan there. A worker that does not answer in time has used up the
        time of the others too: the box is forgotten, and its container, if any, is an orphan.

        Raises AlreadyExistsError, ImageError, InvalidArgumentError, UnsupportedError, NotFoundError (of a volume),
        UpstreamUnavailableError (no worker can take it; the text says why), TimedOutError; with `start` also what a
        start raises.
        """
        spec = Spec.of_request(request, self._policy)
        if left := await self.made_before(request_key, spec):
            return left
        spec, home = await self._resolved(prefix, spec)
        box_id = ids.new_id()
        async with self._turns.alone(box_id):
            return await self._create_somewhere(box_id, prefix, spec, home, request_key, bool(request.get("start")))

    async def _create_somewhere(
        self, box_id: str, prefix: str, spec: Spec, home: str | None, request_key: str | None, start: bool
    ) -> Box:
        tried: dict[str, errors.BoxliteError] = {}
        refused: errors.BoxliteError | None = None
        ends_at = asyncio.get_running_loop().time() + CREATE_SECONDS
        for generation in itertools.count(1):
            try:
                worker = await self._reserve(
                    box_id, prefix, spec, generation, tried, home=home, request_key=request_key, start=start
                )
            except errors.BoxliteError as exc:
                if tried:
                    await self._turns.forget(box_id)
                    await self._store.count(prefix, "boxes_failed")
                if refused and isinstance(exc, (errors.UpstreamUnavailableError, errors.ImageError)):
                    raise refused from None
                raise
            try:
                state = await self._create_on(worker, box_id, generation, spec, ends_at, start)
                return await self._made(box_id, state, worker)
            except TRY_ELSEWHERE as exc:
                log.warning("box %s cannot be created on %s: %s", box_id, worker.name, exc)
                tried[worker.name] = exc
                if isinstance(exc, errors.LocalImageError):
                    self._pulls.note(spec.image, worker.id)
            except (errors.InvalidArgumentError, errors.UnsupportedError) as exc:
                if not spec.depends_on_operator:
                    await self._turns.forget(box_id)
                    raise
                tried[worker.name] = refused = exc  # another worker's operator may allow it
            except Exception:  # a cancelled creation leaves its row, to be finished or undone
                await self._turns.forget(box_id)
                await self._store.count(prefix, "boxes_failed")
                raise
        raise AssertionError("every worker was tried, and _reserve did not say so")

    async def made_before(self, request_key: str | None, spec: Spec) -> Box | None:
        """The box that an earlier attempt at the same request made, when a crash kept the answer from its client.
        A box that the earlier attempt left half made is finished or undone first. `request_key`: the owner and the
        Idempotency-Key; the caller holds that key's lease.

        Raises KeyReusedError when the box was asked for differently.
        """
        left = await self._store.find_box_by_request(request_key) if request_key else None
        if left is None or self._is_past(left):
            return None
        if not left.spec.is_same(spec):
            raise errors.KeyReusedError("this Idempotency-Key was used for a request with another body")
        async with self._turns.alone(left.id):
            box = await self._store.get_box(left.id)
            if box and box.status in (BoxStatus.CREATING, BoxStatus.REMOVING):
                await self._observer.observe(box)
                box = await self._store.get_box(left.id)
            if box and box.status == BoxStatus.CREATING:
                await self._turns.forget(box.id)  # its worker does not answer; its container, if any, is an orphan
                box = None
        if box and box.status == BoxStatus.REMOVING:
            raise errors.UpstreamUnavailableError(
                f"box {box.id}, which this request made, is being removed, and its worker does not answer; try again"
            )
        return box

    def _is_past(self, box: Box) -> bool:
        """Whether the key of the request that made the box may be another request's by now."""
        return box.created_at + REQUEST_SECONDS <= self._clock()

    @asynccontextmanager
    async def being_made(
        self, prefix: str, spec: Spec, *, only: str | None = None, request_key: str | None = None
    ) -> AsyncIterator[tuple[pb.BoxRef, Worker]]:
        """Write a new box's row and reserve its room around the `with` block, which makes the box with a disk of
        its own by one call to the worker. Afterwards the box is configured; when the block fails, nothing is left of
        the box. Only where nobody knows whether the worker made the box, the row may stay, to be removed later.
        `only`: the id of the one worker that can make it. See `made_before` for `request_key`."""
        spec, home = await self._resolved(prefix, spec)
        box_id = ids.new_id()
        async with self._turns.alone(box_id):
            worker = await self._reserve(box_id, prefix, spec, 1, {}, home=home, only=only, request_key=request_key)
            try:
                yield pb.BoxRef(box_id=box_id, generation=1), worker
            except Exception as exc:  # a cancelled creation leaves its row, to be finished or undone
                await self._store.count(prefix, "boxes_failed")
                await self._undo(
                    box_id, refused=isinstance(exc, errors.BoxliteError) and not isinstance(exc, UNCERTAIN)
                )
                raise
            await self._turns.change(box_id, status=BoxStatus.CONFIGURED)

    async def _undo(self, box_id: str, *, refused: bool) -> None:
        """Remove what there is of a box that was not made. When its worker does not answer, the reconciler removes
        the box later; but a box that was `refused` is forgotten, since its client was told that there is none."""
        box = await self._turns.change(box_id, status=BoxStatus.REMOVING)
        try:
            await self._observer.clean_up(box)
        except errors.BoxliteError as exc:
            if refused:
                await self._turns.forget(box_id)
            else:
                log.warning("box %s will be cleaned up later: %s", box_id, exc)

    async def _create_on(
        self, worker: Worker, box_id: str, generation: int, spec: Spec, ends_at: float, start: bool
    ) -> pb.Box:
        box = pb.BoxRef(box_id=box_id, generation=generation, wish=int(start))
        request = pb.CreateBoxRequest(box=box, spec=spec.to_proto(box_id), start=start)
        timeout = max(ends_at - asyncio.get_running_loop().time(), LAST_TRY_SECONDS)
        return await self._calls.create_box(worker, request, timeout=timeout)

    async def _made(self, box_id: str, state: pb.Box, worker: Worker) -> Box:
        """The row of a box that was just made, as it is on disk."""
        if state.status == pb.BOX_STATUS_CONFIGURED:
            return await self._turns.change(box_id, status=BoxStatus.CONFIGURED, desired=DesiredState.STOPPED)
        box = await self._store.get_box(box_id)
        if box is None:
            raise forgotten(box_id)
        return await self._observer.started(box, state, worker, durable=True)

    async def _resolved(self, prefix: str, spec: Spec) -> tuple[Spec, str | None]:
        """The spec with the ids of its volumes, and the id of the one worker that has them."""
        mounts, home = await self._volumes.resolve(prefix, spec.mounts)
        return dataclasses.replace(spec, mounts=mounts), home

    # ---- rows -----------------------------------------------------------------------------------------

    async def _reserve(
        self,
        box_id: str,
        prefix: str,
        spec: Spec,
        generation: int,
        tried: Mapping[str, errors.BoxliteError],
        *,
        home: str | None,
        only: str | None = None,
        request_key: str | None = None,
        start: bool = False,
    ) -> Worker:
        """Choose a worker that was not tried yet and write the row, or move it there, in one step. `home`: the
        id of the one worker that has the box's volumes; `only`: that of the one worker that can make the box.

        The step need not be on disk when the worker is called: without its row, a box whose client has no answer yet
        is an orphan."""
        need = Need(spec.cpus, spec.memory_mib, home, disk_limit=spec.disk_size_gb is not None)
        async with self._turns.writing(box_id, durable=False) as tx:
            if request_key and (other := await tx.find_box_by_request(request_key)) and other.id != box_id:
                if not self._is_past(other):
                    raise errors.LeaseLostError("another attempt at this request has taken over; send it again")
                await tx.update_box(other.id, request_key=None)
            await self._volumes.check_ready(tx, spec.mounts)
            candidates = [c for c in await self._fleet.candidates(tx) if only in (None, c.worker.id)]
            untried = [c for c in candidates if c.worker.name not in tried]
            placement = place(need, untried, last=self._pulls.of(spec.image))
            if not placement.workers:
                raise not_placed("box", need, placement, tried)
            worker, now = placement.workers[0], self._clock()
            if generation > 1 and await tx.get_box(box_id):  # else its worker was removed, and the row with it
                await tx.update_box(box_id, worker_id=worker.id, generation=generation, updated_at=now)
                return worker
            await self._refuse_too_many(tx, prefix)
            row = _new_row(box_id, prefix, spec, worker.id, generation, request_key, now)
            await tx.insert_box(row._replace(desired=DesiredState.RUNNING, wish=1) if start else row)
            return worker

    async def _refuse_too_many(self, tx: Tables, prefix: str) -> None:
        limit = self._policy.max_boxes_per_prefix
        if limit is not None and await tx.count_boxes(prefix) >= limit:
            raise errors.ResourceExhaustedError(
                f"prefix '{prefix}' has {limit} boxes, as many as this server allows; remove one first"
            )


def _new_row(
    box_id: str,
    prefix: str,
    spec: Spec,
    worker_id: str,
    generation: int,
    request_key: str | None,
    now: float,
) -> Box:
    return Box(
        id=box_id,
        prefix=prefix,
        name=spec.name,
        worker_id=worker_id,
        generation=generation,
        status=BoxStatus.CREATING,
        spec=spec,
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        labels=dict(spec.labels),
        pid=None,
        exit_code=None,
        error=None,
        created_at=now,
        updated_at=now,
        started_at=None,
        stopped_at=None,
        request_key=request_key,
    )
