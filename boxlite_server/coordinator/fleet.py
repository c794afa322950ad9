"""The workers: who they are, whether they are there, and the one channel to each.

A worker is known by the id in its identity file, never by its address. It is reachable while its heartbeats
come; one that misses several gets no new boxes. After the coordinator's own start every worker has a fresh
window, because nobody could have beaten into a coordinator that was not there.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from .. import errors
from .link import Connect, GrpcLink, Link, target_of
from .scheduler import Candidate
from .store import Load, Store, Tables, Worker

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
MISSED_HEARTBEATS = 4  # worker jitter is ±20 %, so this is three beats missed for certain


class Fleet:
    """The registry of workers over `store`; `clock` gives Unix seconds, `connect` the way to a worker."""

    def __init__(self, store: Store, clock: Callable[[], float], connect: Connect = GrpcLink) -> None:
        self._store = store
        self._clock = clock
        self._connect = connect
        self._started_at = clock()
        self._links: dict[str, tuple[Worker, Link]] = {}
        self._silent: set[str] = set()  # workers that a call did not reach, until they are heard again

    async def close(self) -> None:
        for worker_id in list(self._links):
            await self._drop_link(worker_id)

    # ---- registry -------------------------------------------------------------------------------------

    async def register(self, request: dict[str, Any]) -> Worker:
        """Take a worker in, or back in: it keeps its boxes and its operator's status.

        Raises AlreadyExistsError when the name is another worker's, PermissionDeniedError when the id is
        known with another secret, InvalidArgumentError when the url is none.
        """
        target_of(request["url"])
        known = await self._store.get_worker(request["id"])
        if known and not hmac.compare_digest(known.secret.encode(), request["secret"].encode()):
            raise errors.PermissionDeniedError(
                f"worker id {known.id} belongs to {known.name}, which has another secret; "
                "give this worker a home of its own"
            )
        now = self._clock()
        capacity = request["capacity"]
        worker = Worker(
            id=request["id"],
            name=request["name"],
            url=request["url"],
            secret=request["secret"],
            status=known.status if known else "active",
            epoch=request["epoch"],
            labels=request.get("labels") or {},
            cpus=capacity["cpus"],
            memory_mib=capacity["memory_mib"],
            max_boxes=capacity.get("max_boxes"),
            version=request.get("version") or "",
            engine_version=request.get("engine_version") or "",
            registered_at=known.registered_at if known else now,
            last_heartbeat=now,
        )
        async with self._store.transaction() as tx:
            await tx.put_worker(worker)
        await self._drop_link(worker.id)
        self._silent.discard(worker.id)
        log.info("worker %s (%s) registered at %s", worker.name, worker.id, worker.url)
        return worker

    async def heartbeat(self, worker_id: str, epoch: str) -> Worker:
        """Note a sign of life. Raises NotFoundError for an unknown worker and InvalidStateError for a stale
        epoch: in both cases the worker has to register again."""
        worker = await self.get(worker_id)
        if worker.epoch != epoch:
            raise errors.InvalidStateError(f"worker {worker.name} was registered by a later process; register again")
        async with self._store.transaction() as tx:
            await tx.update_worker(worker_id, last_heartbeat=self._clock())
        self._silent.discard(worker_id)
        return worker

    async def get(self, worker_id: str) -> Worker:
        worker = await self._store.get_worker(worker_id)
        if worker is None:
            raise errors.NotFoundError(f"worker not found: {worker_id}")
        return worker

    def status(self, worker: Worker) -> str:
        """As shown to people: active or draining as the operator set it, unreachable where beats are missing."""
        return worker.status if self.is_reachable(worker) else "unreachable"

    async def set_status(self, worker_id: str, status: str) -> Worker:
        """Set what the operator wants: ``active``, or ``draining`` (keeps its boxes, takes no new ones)."""
        await self.get(worker_id)
        async with self._store.transaction() as tx:
            await tx.update_worker(worker_id, status=status)
        return await self.get(worker_id)

    async def remove(self, worker_id: str, *, force: bool) -> None:
        """Forget a worker. One that has boxes or volumes only with `force`, and their rows go with it."""
        worker = await self.get(worker_id)
        async with self._store.transaction() as tx:
            boxes = await tx.boxes_of_worker(worker_id)
            volumes = await tx.volumes_of_worker(worker_id)
            if (boxes or volumes) and not force:
                raise errors.InvalidStateError(
                    f"worker {worker.name} has {len(boxes)} boxes and {len(volumes)} volumes; "
                    "remove them first, or force and lose sight of them"
                )
            for box in boxes:
                await tx.delete_box(box.id)
            for volume in volumes:
                await tx.delete_volume(volume.id)
            await tx.delete_worker(worker_id)
        self._silent.discard(worker_id)
        await self._drop_link(worker_id)

    def is_reachable(self, worker: Worker) -> bool:
        """Whether its heartbeats come, and no call failed to reach it since the last one."""
        if worker.id in self._silent:
            return False
        last_sign = max(worker.last_heartbeat, self._started_at)
        return self._clock() - last_sign <= MISSED_HEARTBEATS * HEARTBEAT_SECONDS

    async def load(self, worker_id: str) -> Load:
        return (await self._store.loads()).get(worker_id, Load())

    async def candidates(self, tx: Tables | None = None) -> list[Candidate]:
        """Every worker with its reservations, for the scheduler. `tx`: the transaction that places."""
        tables = tx or self._store
        loads = await tables.loads()
        return [
            Candidate(worker, loads.get(worker.id, Load()), self.is_reachable(worker))
            for worker in await tables.list_workers()
        ]

    # ---- calls ----------------------------------------------------------------------------------------

    async def call(self, worker_id: str, method: str, request: Any, *, timeout: float) -> Any:
        """One unary call to a worker within `timeout` seconds; see `Link` for what calls raise."""
        link = await self._link(worker_id)
        try:
            return await link.unary(method, request, timeout=timeout)
        except errors.UnreachableError:
            self._silent.add(worker_id)
            raise

    async def stream(self, worker_id: str, method: str, request: Any) -> AsyncGenerator[Any, None]:
        """The answers of a streaming call."""
        link = await self._link(worker_id)
        async with aclosing(link.stream(method, request)) as answers:
            async for answer in answers:
                yield answer

    async def send(self, worker_id: str, method: str, header: Any, requests: AsyncIterator[Any]) -> Any:
        """The answer to a streamed call."""
        return await (await self._link(worker_id)).send(method, header, requests)

    async def _link(self, worker_id: str) -> Link:
        """The one connection to this life of the worker, wherever it serves now."""
        worker = await self.get(worker_id)
        known, link = self._links.get(worker_id, (None, None))
        if link is None or known is None or _address(known) != _address(worker):
            await self._drop_link(worker_id)
            link = self._connect(worker)
            self._links[worker_id] = worker, link
        return link

    async def _drop_link(self, worker_id: str) -> None:
        _, link = self._links.pop(worker_id, (None, None))
        if link is not None:
            await link.close()


def _address(worker: Worker) -> tuple[str, str, str]:
    return worker.url, worker.secret, worker.epoch
