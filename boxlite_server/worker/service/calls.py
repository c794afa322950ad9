"""What the log has of a call: the id of the client's request, what was done for it, and what failed."""

from __future__ import annotations

import logging
from time import perf_counter

import grpc

from ... import ids, rpc
from ...errors import BoxliteError
from ...metrics import worker as metrics

log = logging.getLogger(__name__)

# Calls that change nothing, or a little of what an earlier call has begun. Only their failures are logged.
_QUIET = frozenset(
    "GetBox ListBoxes GetExecution ReadOutput ConfirmOutput WriteInput ReadLogs ListImages ListVolumes ListSnapshots "
    "GetBoxMetrics".split()
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
        metrics.CALLS.ended(self._name, "ok", self._began)
        if self._name not in _QUIET:
            self._log("done in %.3f s", perf_counter() - self._began)

    def left(self) -> None:
        """Note that the caller has left before the end of the answers."""
        metrics.CALLS.ended(self._name, "cancelled", self._began)

    def failed(self, error: BaseException) -> None:
        code = error.code if isinstance(error, BoxliteError) else BoxliteError.code
        metrics.CALLS.ended(self._name, code, self._began)
        if isinstance(error, BoxliteError):  # any other error is logged as a fault
            self._log("%s: %s", error.code, error.message)

    def _log(self, what: str, *arguments: object) -> None:
        # What the coordinator does by itself has no request, and is no news.
        log.log(logging.INFO if self._request_id else logging.DEBUG, f"{self._name}: {what}", *arguments)
