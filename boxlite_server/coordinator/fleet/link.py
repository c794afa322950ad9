"""The link to one worker: the seam between the coordinator and the network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import grpc
import grpc.aio

from ... import errors, rpc
from ..._gen import worker_pb2_grpc
from ...ids import worker_host
from ..store import Worker

if TYPE_CHECKING:
    from ...tls.files import Watched

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # workers are on an internal network, so a proxy in the environment is not for them
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # It is also the time limit for connecting: 20 s by default, during which a create would wait.
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_send_message_length", rpc.MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", rpc.MAX_MESSAGE_BYTES),
    # Each channel has its own connection, also when two workers have the same address one after the other.
    ("grpc.use_local_subchannel_pool", 1),
)

CLOSE_SECONDS = 1.0  # for waiting callers to be told that the link is closed
RETIRED_SECONDS = 30 * 86_400.0  # that a call may go on over a channel with a former certificate


class Link(Protocol):
    """Calls to one life of one worker. They raise what the worker raised. After `UnreachableError` and
    `TimedOutError` it is not known whether the worker has done what it was asked for."""

    async def unary(self, method: str, request: Any, *, timeout: float | None) -> Any:
        """One call, answered within `timeout` seconds. None: it has no deadline, like `stream`."""

    def stream(self, method: str, request: Any) -> AsyncGenerator[Any, None]:
        """The answers of a streaming call. It has no deadline, because a stream may last as long as a command. It
        raises UnreachableError when the worker is gone: keepalive notices that within 15 s."""

    async def send(self, method: str, header: Any, requests: AsyncIterator[Any]) -> Any:
        """The answer to a streamed call. The `requests` follow once the worker has accepted the `header` (see
        `rpc.ACCEPTED`), so a refusal is raised before anything is taken from `requests`.

        Requests are taken no faster than the worker takes them. The call has no deadline, like `stream`. When
        `requests` raises or the caller is cancelled, the call ends at the worker too.
        """

    async def close(self) -> None:
        """Close the link and end all calls on it; they raise UnreachableError."""


Connect = Callable[[Worker], Link]


class GrpcLink:
    """The `Link` of a running system, over one persistent channel; with `tls` over mutual TLS.

    When the certificate is renewed, calls from then on take a new channel, and those under way keep theirs. Raises
    UpstreamUnavailableError where one side uses TLS and the other does not.
    """

    def __init__(self, worker: Worker, tls: Watched | None = None) -> None:
        self._name = worker.name
        self._worker_id = worker.id
        self._target = target_of(worker.url)
        self._tls = tls
        if reason := why_not_alike(worker.url, encrypts=tls is not None):
            raise errors.UpstreamUnavailableError(f"worker {worker.name} cannot be called: {reason}")
        self._material = tls.current() if tls else None
        self._channel, self._methods = self._open()
        self._retired: set[asyncio.Task[None]] = set()  # former channels whose calls go on
        self._metadata = rpc.with_secret(worker.secret, worker.epoch)
        self._waiting: set[asyncio.Timeout] = set()
        self._nobody_waits = asyncio.Event()
        self._closed = False

    async def unary(self, method: str, request: Any, *, timeout: float | None) -> Any:
        async with self._wait():
            return await getattr(self._stub(), method)(request, timeout=timeout, metadata=self._of_request())

    async def stream(self, method: str, request: Any) -> AsyncGenerator[Any, None]:
        async with self._wait():
            call = getattr(self._stub(), method)(request, metadata=self._of_request())
        try:
            while True:
                async with self._wait():
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                yield answer
        finally:
            call.cancel()

    async def send(self, method: str, header: Any, requests: AsyncIterator[Any]) -> Any:
        async with self._wait():
            call = getattr(self._stub(), method)(metadata=self._of_request())
        try:
            async with self._wait():
                # Writing to a call that has ended raises InvalidStateError; `await call` then raises the real reason.
                with contextlib.suppress(asyncio.InvalidStateError):
                    await call.write(header)
                    if rpc.ACCEPTED in tuple(await call.initial_metadata()):
                        async for request in requests:
                            await call.write(request)
                        await call.done_writing()
                return await call
        finally:
            call.cancel()

    def _of_request(self) -> grpc.aio.Metadata:
        """The metadata of a call: those of the worker, and whose request it is for."""
        return grpc.aio.Metadata(*self._metadata, *rpc.with_tenant(), *rpc.with_request())

    async def close(self) -> None:
        """Tell the waiting calls, then close the channel: gRPC alone would cancel their tasks as if the callers had
        been cancelled, or let them wait for ever."""
        if not self._closed:
            self._closed = True
            for waiting in self._waiting:
                waiting.reschedule(asyncio.get_running_loop().time())
        if self._waiting:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nobody_waits.wait(), CLOSE_SECONDS)
        for retired in self._retired:
            retired.cancel()
        with contextlib.suppress(Exception):
            await self._channel.close()

    def _stub(self) -> worker_pb2_grpc.WorkerServiceStub:
        """The methods for a call that begins now."""
        if self._tls and (material := self._tls.current()) is not self._material:
            self._material = material
            retired = asyncio.create_task(self._channel.close(RETIRED_SECONDS))
            self._retired.add(retired)
            retired.add_done_callback(self._retired.discard)
            self._channel, self._methods = self._open()
        return self._methods

    def _open(self) -> tuple[grpc.aio.Channel, worker_pb2_grpc.WorkerServiceStub]:
        if self._material is None:
            channel = grpc.aio.insecure_channel(self._target, options=_CHANNEL_OPTIONS)
        else:
            material = self._material
            # The certificate of a worker names its id, see `tls.certificates`.
            name = ("grpc.ssl_target_name_override", worker_host(self._worker_id))
            credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.chain)
            channel = grpc.aio.secure_channel(self._target, credentials, options=(*_CHANNEL_OPTIONS, name))
        return channel, worker_pb2_grpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]

    @contextlib.asynccontextmanager
    async def _wait(self) -> AsyncGenerator[None, None]:
        """Wraps every wait for the worker: raises an error of `errors` for what gRPC raises."""
        if self._closed:
            raise self._broken_off()
        bound = asyncio.timeout(None)
        try:
            async with bound:
                self._waiting.add(bound)
                try:
                    yield
                finally:
                    self._waiting.discard(bound)
                    if self._closed and not self._waiting:
                        self._nobody_waits.set()
        except grpc.aio.AioRpcError as exc:
            error = rpc.from_rpc_error(exc, self._name)
            if isinstance(error, errors.AuthError):  # the worker rejects the coordinator's secret, not the client's key
                raise errors.UpstreamUnavailableError(
                    f"worker {self._name} refuses its coordinator: {error.message}", "the worker cannot be used now"
                ) from None
            raise error from None
        except TimeoutError:
            if not bound.expired():
                raise
            raise self._broken_off() from None
        except asyncio.CancelledError:  # gRPC raises it also when the other side has cancelled the call
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise self._broken_off() from None

    def _broken_off(self) -> errors.BoxliteError:
        return errors.UnreachableError(
            f"worker {self._name} cannot be reached: the connection to it was closed", "the worker cannot be reached"
        )


def target_of(url: str) -> str:
    """The gRPC target ``host:port`` of a worker's url. Raises InvalidArgumentError when the url is malformed."""
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        if parts.hostname and parts.port:
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            return f"{host}:{parts.port}"
    except ValueError:
        pass
    raise errors.InvalidArgumentError(f"'{url}' is no worker url; it has the form http://HOST:PORT")


def why_not_alike(url: str, *, encrypts: bool) -> str | None:
    """Why a coordinator, which `encrypts` its calls or not, does not call a worker at this url; None where it does."""
    if url.startswith("https://") == encrypts:
        return None
    if encrypts:
        return "its gRPC is not encrypted, and this coordinator has a --tls-ca; start the worker with TLS too"
    return "its gRPC is encrypted, and this coordinator has no --tls-ca"
