"""The errors of `errors.py` on gRPC, both ways, and what every call carries: the worker's secret and its epoch.

The status code is for generic gRPC clients; between our own processes the error's `code` travels as the
trailing metadatum `boxlite-code`, and its message as the call's details.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc
import grpc.aio

from . import errors

CODE_KEY = "boxlite-code"
EPOCH_KEY = "boxlite-epoch"  # of which life of the worker's process a call thinks; absent: of any
ACCEPTED = ("boxlite-accepted", "yes")  # initial metadatum by which a streamed call's header is accepted
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 256 * 1024  # of every byte stream
MAX_EXECUTIONS = 2000  # that run at one worker; each costs it a thread and a connection to the engine

log = logging.getLogger(__name__)

_BROKEN_OFF = "Internal error from Core"  # what grpc.aio says of a write to a connection that is lost

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


# What a server of something else makes of a call: gRPC's reading of HTTP's 404, 401 and 403.
_FOREIGN = {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


def abort(context: grpc.ServicerContext, error: BaseException) -> NoReturn:
    """End the call with `error`: the worker's one way out. Never returns."""
    if isinstance(error, grpc.RpcError):  # of the requests of this call
        error = errors.UpstreamUnavailableError("the caller has gone")
    elif not isinstance(error, errors.BoxliteError):
        log.error("fault in a call", exc_info=error)
        error = errors.BoxliteError(f"fault in the worker: {type(error).__name__}: {error}")
    context.set_trailing_metadata(((CODE_KEY, error.code),))
    context.abort(_STATUS[error.code], error.message)


def from_rpc_error(exc: grpc.aio.AioRpcError, worker_name: str) -> errors.BoxliteError:
    """The error that a worker's failed call stands for: its own, or that the worker cannot be reached."""
    details = exc.details() or exc.code().name
    for key, value in exc.trailing_metadata() or ():
        if key == CODE_KEY:
            return errors.from_code(value.decode() if isinstance(value, bytes) else value, details)
    if exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.TimedOutError(f"worker {worker_name} did not answer in time; try again")
    if exc.code() is grpc.StatusCode.UNAVAILABLE:
        return errors.UnreachableError(f"worker {worker_name} cannot be reached: {details}")
    if exc.code() in _FOREIGN:
        return errors.UpstreamUnavailableError(
            f"what answers at the address of worker {worker_name} is none: {details}"
        )
    is_lost = exc.code() is grpc.StatusCode.INTERNAL and details == _BROKEN_OFF
    if is_lost or exc.code() is grpc.StatusCode.CANCELLED:  # not by the one who asked: that raises something else
        return errors.UpstreamUnavailableError(f"worker {worker_name} broke off the call; try again")
    if exc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.ResourceExhaustedError(f"worker {worker_name} has too many calls under way; try again")
    return errors.BoxliteError(f"worker {worker_name}: {exc.code().name}: {details}")


class _Gate(grpc.ServerInterceptor):
    """Lets calls pass whose metadata `admits`; the others end with `error`."""

    def __init__(self, error: errors.BoxliteError) -> None:
        def refuse(request: Any, context: grpc.ServicerContext) -> NoReturn:
            abort(context, error)

        self._refuse: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(refuse)

    def admits(self, metadata: dict[str, bytes]) -> bool:
        raise NotImplementedError

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        pairs = handler_call_details.invocation_metadata
        metadata = {key: value if isinstance(value, bytes) else value.encode() for key, value in pairs}
        return continuation(handler_call_details) if self.admits(metadata) else self._refuse


class SecretInterceptor(_Gate):
    """Refuses every call that does not carry the worker's own secret."""

    def __init__(self, secret: str) -> None:
        super().__init__(errors.AuthError("this call does not carry the worker's secret"))
        self._expected = f"Bearer {secret}".encode()

    def admits(self, metadata: dict[str, bytes]) -> bool:
        return hmac.compare_digest(metadata.get("authorization", b""), self._expected)


class EpochInterceptor(_Gate):
    """Refuses calls that were meant for another life of the worker's process: it knows nothing of what that had
    been told, so it could not tell a late call from a new one."""

    def __init__(self, epoch: str) -> None:
        super().__init__(errors.UpstreamUnavailableError("the call was addressed to a former life of this worker"))
        self._epoch = epoch.encode()

    def admits(self, metadata: dict[str, bytes]) -> bool:
        return metadata.get(EPOCH_KEY, self._epoch) == self._epoch


def with_secret(secret: str, epoch: str | None = None) -> tuple[tuple[str, str], ...]:
    """The metadata that a call to a worker carries; `epoch`: the life of the worker that is meant."""
    carried = (("authorization", f"Bearer {secret}"),)
    return (*carried, (EPOCH_KEY, epoch)) if epoch else carried


def chunks(data: bytes) -> Iterator[bytes]:
    """`data` in pieces that fit one message."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]
