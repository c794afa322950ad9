"""The errors of the server, as one hierarchy.

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
    │   ├── LocalImageError            422 image_pull_failed
    │   └── PrivateImageError          422 image_pull_failed
    ├── ExecutionError                 422 execution_failed
    ├── ResourceExhaustedError         429 resource_exhausted
    │   └── QuotaExceededError         429 resource_exhausted
    ├── UpstreamUnavailableError       503 upstream_unavailable
    │   ├── UnreachableError           503 upstream_unavailable
    │   ├── BusyError                  503 upstream_unavailable
    │   └── LeaseLostError             503 upstream_unavailable
    ├── EngineError                    503 engine_unavailable
    ├── TimedOutError                  504 timeout
    └── DatabaseError                  500 database_error
        └── DatabaseUnavailableError   503 database_error

Each class carries the HTTP status, the `type` and the `code` that released clients dispatch on.
The message is for the person at the client: it says what happened, to what, and what to do about it. Where it names
workers or tells of their hosts, it is for operators alone, and the error has a `public` text beside it.
This module knows no framework: HTTP is mapped in `coordinator/http/errors.py`, gRPC in `rpc.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

# What to do about a box whose main command always ends at once.
GO_ON = 'make the box with an entrypoint that goes on, such as ["tail", "-f", "/dev/null"]'


class BoxliteError(Exception):
    """The root of the hierarchy; raised itself only for internal errors that have no class of their own."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "InternalError"
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, public: str = "") -> None:
        """`public`: what a tenant may read, where `message` names workers, their hosts or what these have."""
        super().__init__(message)
        self.message = message
        self.public = public or message


class InvalidArgumentError(BoxliteError):
    status, type, code = 400, "InvalidArgumentError", "invalid_argument"


class KeyReusedError(InvalidArgumentError):
    """The Idempotency-Key of a request was used for another request."""

    status = 422


class UnsupportedError(BoxliteError):
    """The API has this field or value, and this server refuses it rather than ignore it."""

    status, type, code = 400, "UnsupportedError", "unsupported"


class NotBuiltError(UnsupportedError):
    """The API has this operation, and this server does not serve it yet."""

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


class LocalImageError(ImageError):
    """A worker cannot have the image, for a reason that may be its host's own: another worker may have it."""


class PrivateImageError(ImageError):
    """A worker has not pulled the image, since that takes credentials of its host, and its caller is asked first."""


class ExecutionError(BoxliteError):
    status, type, code = 422, "ExecutionError", "execution_failed"


class ResourceExhaustedError(BoxliteError):
    status, type, code = 429, "ResourceExhaustedError", "resource_exhausted"


class QuotaExceededError(ResourceExhaustedError):
    """A prefix has as much as its quotas allow; no other worker changes that."""


class UpstreamUnavailableError(BoxliteError):
    """A worker does not answer."""

    status, type, code = 503, "UpstreamUnavailableError", "upstream_unavailable"


class UnreachableError(UpstreamUnavailableError):
    """A worker cannot be reached, or was lost in the middle of a call, whose outcome is unknown."""


class BusyError(UpstreamUnavailableError):
    """Other operations held the resource for longer than this one waits; this one has done nothing."""


class LeaseLostError(UpstreamUnavailableError):
    """An operation was delayed until its lease ended and others could take over; its outcome is unknown."""


class EngineError(BoxliteError):
    """The container engine does not answer, or answers with an internal error."""

    status, type, code = 503, "EngineError", "engine_unavailable"


class TimedOutError(BoxliteError):
    status, type, code = 504, "TimeoutError", "timeout"


class DatabaseError(BoxliteError):
    """The coordinator's database cannot be read or written."""

    type, code = "DatabaseError", "database_error"

    def __init__(self, message: str, public: str = "the database cannot be used now; try again later") -> None:
        super().__init__(message, public)


class DatabaseUnavailableError(DatabaseError):
    """The database is locked, full, read-only or unreachable at present. The next try may succeed."""

    status = 503


def _tree(root: type[BoxliteError]) -> Iterator[type[BoxliteError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


# The first class with a code wins: a class that shares its parent's code arrives over gRPC as its parent, except for
# those of images; see `rpc.py`.
_BY_CODE: dict[str, type[BoxliteError]] = {}
for _cls in _tree(BoxliteError):
    _BY_CODE.setdefault(_cls.code, _cls)


def from_code(code: str, message: str) -> BoxliteError:
    """Make the error with the given `code`; an unknown code makes a BoxliteError."""
    kind = _BY_CODE.get(code, BoxliteError)
    return kind(message, "the worker failed at this request") if kind is BoxliteError else kind(message)
