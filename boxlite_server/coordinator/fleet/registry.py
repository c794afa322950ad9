"""The registry of workers: who they are, and whether they can be reached.

A worker is known by the id in its identity file, never by its address. It is reachable while its heartbeats come. A
worker that misses three of them, says goodbye or loses its engine gets no new boxes and no calls until it is heard
again. After the coordinator's own start every worker has a fresh window, because no heartbeat could reach a
coordinator that did not run. All of that is in the rows, for any coordinator to see; only that a call failed to
reach a worker is known to this coordinator alone.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ... import errors, references, signatures
from ..states import WorkerStatus
from ..store import Load, Store, Tables, Worker
from .link import target_of, why_not_alike
from .placement import Candidate

UNREACHABLE = "the worker cannot be reached at present; try again later"  # all that tenants hear of the reason

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
MISSED_HEARTBEATS = 3
# Up to 1.2 intervals pass from one heartbeat to the next: a tenth for jitter, and a tenth to compose and send it.
UNREACHABLE_SECONDS = MISSED_HEARTBEATS * 1.2 * HEARTBEAT_SECONDS


class Removed(NamedTuple):
    """How many rows went with a worker's. `text` says what becomes of their containers and data; "" when there are
    none."""

    boxes: int
    volumes: int
    text: str


class _Silence(NamedTuple):
    """A call that did not reach a worker."""

    epoch: str
    at: float
    reason: str


class Fleet:
    """The registry of workers over `store`; `clock` gives Unix seconds. `encrypts`: all calls to workers are encrypted,
    or none."""

    def __init__(self, store: Store, clock: Callable[[], float], *, encrypts: bool = False) -> None:
        self._store = store
        self._clock = clock
        self._encrypts = encrypts
        self._started_at = clock()
        self._silent: dict[str, _Silence] = {}  # by worker id, until the worker is heard again
        self._told: set[str] = set()  # ids of workers whose inventory was taken since this process started
        self._on_removal: list[Callable[[str], Awaitable[None]]] = []

    def on_removal(self, callback: Callable[[str], Awaitable[None]]) -> None:
        """Have `callback(worker_id)` run after each removal of a worker."""
        self._on_removal.append(callback)

    # ---- registry -------------------------------------------------------------------------------------

    async def register(self, request: Mapping[str, Any]) -> Worker:
        """Register a worker. A worker that is known keeps its boxes and the status that its operator set.

        Raises AlreadyExistsError when the name belongs to another worker, PermissionDeniedError when the id is, or was
        until its removal, that of a worker with another secret, InvalidArgumentError when the url or the name of an
        image is malformed or only one side encrypts, InvalidStateError when a later process of the worker is registered
        and reachable: then this registration was sent earlier and arrived late.
        """
        target_of(request["url"])
        if reason := why_not_alike(request["url"], encrypts=self._encrypts):
            raise errors.InvalidArgumentError(f"worker {request['name']} cannot be called: {reason}")
        now = self._clock()
        async with self._store.transaction() as tx:
            known, secret = await tx.get_worker(request["id"]), await tx.secret_of_worker(request["id"])
            if secret is not None and not signatures.is_same(request["secret"], secret):
                raise errors.PermissionDeniedError(
                    f"worker id {request['id']} belongs to {known.name if known else 'a removed worker'}, which has "
                    "another secret; give this worker a home of its own"
                )
            if known:
                self._refuse_late(known, request)
            worker = _worker(request, known, now)
            await tx.put_worker(worker)
        self._silent.pop(worker.id, None)
        self._told.discard(worker.id)
        log.info("worker %s (%s) registered at %s", worker.name, worker.id, worker.url)
        if (network := request.get("network") or "filtered") != "filtered":
            log.warning("worker %s: the network of boxes is %s", worker.name, network)
        return worker

    async def check_request(self, worker_id: str, csr: str, signature: str) -> None:
        """Raise PermissionDeniedError for a request (PEM) for a certificate in the name of another worker: one that is,
        or was until its removal, known with another secret than that of the signature."""
        secret = await self._store.secret_of_worker(worker_id)
        if secret and not signatures.is_same(signature, signatures.of_certificate_request(secret, worker_id, csr)):
            raise errors.PermissionDeniedError(f"this request is not signed with the secret of worker {worker_id}")

    async def proof(self, worker_id: str, nonce: str) -> str:
        """Prove to a worker that this coordinator has its secret. Raises NotFoundError for an unknown worker."""
        secret = await self._store.secret_of_worker(worker_id)
        if secret is None:
            raise errors.NotFoundError(f"worker not found: {worker_id}")
        return signatures.of_coordinator(secret, worker_id, nonce)

    def _refuse_late(self, known: Worker, request: Mapping[str, Any]) -> None:
        started_at = request.get("started_at")
        if known.epoch == request["epoch"] or started_at is None or known.started_at is None:
            return
        # When the later process is unreachable, this one may be newer, and its clock was set back.
        if started_at < known.started_at and self.why_unreachable(known) is None:
            raise errors.InvalidStateError(
                f"worker {known.name} was registered by a process that started later; this registration is stale"
            )

    async def heartbeat(self, worker_id: str, beat: Mapping[str, Any]) -> Worker:
        """Note a heartbeat, or a goodbye; returns the worker's row as it was before. Raises NotFoundError for an
        unknown worker, PermissionDeniedError for a heartbeat that the worker has not signed, and InvalidStateError
        for a stale epoch, for a heartbeat that comes a second time, or after a goodbye: then the worker has to
        register again."""
        worker = await self.get(worker_id)
        number = _number_of(worker, beat)
        if worker.epoch == beat["epoch"] and worker.left_at is not None and not beat.get("leaving"):
            raise errors.InvalidStateError(
                f"worker {worker.name} said goodbye; if it is there, it has to register again"
            )
        now = self._clock()
        changes: dict[str, Any] = {
            "last_heartbeat": now,
            "left_at": now if beat.get("leaving") else None,
            "engine_error": beat.get("engine_error"),
            "lost_at": None,
        }
        if number is not None:
            changes["heartbeats"] = number
        if beat.get("engine_life"):
            changes["engine_life"] = beat["engine_life"]
        if worker.epoch != beat["epoch"] or not await self._store.update_worker_of_epoch(
            worker_id, beat["epoch"], **changes
        ):
            raise errors.InvalidStateError(
                f"worker {worker.name} was registered by another process, or has sent a later heartbeat; register again"
            )
        self._silent.pop(worker_id, None)
        if beat.get("leaving"):
            log.info("worker %s says goodbye", worker.name)
        if (beat.get("engine_error") or None) != worker.engine_error:
            log.warning("engine of worker %s: %s", worker.name, beat.get("engine_error") or "it answers again")
        return worker

    def lacks_inventory(self, worker: Worker, digest: str | None) -> bool:
        """Whether the worker has to send its inventory: none was taken since this process started, or `digest`, of
        what the worker holds now, is not that of the last one. None: the worker gives no digest."""
        return worker.id not in self._told or digest is None or digest != worker.inventory

    def want_inventory(self, worker_id: str) -> None:
        """Have the worker send its inventory again with its next heartbeat: the last one could not be dealt with."""
        self._told.discard(worker_id)

    async def inventory_taken(self, worker: Worker, digest: str | None) -> None:
        """Remember that the worker's inventory of this digest has been dealt with."""
        self._told.add(worker.id)
        if digest != worker.inventory:
            await self._store.update_worker_of_epoch(worker.id, worker.epoch, inventory=digest)

    async def get(self, worker_id: str) -> Worker:
        """The worker's row. Raises NotFoundError."""
        worker = await self._store.get_worker(worker_id)
        if worker is None:
            raise errors.NotFoundError(f"worker not found: {worker_id}")
        return worker

    async def set_status(self, worker_id: str, status: WorkerStatus) -> Worker:
        """Set what the operator wants: ``active``, or ``draining`` (the worker keeps its boxes and takes no new
        ones). Returns the worker's row."""
        async with self._store.transaction() as tx:
            await tx.update_worker(worker_id, status=status)
        worker = await self.get(worker_id)
        log.info("worker %s is set to %s", worker.name, status)
        return worker

    async def remove(self, worker_id: str, *, force: bool) -> Removed:
        """Forget a worker, and with `force` the boxes and volumes that it has. Raises InvalidStateError for a worker
        with boxes or volumes without `force`."""
        worker = await self.get(worker_id)
        async with self._store.transaction() as tx:
            boxes = await tx.boxes_of_worker(worker_id)
            volumes = await tx.volumes_of_worker(worker_id)
            removed = Removed(len(boxes), len(volumes), _what_becomes(len(boxes), len(volumes)))
            if removed.text and not force:
                raise errors.InvalidStateError(
                    f"worker {worker.name} has {_count(len(boxes), 'box', 'boxes')} and "
                    f"{_count(len(volumes), 'volume', 'volumes')}; remove them first, or use force: {removed.text}"
                )
            for box in boxes:
                await tx.delete_box(box.id)
            for volume in volumes:
                await tx.delete_volume(volume.id)
            await tx.delete_worker(worker_id)
        log.info("worker %s is removed%s", worker.name, removed.text and f"; {removed.text}")
        self._silent.pop(worker_id, None)
        self._told.discard(worker_id)
        for callback in self._on_removal:
            await callback(worker_id)
        return removed

    # ---- reachability ---------------------------------------------------------------------------------

    def status(self, worker: Worker) -> WorkerStatus:
        """The status as shown to people: unreachable, or else active or draining, as the operator set it."""
        return worker.status if self.is_reachable(worker) else WorkerStatus.UNREACHABLE

    def is_reachable(self, worker: Worker) -> bool:
        return self.why_unreachable(worker) is None

    def is_heard(self, worker: Worker) -> bool:
        """Whether the worker has been heard since this process started."""
        return worker.last_heartbeat >= self._started_at

    def why_unreachable(self, worker: Worker) -> str | None:
        """Why a worker gets no calls, in words for an operator; None when it gets calls."""
        now = self._clock()
        if worker.left_at is not None:
            return f"worker {worker.name} was shut down at {_time_of(worker.left_at, now)}"
        if worker.engine_error:
            return f"the engine of worker {worker.name} does not answer: {worker.engine_error}"
        silence = self._silent.get(worker.id)
        if silence and silence.epoch == worker.epoch and silence.at >= worker.last_heartbeat:
            return silence.reason
        if now - max(worker.last_heartbeat, self._started_at) > UNREACHABLE_SECONDS:
            heard = f"{_time_of(worker.last_heartbeat, now)} ({now - worker.last_heartbeat:.0f} s)"
            return f"worker {worker.name} has not been heard of since {heard}"
        return None

    async def reachable(self, worker: Worker | str) -> Worker:
        """The row of a worker that can be called, given that row or the worker's id. Raises
        UpstreamUnavailableError, with the reason, for a worker that gets no calls."""
        row = await self._store.get_worker(worker) if isinstance(worker, str) else worker
        if row is None:
            raise errors.UpstreamUnavailableError(f"worker {worker} is not registered any more", UNREACHABLE)
        if reason := self.why_unreachable(row):
            raise errors.UpstreamUnavailableError(reason, UNREACHABLE)
        return row

    def note_silence(self, worker: Worker, reason: str) -> None:
        """Treat the worker, which a call has not reached, as unreachable until it is heard again."""
        self._silent[worker.id] = _Silence(worker.epoch, self._clock(), reason)

    async def note_lost(self, workers: Iterable[Worker]) -> None:
        """Note in the rows of workers whose heartbeats have stopped that they are lost."""
        now = self._clock()
        unheard_since = now - UNREACHABLE_SECONDS
        for worker in workers:
            heard_at = max(worker.last_heartbeat, self._started_at)
            if worker.lost_at is None and worker.left_at is None and heard_at < unheard_since:
                await self._store.lose_worker(worker.id, unheard_since, now)

    async def unreachable(self) -> tuple[str, ...]:
        """Ids of the workers that are not reachable."""
        suspects = await self._store.workers_in_trouble(self._clock() - UNREACHABLE_SECONDS)
        if self._silent:
            suspects += (await self._store.get_workers(self._silent)).values()
        return tuple({worker.id for worker in suspects if not self.is_reachable(worker)})

    async def candidates(self, tx: Tables | None = None) -> list[Candidate]:
        """Every worker with its reservations, for placement; `tx`: the transaction that places."""
        tables = tx or self._store
        loads = await tables.loads()
        nothing = Load()
        return [
            Candidate(worker, loads.get(worker.id, nothing), self.is_reachable(worker))
            for worker in await tables.list_workers()
        ]


