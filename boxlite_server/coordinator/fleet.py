"""The workers: who they are, whether they are there, and the one channel to each.

A worker is known by the id in its identity file, never by its address. It is reachable while its heartbeats
come; one that misses several gets no new boxes. After the coordinator's own start every worker has a fresh
window, because nobody could have beaten into a coordinator that was not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import grpc
import grpc.aio

from .. import errors, rpc
from .._gen import worker_pb2_grpc
from .scheduler import Candidate
from .store import Load, Store, Worker

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
MISSED_HEARTBEATS = 4  # worker jitter is ±20 %, so this is three beats missed for certain

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # workers are on our own network, whatever the environment says of the world
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also how long a connection may take to come about: 20 s unless given, and a create waits for it.
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_send_message_length", rpc.MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", rpc.MAX_MESSAGE_BYTES),
    # A channel per worker, also when two share an address in turn: never another worker's connection.
    ("grpc.use_local_subchannel_pool", 1),
)


class _Link(NamedTuple):
    worker: Worker
    channel: grpc.aio.Channel
    stub: Any
    metadata: tuple[tuple[str, str], ...]


class Fleet:
    """The registry of workers over `store`; `clock` gives Unix seconds."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._started_at = clock()
        self._links: dict[str, _Link] = {}
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
        known = self._store.get_worker(request["id"])
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
        with self._store.transaction():
            self._store.put_worker(worker)
        await self._drop_link(worker.id)
        self._silent.discard(worker.id)
        log.info("worker %s (%s) registered at %s", worker.name, worker.id, worker.url)
        return worker

    def heartbeat(self, worker_id: str, epoch: str) -> Worker:
        """Note a sign of life. Raises NotFoundError for an unknown worker and InvalidStateError for a stale
        epoch: in both cases the worker has to register again."""
        worker = self.get(worker_id)
        if worker.epoch != epoch:
            raise errors.InvalidStateError(f"worker {worker.name} was registered by a later process; register again")
        with self._store.transaction():
            self._store.update_worker(worker_id, last_heartbeat=self._clock())
        self._silent.discard(worker_id)
        return worker

    def get(self, worker_id: str) -> Worker:
        worker = self._store.get_worker(worker_id)
        if worker is None:
            raise errors.NotFoundError(f"worker not found: {worker_id}")
        return worker

    def status(self, worker: Worker) -> str:
        """As shown to people: active or draining as the operator set it, unreachable where beats are missing."""
        return worker.status if self.is_reachable(worker) else "unreachable"

    def set_status(self, worker_id: str, status: str) -> Worker:
        """Set what the operator wants: ``active``, or ``draining`` (keeps its boxes, takes no new ones)."""
        self.get(worker_id)
        with self._store.transaction():
            self._store.update_worker(worker_id, status=status)
        return self.get(worker_id)

    async def remove(self, worker_id: str, *, force: bool) -> None:
        """Forget a worker. One that has boxes or volumes only with `force`, and their rows go with it."""
        worker = self.get(worker_id)
        with self._store.transaction():
            boxes = self._store.boxes_of_worker(worker_id)
            volumes = self._store.volumes_of_worker(worker_id)
            if (boxes or volumes) and not force:
                raise errors.InvalidStateError(
                    f"worker {worker.name} has {len(boxes)} boxes and {len(volumes)} volumes; "
                    "remove them first, or force and lose sight of them"
                )
            for box in boxes:
                self._store.delete_box(box.id)
            for volume in volumes:
                self._store.delete_volume(volume.id)
            self._store.delete_worker(worker_id)
        self._silent.discard(worker_id)
        await self._drop_link(worker_id)

    def is_reachable(self, worker: Worker) -> bool:
        """Whether its heartbeats come, and no call failed to reach it since the last one."""
        if worker.id in self._silent:
            return False
        last_sign = max(worker.last_heartbeat, self._started_at)
        return self._clock() - last_sign <= MISSED_HEARTBEATS * HEARTBEAT_SECONDS

    def load(self, worker_id: str) -> Load:
        return self._store.loads().get(worker_id, Load())

    def candidates(self) -> list[Candidate]:
        """Every worker with its reservations, for the scheduler."""
        loads = self._store.loads()
        return [
            Candidate(worker, loads.get(worker.id, Load()), self.is_reachable(worker))
            for worker in self._store.list_workers()
        ]

    # ---- calls ----------------------------------------------------------------------------------------

    async def call(self, worker_id: str, method: str, request: Any, *, timeout: float) -> Any:
        """One unary call to a worker within `timeout` seconds; raises what the worker raised."""
        link = self._link(worker_id)
        try:
            return await getattr(link.stub, method)(request, timeout=timeout, metadata=link.metadata)
        except grpc.aio.AioRpcError as exc:
            if rpc.is_unanswered(exc):
                self._silent.add(worker_id)
            raise rpc.from_rpc_error(exc, link.worker.name) from None

    async def stream(self, worker_id: str, method: str, request: Any) -> AsyncGenerator[Any, None]:
        """The answers of a streaming call. It has no deadline, a stream may last as long as a command; the
        channel's keepalive ends it when the worker is gone."""
        link = self._link(worker_id)
        call = getattr(link.stub, method)(request, metadata=link.metadata)
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as exc:
            raise rpc.from_rpc_error(exc, link.worker.name) from None
        finally:
            call.cancel()

    async def send(self, worker_id: str, method: str, header: Any, requests: AsyncIterator[Any]) -> Any:
        """The answer to a streamed call: its header, and what follows once the worker has accepted that (see
        `rpc.ACCEPTED`). What it refuses at once is so known before anything is taken from `requests`.

        Requests are taken no faster than the worker takes them. Without a deadline, as `stream`. Where
        `requests` raises or the caller is cancelled, the worker's side ends too.
        """
        link = self._link(worker_id)
        call = getattr(link.stub, method)(metadata=link.metadata)
        try:
            # A call that has ended takes nothing more: the last line then raises what the worker said.
            with contextlib.suppress(asyncio.InvalidStateError):
                await call.write(header)
                if rpc.ACCEPTED in tuple(await call.initial_metadata()):
                    async for request in requests:
                        await call.write(request)
                    await call.done_writing()
            return await call
        except grpc.aio.AioRpcError as exc:
            raise rpc.from_rpc_error(exc, link.worker.name) from None
        finally:
            call.cancel()

    def _link(self, worker_id: str) -> _Link:
        link = self._links.get(worker_id)
        if link is None:
            worker = self.get(worker_id)
            channel = grpc.aio.insecure_channel(target_of(worker.url), options=_CHANNEL_OPTIONS)
            stub = worker_pb2_grpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]
            link = self._links[worker_id] = _Link(worker, channel, stub, rpc.with_secret(worker.secret))
        return link

    async def _drop_link(self, worker_id: str) -> None:
        link = self._links.pop(worker_id, None)
        if link is not None:
            with contextlib.suppress(Exception):
                await link.channel.close()


def target_of(url: str) -> str:
    """The gRPC target ``host:port`` of a worker's url; raises InvalidArgumentError when it is none."""
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        if parts.hostname and parts.port:
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            return f"{host}:{parts.port}"
    except ValueError:
        pass
    raise errors.InvalidArgumentError(f"'{url}' is no worker url; it has the form http://HOST:PORT")
