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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from time import perf_counter
from typing import Any

from ... import errors, ids
from ..._gen import worker_pb2 as pb
from ...metrics import coordinator as metrics
from ..fleet.calls import TRY_ELSEWHERE, UNCERTAIN, Calls
from ..fleet.placement import Candidate, Need, choose
from ..fleet.registry import Fleet
from ..limits import CREATE_SECONDS, LAST_TRY_SECONDS, REQUEST_SECONDS, Policy
from ..spec import Spec
from ..states import BoxStatus, DesiredState, WorkerStatus
from ..store import Box, Store, Tables, Use, Worker
from ..tenants.quotas import QuotaRows
from .images import Images
from .observing import Observer
from .turns import Turns, forgotten
from .volumes import Volumes
from .warm import Warm, key_of

INTERRUPTED = (errors.DatabaseUnavailableError, errors.LeaseLostError)

log = logging.getLogger(__name__)

GIVE_UPS = 3  # times that warm boxes are removed to make room for one box, when others take that room meanwhile


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
        warm: Warm,
        images: Images,
        quotas: QuotaRows,
        policy: Policy,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._calls = calls
        self._volumes = volumes
        self._turns = turns
        self._observer = observer
        self._warm = warm
        self._images = images
        self.pulls = images.pulls
        self._quotas = quotas
        self._policy = policy
        self._clock = clock

    async def create(
        self,
        prefix: str,
        request: Mapping[str, Any],
        *,
        request_key: str | None = None,
        tenant: str | None = None,
    ) -> Box:
        """Create a box on the least loaded worker that has room. A box with volumes goes to the worker that has
        them. With a `request_key`, see `made_before`; `tenant`: see `images`. A request with `start` has the box
        started by the same call to the worker; a box that cannot be started is not made, and where the worker may have
        started it, no other worker is tried. Only a worker of an earlier version, and a crash in the middle, leave such
        a box configured.

        When a worker cannot create the box, the next one is tried under the next generation: a container that still
        comes about at the first worker is an orphan there. A worker that does not answer in time has used up the
        time of the others too: the box is forgotten, and its container, if any, is an orphan.

        Raises AlreadyExistsError, ImageError, InvalidArgumentError, UnsupportedError, NotFoundError (of a volume),
        QuotaExceededError, UpstreamUnavailableError (no worker can take it; the text says why), TimedOutError; with
        `start` also what a start raises.
        """
        spec = Spec.of_request(request, self._policy)
        if left := await self.made_before(request_key, spec):
            return left
        start = bool(request.get("start"))
        await self._images.admit(spec.image, tenant)
        if claimed := await self._claim(prefix, spec, request_key, start):
            return claimed
        spec, home = await self._resolved(prefix, spec)
        box_id = ids.new_id()
        async with self._turns.alone(box_id):
            worker = await self._reserve(box_id, prefix, spec, 1, {}, home=home, request_key=request_key, start=start)
            with _unknown_when_interrupted(request_key):
                return await self._create_somewhere(worker, box_id, prefix, spec, home, request_key, start, tenant)

    async def _claim(self, prefix: str, spec: Spec, request_key: str | None, start: bool) -> Box | None:
        """Make a warm box the client's. None when there is none that fits, or the one that there was is gone."""
        key = key_of(spec)
        if key is None or not await self._store.has_warm(key):
            self._warm.count_miss(prefix, key)
            return None
        began = perf_counter()
        async with self._store.transaction() as tx:
            await self._own_request(tx, request_key)
            await self._quotas.check(tx, prefix, _use(spec, start))
            if spec.name and await tx.is_named(prefix, spec.name):
                raise errors.AlreadyExistsError(f"box '{spec.name}' already exists")
            candidates = await self._fleet.candidates(tx)
            ready = [c.worker.id for c in candidates if c.reachable and c.worker.status == WorkerStatus.ACTIVE]
            box = await tx.claim_box(key, ready, _claimed(prefix, spec, request_key, start, self._clock()))
        if box is None:
            self._warm.count_miss(prefix, key)
            return None
        self._warm.count_claim(prefix)
        metrics.CREATE_SECONDS["claim"].observe(perf_counter() - began)
        return await self._create_claimed(box, request_key, start)

    async def _create_claimed(self, box: Box, request_key: str | None, start: bool) -> Box | None:
        """Have the worker of a warm box make the box that the row says by now. None: it cannot, and the box is gone.
        The row's claim is on disk, and so is what the worker was told: after a crash, the rest follows from these."""
        ends_at = asyncio.get_running_loop().time() + CREATE_SECONDS
        async with self._turns.alone(box.id):
            if await self._store.get_box(box.id) is None:
                return None  # another coordinator took the claim for one that was broken off
            with _unknown_when_interrupted(request_key):
                try:
                    worker = await self._fleet.reachable(box.worker_id)
                    state = await self._create_on(worker, box.id, box.generation, box.spec, ends_at, start)
                    with metrics.CREATE_SECONDS["write"].time():
                        return await self._made(box.id, state, worker, start, durable=False)
                except INTERRUPTED:
                    raise  # the row stays: the box is finished or undone later
                except TRY_ELSEWHERE as exc:
                    log.warning("warm box %s cannot be used, making another box: %s", box.id, exc)
                    if not await self._undo(box.id, refused=True) and start and isinstance(exc, UNCERTAIN):
                        await self._store.count(box.prefix, "boxes_failed")  # it may run there, and must not run twice
                        raise
                    return None
                except Exception:
                    await self._failed(box.id, box.prefix)
                    raise

    async def _create_somewhere(
        self,
        worker: Worker,
        box_id: str,
        prefix: str,
        spec: Spec,
        home: str | None,
        request_key: str | None,
        start: bool,
        tenant: str | None,
    ) -> Box:
        """Make the box whose room is reserved on `worker`, there or on the next worker that can."""
        tried: dict[str, errors.BoxliteError] = {}
        refused: errors.BoxliteError | None = None
        ends_at = asyncio.get_running_loop().time() + CREATE_SECONDS
        for generation in itertools.count(1):
            try:
                state = await self._create_for(tenant, worker, box_id, generation, spec, ends_at, start)
                with metrics.CREATE_SECONDS["write"].time():
                    return await self._made(box_id, state, worker, start)
            except INTERRUPTED:
                raise  # the row stays: the box is finished or undone later
            except TRY_ELSEWHERE as exc:
                if start and isinstance(exc, UNCERTAIN):  # the box may run there, and must not run twice
                    await self._failed(box_id, prefix)
                    raise
                log.warning("box %s cannot be created on %s: %s", box_id, worker.name, exc)
                tried[worker.name] = exc
                if isinstance(exc, errors.LocalImageError):
                    self.pulls.note(spec.image, worker.id)
            except (errors.InvalidArgumentError, errors.UnsupportedError) as exc:
                if not (spec.depends_on_operator or isinstance(exc, errors.UnsupportedError)):
                    await self._turns.forget(box_id)
                    raise
                tried[worker.name] = refused = exc  # another worker's operator may allow it
            except Exception:  # a cancelled creation leaves its row, to be finished or undone
                await self._failed(box_id, prefix)
                raise
            try:
                worker = await self._reserve(
                    box_id, prefix, spec, generation + 1, tried, home=home, request_key=request_key, start=start
                )
            except errors.BoxliteError as exc:
                await self._failed(box_id, prefix)
                if refused and isinstance(exc, (errors.UpstreamUnavailableError, errors.ImageError)):
                    raise refused from None
                raise
        raise AssertionError("every worker was tried, and _reserve did not say so")

    async def _failed(self, box_id: str, prefix: str) -> None:
        await self._turns.forget(box_id)
        await self._store.count(prefix, "boxes_failed")

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
        self,
        prefix: str,
        spec: Spec,
        *,
        only: str | None = None,
        request_key: str | None = None,
        warm: str | None = None,
    ) -> AsyncIterator[tuple[pb.BoxRef, Worker]]:
        """Write a new box's row and reserve its room around the `with` block, which makes the box with a disk of
        its own by one call to the worker. Afterwards the box is configured; when the block fails, nothing is left of
        the box. Only where nobody knows whether the worker made the box, the row may stay, to be removed later.
        `only`: the id of the one worker that can make it. See `made_before` for `request_key`. `warm`: what a request
        has to ask for to claim the box, which is nobody's."""
        spec, home = await self._resolved(prefix, spec)
        box_id = ids.new_id()
        async with self._turns.alone(box_id):
            worker = await self._reserve(
                box_id, prefix, spec, 1, {}, home=home, only=only, request_key=request_key, warm=warm
            )
            with _unknown_when_interrupted(request_key):
                try:
                    yield pb.BoxRef(box_id=box_id, generation=1), worker
                except Exception as exc:  # a cancelled creation leaves its row, to be finished or undone
                    await self._store.count(prefix, "boxes_failed")
                    await self._undo(
                        box_id, refused=isinstance(exc, errors.BoxliteError) and not isinstance(exc, UNCERTAIN)
                    )
                    raise
                await self._turns.change(box_id, status=BoxStatus.CONFIGURED)

    async def _undo(self, box_id: str, *, refused: bool) -> bool:
        """Remove what there is of a box that was not made; returns whether nothing is left. When its worker does not
        answer, the reconciler removes the box later; but a box that was `refused` is forgotten, since its client was
        told that there is none."""
        box = await self._turns.change(box_id, status=BoxStatus.REMOVING)
        try:
            await self._observer.clean_up(box)
        except errors.BoxliteError as exc:
            if refused:
                await self._turns.forget(box_id)
            else:
                log.warning("box %s will be cleaned up later: %s", box_id, exc)
            return False
        return True

    async def _create_for(
        self, tenant: str | None, worker: Worker, box_id: str, generation: int, spec: Spec, ends_at: float, start: bool
    ) -> pb.Box:
        """Have the worker make the box, and note what it has pulled for that. A pull that takes credentials of its host
        comes before the box and by itself, since it is noted before it begins."""
        create = partial(self._create_on, worker, box_id, generation, spec, ends_at, start, tenant is not None)
        try:
            state = await create()
        except errors.PrivateImageError:
            try:
                async with asyncio.timeout(_left(ends_at)):
                    await self._images.pull_at(worker, spec.image, tenant)
            except TimeoutError:
                raise errors.TimedOutError(f"image {spec.image} is still being pulled; ask again") from None
            state = await create()
        if state.pulled:
            await self._images.note_pulled(spec.image, tenant, worker.id, is_private=state.private_image)
        return state

    async def _create_on(
        self,
        worker: Worker,
        box_id: str,
        generation: int,
        spec: Spec,
        ends_at: float,
        start: bool,
        ask_first: bool = False,
    ) -> pb.Box:
        box = pb.BoxRef(box_id=box_id, generation=generation, wish=int(start))
        request = pb.CreateBoxRequest(box=box, spec=spec.to_proto(box_id), start=start, ask_first=ask_first)
        with metrics.CREATE_SECONDS["make"].time():
            return await self._calls.create_box(worker, request, timeout=_left(ends_at))

    async def _made(self, box_id: str, state: pb.Box, worker: Worker, start: bool, *, durable: bool = True) -> Box:
        """The row of a box that was just made, as it is on disk if `durable`. `start`: the worker was asked to start
        the box."""
        if not start:
            return await self._turns.change(box_id, status=BoxStatus.CONFIGURED, durable=durable)
        if state.status == pb.BOX_STATUS_CONFIGURED:
            return await self._turns.change(box_id, status=BoxStatus.CONFIGURED, desired=DesiredState.STOPPED)
        box = await self._store.get_box(box_id)
        if box is None:
            raise forgotten(box_id)
        return await self._observer.started(box, state, worker, durable=durable)

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
        warm: str | None = None,
    ) -> Worker:
        """Choose a worker that was not tried yet and write the row, or move it there, in one step. `home`: the
        id of the one worker that has the box's volumes; `only`: that of the one worker that can make the box. Warm
        boxes are given up where no worker has room; a `warm` box is made only where there is room for another one.

        The step need not be on disk when the worker is called: without its row, a box whose client has no answer yet
        is an orphan."""
        need = Need(spec.cpus, spec.memory_mib, home, disk_limit=spec.disk_size_gb is not None)
        row = _new_row(box_id, prefix, spec, generation, request_key, self._clock())
        row = row._replace(desired=DesiredState.RUNNING, wish=1) if start else row._replace(warm=warm)
        with metrics.CREATE_SECONDS["place"].time():
            for _ in range(GIVE_UPS):
                placed = await self._place(row, need, tried, only)
                if not isinstance(placed, (errors.ResourceExhaustedError, errors.UpstreamUnavailableError)) or warm:
                    break
                if not await self._warm.give_up(need._replace(worker_id=only or home), tried):
                    break
            else:
                placed = await self._place(row, need, tried, only)
        if isinstance(placed, Worker):
            return placed
        if not warm:
            async with self._store.transaction(durable=False) as tx:
                await tx.tell(prefix, "box.not_placed", name=spec.name, error_message=placed.public[:1000])
        raise placed

    async def _place(
        self, row: Box, need: Need, tried: Mapping[str, errors.BoxliteError], only: str | None
    ) -> Worker | errors.BoxliteError:
        """Returns the chosen worker, or the error that says why none takes the box."""
        async with self._turns.writing(row.id, durable=False) as tx:
            await self._own_request(tx, row.request_key, row.id)
            await self._volumes.check_ready(tx, row.spec.mounts)
            candidates = [c for c in await self._fleet.candidates(tx) if only in (None, c.worker.id)]
            untried = [c for c in candidates if c.worker.name not in tried]
            if row.warm:
                untried = [_with_another(row, candidate) for candidate in untried]
            try:
                worker = choose("box", need, untried, tried, last=self.pulls.of(row.spec.image))
            except errors.BoxliteError as exc:
                return exc
            if row.desired == DesiredState.RUNNING:
                row = row._replace(engine_life=worker.engine_life)  # tells whether a run that nobody saw ended with it
            if row.generation > 1 and await tx.get_box(row.id):  # else its worker was removed, and the row with it
                moved = {"worker_id": worker.id, "generation": row.generation, "updated_at": row.updated_at}
                moved["engine_life"] = row.engine_life
                await tx.update_box(row.id, **moved)
                return worker
            if not row.warm:
                await self._quotas.check(tx, row.prefix, _use(row.spec, row.desired == DesiredState.RUNNING))
            await tx.insert_box(row._replace(worker_id=worker.id))
            return worker

    async def _own_request(self, tx: Tables, request_key: str | None, box_id: str = "") -> None:
        """Raise LeaseLostError when another box is that of this request, unless the key is another request's by now."""
        if request_key and (other := await tx.find_box_by_request(request_key)) and other.id != box_id:
            if not self._is_past(other):
                raise errors.LeaseLostError("another attempt at this request has taken over; send it again")
            await tx.update_box(other.id, request_key=None)


