"""Errors on gRPC, in both directions, and the metadata of every call: the worker's secret, its epoch and the tenant.

The status code is for generic gRPC clients; between coordinator and worker the error's `code` travels as the
trailing metadatum `boxlite-code`, and its message as the call's details.
"""

from __future__ import annotations

import hmac
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn

import grpc
import grpc.aio

from . import errors, ids

# The newer event engine of gRPC wakes several threads for each message. Without it, the thread that waits for a message
# reads it, which takes a tenth off the cost of a short command. gRPC reads the variable when it makes its first channel
# or server.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

CODE_KEY = "boxlite-code"
LOCAL_KEY = "boxlite-local"  # present with image_pull_failed: the reason may be the host's own
PRIVATE_KEY = "boxlite-private"  # present with image_pull_failed: the pull takes credentials of the host, ask first
REQUEST_KEY = "boxlite-request-id"  # of the client's request that a call is made for; absent: there is none
EPOCH_KEY = "boxlite-epoch"  # the worker process (epoch) that a call is addressed to; absent: any
TENANT_KEY = "boxlite-tenant"  # the prefix of the request that a call is part of; absent: the call is nobody's
QUOTA_KEY = "boxlite-quota-"  # followed by the name of a quota of that prefix
ACCEPTED = ("boxlite-accepted", "yes")  # initial metadatum that accepts the header of a streamed call
MAX_MESSAGE_BYTES = 12 * 1024 * 1024  # the result of a run has two streams of 4 MiB
CHUNK_BYTES = 256 * 1024  # of a byte stream in one message
SENT_BYTES = 1024 * 1024  # of an upload in one message: each message costs both sides about as much as its bytes
TOLD_AT_ONCE = 20  # refused calls of strangers that have a line in the log each
TOLD_SECONDS = 5.0  # after which one more has
MAX_EXECUTIONS = 2000  # may run on one worker; each takes a thread and a connection to the engine

log = logging.getLogger(__name__)

_BROKEN_OFF = "Internal error from Core"  # the details that grpc.aio gives a write to a lost connection

_STATUS: dict[str, grpc.StatusCode] = {
    "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
    "unsupported": grpc.StatusCode.UNIMPLEMENTED,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "permission_denied": grpc.StatusCode.PERMISSION_DENIED,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "already_exists": grpc.StatusCode.ALREADY_EXISTS,
    "invalid_state": grpc.StatusCode.FAILED_PRECONDITION,
    "stopped": grpc.StatusCode.FAILED_PRECONDITION,
    "session_reaped": grpc.StatusCode.NOT_FOUND,
    "image_pull_failed": grpc.StatusCode.FAILED_PRECONDITION,
    "execution_failed": grpc.StatusCode.FAILED_PRECONDITION,
    "resource_exhausted": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "upstream_unavailable": grpc.StatusCode.UNAVAILABLE,
    "engine_unavailable": grpc.StatusCode.UNAVAILABLE,
    "timeout": grpc.StatusCode.DEADLINE_EXCEEDED,
    "database_error": grpc.StatusCode.INTERNAL,
    "internal": grpc.StatusCode.INTERNAL,
}


# What tells the kinds of `ImageError` from each other, which have one code.
_MARKS: dict[type[errors.BoxliteError], str] = {
    errors.LocalImageError: LOCAL_KEY,
    errors.PrivateImageError: PRIVATE_KEY,
}

