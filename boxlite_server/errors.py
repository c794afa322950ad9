"""Everything that can go wrong, as one hierarchy.

    BoxliteError                       500 internal
    ├── InvalidArgumentError           400 invalid_argument
    │   └── KeyReusedError             422 invalid_argument
    ├── UnsupportedError               400 unsupported
    │   └── NotBuiltError              501 unsupported
    ├── AuthError                      401 unauthenticated
    │   └── PermissionDeniedError      403 permission_denied
    ├── NotFoundError                  404 not_found
    ├── AlreadyExistsError             409 already_exists
    ├── InvalidStateError              409 invalid_state
    │   └── StoppedError               409 stopped
    ├── SessionReapedError             410 session_reaped
    ├── ImageError                     422 image_pull_failed
    ├── ExecutionError                 422 execution_failed
    ├── ResourceExhaustedError         429 resource_exhausted
    ├── UpstreamUnavailableError       503 upstream_unavailable
    │   ├── UnreachableError           503 upstream_unavailable
    │   ├── BusyError                  503 upstream_unavailable
    │   └── LeaseLostError             503 upstream_unavailable
    ├── EngineError                    503 engine_unavailable
    ├── TimedOutError                  504 timeout
    └── DatabaseError                  500 database_error
        └── DatabaseUnavailableError   503 database_error

Each class carries the HTTP status, the `type` and the `code` that released clients dispatch on.
The message is for the person at the client: it says what happened, to what, and what to do.
This module knows no framework: HTTP is mapped in `coordinator/http_errors.py`, gRPC in `rpc.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class BoxliteError(Exception):
    """The root; raised itself only for faults of our own that have no better name."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "InternalError"
    code: ClassVar[str] = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidArgumentError(BoxliteError):
    status, type, code = 400, "InvalidArgumentError", "invalid_argument"


class KeyReusedError(InvalidArgumentError):
    """An Idempotency-Key that belongs to another request."""

    status = 422


class UnsupportedError(BoxliteError):
    """A field or value that the contract knows and this server refuses rather than ignores."""

    status, type, code = 400, "UnsupportedError", "unsupported"


class NotBuiltError(UnsupportedError):
    """An operation of the contract that this server does not serve yet."""

    status = 501


class AuthError(BoxliteError):
    status, type, code = 401, "AuthError", "unauthenticated"


class PermissionDeniedError(AuthError):
    status, code = 403, "permission_denied"


class NotFoundError(BoxliteError):
    status, type, code = 404, "NotFoundError", "not_found"


class AlreadyExistsError(BoxliteError):
    status, type, code = 409, "AlreadyExistsError", "already_exists"


class InvalidStateError(BoxliteError):
    status, type, code = 409, "InvalidStateError", "invalid_state"


class StoppedError(InvalidStateError):
    type, code = "StoppedError", "stopped"


class SessionReapedError(BoxliteError):
    status, type, code = 410, "SessionReapedError", "session_reaped"


class ImageError(BoxliteError):
    status, type, code = 422, "ImageError", "image_pull_failed"


class ExecutionError(BoxliteError):
    status, type, code = 422, "ExecutionError", "execution_failed"


class ResourceExhaustedError(BoxliteError):
    status, type, code = 429, "ResourceExhaustedError", "resource_exhausted"


class UpstreamUnavailableError(BoxliteError):
    """A worker does not answer."""

    status, type, code = 503, "UpstreamUnavailableError", "upstream_unavailable"


class UnreachableError(UpstreamUnavailableError):
    """A worker cannot be reached, or was lost in the middle of a call: what became of it is not known."""


class BusyError(UpstreamUnavailableError):
    """Others are at it, and were for as long as one waits: nothing has been done."""


class LeaseLostError(UpstreamUnavailableError):
    """An operation was held up until others could take it over: what became of it is not known."""


class EngineError(BoxliteError):
    """The container engine does not answer, or answers with a fault of its own."""

    status, type, code = 503, "EngineError", "engine_unavailable"


class TimedOutError(BoxliteError):
    status, type, code = 504, "TimeoutError", "timeout"


class DatabaseError(BoxliteError):
    """The coordinator's database cannot be read or written."""

    type, code = "DatabaseError", "database_error"


class DatabaseUnavailableError(DatabaseError):
    """It cannot be now: locked, full, read-only, not reached. The next try may find that this is over."""

    status = 503


def _tree(root: type[BoxliteError]) -> Iterator[type[BoxliteError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


# The first class of a code wins: one that shares its parent's code never crosses the wire.
_BY_CODE: dict[str, type[BoxliteError]] = {}
for _cls in _tree(BoxliteError):
    _BY_CODE.setdefault(_cls.code, _cls)


def from_code(code: str, message: str) -> BoxliteError:
    """The error of the given `code`; an unknown code gives the root class."""
    return _BY_CODE.get(code, BoxliteError)(message)