def _number_of(worker: Worker, beat: Mapping[str, Any]) -> int | None:
    """The number of a signed heartbeat; None for a worker that signs none, as those of an earlier version. Raises
    PermissionDeniedError where the signature is missing or wrong."""
    if worker.heartbeats is None:
        return None
    expected = signatures.of_heartbeat(worker.secret, worker.id, beat)
    number = beat.get("number")
    if number is None or not signatures.is_same(beat.get(signatures.SIGNATURE), expected):
        raise errors.PermissionDeniedError(f"this heartbeat is not signed by worker {worker.name}; register again")
    return int(number)


def _worker(request: Mapping[str, Any], known: Worker | None, now: float) -> Worker:
    """The row of a worker that registers; `known`: the row that it replaces."""
    capacity = request["capacity"]
    cpu_limit = capacity.get("cpu_limit")
    return Worker(
        id=request["id"],
        name=request["name"],
        url=request["url"],
        secret=request["secret"],
        status=known.status if known else WorkerStatus.ACTIVE,
        epoch=request["epoch"],
        labels=request.get("labels") or {},
        cpus=capacity["cpus"],
        memory_mib=capacity["memory_mib"],
        max_boxes=capacity.get("max_boxes"),
        version=request.get("version") or "",
        engine_version=request.get("engine_version") or "",
        registered_at=known.registered_at if known else now,
        last_heartbeat=now,
        cpu_limit=None if cpu_limit is None else int(cpu_limit),
        engine_life=request.get("engine_life"),
        started_at=request.get("started_at"),
        disk_limit=request.get("disk_limit"),
        heartbeats=request.get("heartbeats"),
        warm_images={
            str(references.parse(image).tagged()): count for image, count in (request.get("warm_images") or {}).items()
        },
    )


def _what_becomes(boxes: int, volumes: int) -> str:
    """What becomes of all that a worker holds when it is forgotten by force; "" when it holds nothing."""
    texts = []
    if boxes:
        texts.append(
            f"{_count(boxes, 'box is', 'boxes are')} forgotten, whose containers stay on the worker's host until it "
            "registers again and are then removed as orphans, after a grace"
        )
    if volumes:
        texts.append(
            f"{_count(volumes, 'volume is', 'volumes are')} forgotten, whose data stays on the worker's host until "
            "somebody removes it there"
        )
    return "; ".join(texts)


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _time_of(moment: float, now: float) -> str:
    """`moment` as a time of day, with the date when it is not within the last 12 hours."""
    date = "" if now - moment < 12 * 3600 else "%Y-%m-%d "
    return datetime.fromtimestamp(moment, UTC).strftime(f"{date}%H:%M:%S UTC")