@contextmanager
def _unknown_when_interrupted(request_key: str | None) -> Iterator[None]:
    """Raise TimedOutError where the making of a box, which has a row, loses the database or its lease in the `with`
    block: the box will be finished or removed later, and nobody knows which. With a `request_key`, a lost lease stays
    what it is, since the client can send the request again."""
    try:
        yield
    except INTERRUPTED as exc:
        if request_key and isinstance(exc, errors.LeaseLostError):
            raise
        raise errors.TimedOutError(
            f"the box was being made when that was interrupted; look whether it is there: {exc.message}",
            f"the box was being made when that was interrupted; look whether it is there: {exc.public}",
        ) from exc


def _left(ends_at: float) -> float:
    """Seconds for one more attempt at a box that is to be made by then."""
    return max(ends_at - asyncio.get_running_loop().time(), LAST_TRY_SECONDS)


def _use(spec: Spec, runs: bool) -> Use:
    """What a new box takes of the quotas of its prefix."""
    return Use(boxes=1, running_boxes=int(runs), cpus=spec.cpus, memory_mib=spec.memory_mib)


def _new_row(
    box_id: str,
    prefix: str,
    spec: Spec,
    generation: int,
    request_key: str | None,
    now: float,
) -> Box:
    """The row of a new box that has no worker yet."""
    return Box(
        id=box_id,
        prefix=prefix,
        name=spec.name,
        worker_id="",
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


def _claimed(prefix: str, spec: Spec, request_key: str | None, start: bool, now: float) -> dict[str, Any]:
    """What changes in the row of a warm box when a request claims it."""
    changes: dict[str, Any] = {"prefix": prefix, "name": spec.name, "spec": spec.to_json(), "labels": dict(spec.labels)}
    changes |= {"status": BoxStatus.CREATING, "request_key": request_key, "created_at": now, "updated_at": now}
    return changes | {"desired": DesiredState.RUNNING, "wish": 1} if start else changes


def _with_another(row: Box, candidate: Candidate) -> Candidate:
    """The candidate as if one more box like this one were there already."""
    load = candidate.load
    load = load._replace(cpus=load.cpus + row.cpus, memory_mib=load.memory_mib + row.memory_mib, boxes=load.boxes + 1)
    return candidate._replace(load=load)