# The answers of an HTTP server that is not a worker: gRPC's reading of 404, 401 and 403.
_FOREIGN = {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


def abort(context: grpc.ServicerContext, error: BaseException) -> NoReturn:
    """End the call with `error`, as every failed call at the worker does. Never returns."""
    if isinstance(error, grpc.RpcError):  # raised while reading the requests of this call
        error = errors.UpstreamUnavailableError("the caller has gone")
    elif not isinstance(error, errors.BoxliteError):
        log.error("fault in a call", exc_info=error)
        error = errors.BoxliteError(f"fault in the worker: {type(error).__name__}: {error}")
    mark = _MARKS.get(type(error))
    context.set_trailing_metadata(((CODE_KEY, error.code), *(((mark, "yes"),) if mark else ())))
    context.abort(_STATUS[error.code], error.message)


def from_rpc_error(exc: grpc.aio.AioRpcError, worker_name: str) -> errors.BoxliteError:
    """Translate a failed call to a worker: into the worker's own error, or into one that says why it gave none."""
    details = exc.details() or exc.code().name
    trailing = dict(exc.trailing_metadata() or ())
    if code := trailing.get(CODE_KEY):
        error = errors.from_code(code.decode() if isinstance(code, bytes) else code, details)
        kind = next((kind for kind, mark in _MARKS.items() if mark in trailing), None)
        return kind(details) if kind and type(error) is errors.ImageError else error
    if exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return _of_worker(errors.TimedOutError, worker_name, "did not answer in time; try again")
    if exc.code() is grpc.StatusCode.UNAVAILABLE:
        return _of_worker(errors.UnreachableError, worker_name, "cannot be reached", f": {details}")
    if exc.code() in _FOREIGN:
        return errors.UpstreamUnavailableError(
            f"the server at the address of worker {worker_name} is not a worker: {details}",
            "the worker cannot be reached",
        )
    is_lost = exc.code() is grpc.StatusCode.INTERNAL and details == _BROKEN_OFF
    # A caller that cancels gets CancelledError, so CANCELLED comes from the worker.
    if is_lost or exc.code() is grpc.StatusCode.CANCELLED:
        return _of_worker(errors.UpstreamUnavailableError, worker_name, "broke off the call; try again")
    if exc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return _of_worker(errors.ResourceExhaustedError, worker_name, "has too many calls under way; try again")
    return _of_worker(errors.BoxliteError, worker_name, "failed at this request", f": {exc.code().name}: {details}")


def _of_worker(kind: type[errors.BoxliteError], name: str, what: str, more: str = "") -> errors.BoxliteError:
    """An error of which tenants read what the worker did, and only operators which worker that was, and `more`."""
    return kind(f"worker {name} {what}{more}", f"the worker {what}")


class _AtOnce(ThreadPoolExecutor):
    """Runs what is submitted before `submit` returns, in the thread that submits."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        fn(*args, **kwargs)
        done.set_result(None)
        return done


class _Gate(grpc.ServerInterceptor):
    """Lets a call pass if `admits` accepts its metadata, and ends it with `error` otherwise.

    A call is refused as soon as its metadata is there, by the thread that takes calls from the network: a caller who
    sends no message, or no end, holds neither a thread of the pool nor one of the calls that the server allows at once.
    """

    def __init__(self, error: errors.BoxliteError) -> None:
        def refuse(requests: Any, context: grpc.ServicerContext) -> NoReturn:
            self.refused(context.peer())
            abort(context, error)

        refuse.experimental_thread_pool = _AtOnce()  # type: ignore[attr-defined]  # where gRPC looks for it
        # The handler of a stream begins before the first message of the call has come.
        self._refuse: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(refuse)

    def admits(self, metadata: dict[str, bytes]) -> bool:
        raise NotImplementedError

    def refused(self, peer: str) -> None:
        """Take note of a refused call; `peer`: its caller's address, as gRPC writes it."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        pairs = handler_call_details.invocation_metadata
        metadata = {key: value if isinstance(value, bytes) else value.encode() for key, value in pairs}
        return continuation(handler_call_details) if self.admits(metadata) else self._refuse


class SecretInterceptor(_Gate):
    """Refuses every call that does not carry the worker's own secret. The log has a line for each of them, as long as
    they are few; beyond that they are counted."""

    def __init__(self, secret: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__(errors.AuthError("this call does not carry the worker's secret"))
        self._expected = f"Bearer {secret}".encode()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._lines, self._at, self._untold = float(TOLD_AT_ONCE), monotonic(), 0

    def admits(self, metadata: dict[str, bytes]) -> bool:
        return hmac.compare_digest(metadata.get("authorization", b""), self._expected)

    def refused(self, peer: str) -> None:
        with self._lock:
            now = self._monotonic()
            self._lines = min(TOLD_AT_ONCE, self._lines + (now - self._at) / TOLD_SECONDS)
            self._at = now
            if self._lines < 1:
                self._untold += 1
                return
            self._lines -= 1
            before, self._untold = self._untold, 0
        more = f", after {before} that have no line" if before else ""
        log.warning("a call without this worker's secret was refused: it came from %s%s", peer, more)


class EpochInterceptor(_Gate):
    """Refuses calls that are addressed to another epoch of the worker: this process does not know what that one was
    told, so it could not tell a late call from a new one."""

    def __init__(self, epoch: str) -> None:
        super().__init__(errors.UpstreamUnavailableError("the call was addressed to a former life of this worker"))
        self._epoch = epoch.encode()

    def admits(self, metadata: dict[str, bytes]) -> bool:
        return metadata.get(EPOCH_KEY, self._epoch) == self._epoch


def with_secret(secret: str, epoch: str | None = None) -> tuple[tuple[str, str], ...]:
    """Make the metadata of a call to a worker; `epoch`: the worker process that it is addressed to, None for any."""
    carried = (("authorization", f"Bearer {secret}"),)
    return (*carried, (EPOCH_KEY, epoch)) if epoch else carried


class Tenant(NamedTuple):
    """On whose behalf a worker does something, and what the prefix may have there at most; None: there is no quota."""

    prefix: str = ""  # empty: nobody's
    executions: int | None = None
    transfers: int | None = None
    spooled_bytes: int | None = None


NOBODY = Tenant()
_QUOTAS = Tenant._fields[1:]
TENANT: ContextVar[Tenant] = ContextVar("tenant", default=NOBODY)  # of the request or call that is being served


@contextmanager
def on_behalf_of(tenant: Tenant) -> Iterator[None]:
    """Serve the tenant during the `with` block: its calls to workers name the tenant."""
    token = TENANT.set(tenant)
    try:
        yield
    finally:
        TENANT.reset(token)


def with_tenant() -> tuple[tuple[str, str], ...]:
    """Make the metadata that names the tenant which is being served."""
    tenant = TENANT.get()
    if not tenant.prefix:
        return ()
    quotas = ((QUOTA_KEY + name.replace("_", "-"), getattr(tenant, name)) for name in _QUOTAS)
    return ((TENANT_KEY, tenant.prefix), *((key, str(quota)) for key, quota in quotas if quota is not None))


def tenant_of(metadata: Sequence[tuple[str, str | bytes]]) -> Tenant:
    """The tenant that the metadata of a call names."""
    found = {key: value for key, value in metadata if isinstance(value, str)}
    quotas = (found.get(QUOTA_KEY + name.replace("_", "-")) for name in _QUOTAS)
    return Tenant(found.get(TENANT_KEY, ""), *(int(quota) if quota else None for quota in quotas))


def with_request() -> tuple[tuple[str, str], ...]:
    """Make the metadatum with the id of the client's request under way; none where there is none."""
    request_id = ids.current_request.get()
    return ((REQUEST_KEY, request_id),) if request_id else ()


def chunks(data: bytes) -> Iterator[bytes]:
    """Yield `data`, which goes to a worker, in pieces that fit one message."""
    for start in range(0, len(data), SENT_BYTES):
        yield data[start : start + SENT_BYTES]
