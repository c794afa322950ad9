"""What every call has: the tenant that it serves, the error that ends it, and what the log says of it."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import grpc

from ... import ids, rpc
from ...errors import BoxliteError
from ...metrics import worker as metrics
from ..executions.threads import afterwards

log = logging.getLogger(__name__)

# Calls that change nothing, or a little of what an earlier call has begun. Only their failures are logged.
_QUIET = frozenset(
    "GetBox ListBoxes GetExecution ReadOutput ConfirmOutput WriteInput ReadLogs ListImages ListVolumes ListSnapshots "
    "GetBoxMetrics StatFile ListDirectory".split()
)


class Call:
    """A call that this thread serves from now on. All that the thread logs carries the id of the client's request."""

    def __init__(self, name: str, context: grpc.ServicerContext) -> None:
        self._name = name
        self._began = perf_counter()
        carried = [value for key, value in context.invocation_metadata() if key == rpc.REQUEST_KEY]
        self._request_id = ids.parse_request_id(str(carried[0])) if carried else ""
        ids.current_request.set(self._request_id)

    def done(self) -> None:
        took = perf_counter() - self._began

        def note() -> None:
            metrics.CALLS.ended(self._name, "ok", took)
            if self._name not in _QUIET:
                self._log("done in %.3f s", took)

        afterwards(note)  # nobody waits for that

    def left(self) -> None:
        """Note that the caller has left before the end of the answers."""
        metrics.CALLS.ended(self._name, "cancelled", perf_counter() - self._began)

    def failed(self, error: BaseException) -> None:
        code = error.code if isinstance(error, BoxliteError) else BoxliteError.code
        metrics.CALLS.ended(self._name, code, perf_counter() - self._began)
        if isinstance(error, BoxliteError):  # any other error is logged as a fault
            self._log("%s: %s", error.code, error.message)

    def _log(self, what: str, *arguments: object) -> None:
        # What the coordinator does by itself has no request, and is no news.
        log.log(logging.INFO if self._request_id else logging.DEBUG, f"{self._name}: {what}", *arguments)


def answers(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method, unary or streaming, serve the tenant that its call names, and end the call with the error that it
    raises."""
    if inspect.isgeneratorfunction(method):

        @functools.wraps(method)
        def stream(self: Any, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            call = Call(method.__name__, context)
            try:
                rpc.TENANT.set(rpc.tenant_of(context.invocation_metadata()))
                yield from method(self, request, context)
            except GeneratorExit:
                call.left()
                raise
            except Exception as exc:
                call.failed(exc)
                rpc.abort(context, exc)
            call.done()

        return stream

    @functools.wraps(method)
    def unary(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        call = Call(method.__name__, context)
        try:
            rpc.TENANT.set(rpc.tenant_of(context.invocation_metadata()))
            answer = method(self, request, context)
        except Exception as exc:
            call.failed(exc)
            rpc.abort(context, exc)
        call.done()
        return answer

    return unary
