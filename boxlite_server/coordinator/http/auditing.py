"""Notes requests in the audit: which have a line there, and what it says."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Message, Scope, Send

from ... import errors
from ..tenants.audit import Audit
from ..tenants.authenticator import KeyEndedError
from ..tenants.prefixes import PREFIXED
from ..tenants.principal import Principal
from .errors import PRINCIPAL, REQUEST_ID
from .operations import Operation

ENTRY = "boxlite.entry"  # key of the ASGI scope: the request's Entry

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_REFUSED = frozenset({401, 403, 429})
_WEBSOCKET = 101  # the status of a WebSocket that is opened
_UNANSWERED = 0


class Entry:
    """What the audit is to have of one request. It is written once, as soon as the status of the answer is known: a
    stream may last for hours."""

    def __init__(self, audit: Audit, scope: Scope, send: Send) -> None:
        self._audit = audit
        self._scope = scope  # whose path becomes the canonical one
        self._send = send
        self._is_written = False
        self._key_id = ""  # of a key that has ended
        self._is_refused = False
        self.operation: Operation | None = None
        self.principal: Principal | None = None  # where the scope has none

    async def send(self, message: Message) -> None:
        """Send, as ASGI's `send` does."""
        if not self._is_written:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                self._write(message["status"], Headers(raw=message.get("headers", [])).get("location", ""))
            elif message["type"] == "websocket.accept":
                self._write(_WEBSOCKET)
        await self._send(message)

    def refused(self, operation: Operation | None, error: errors.BoxliteError) -> None:
        """Note that the request is refused before it reaches its operation."""
        self.operation, self._is_refused = operation, True
        if isinstance(error, KeyEndedError):
            self._key_id = error.key_id

    def end(self) -> None:
        """Note that the request has ended, with or without an answer."""
        if not self._is_written:
            self._write(_UNANSWERED)

    def _write(self, status: int, made: str = "") -> None:
        self._is_written = True
        if not self._is_wanted(status):
            return
        scope, principal = self._scope, self.principal or self._scope.get(PRINCIPAL)
        client = scope.get("client")
        self._audit.note(
            key_id=principal.sub if principal else self._key_id,
            prefix=_prefix(scope["path"], principal),
            action=self.operation.id if self.operation else "",
            target=made if status == 201 and made else scope["path"],
            status=status,
            request_id=scope[REQUEST_ID],
            address=str(client[0]) if client else "",
        )

    def _is_wanted(self, status: int) -> bool:
        """Whether the request may have changed something, or was refused. A heartbeat is neither."""
        if self._is_refused or status in _REFUSED:
            return True
        if self.operation is not None and self.operation.id == "heartbeat":
            return status >= 400
        return self._scope.get("method") not in _READING  # a WebSocket has no method


def _prefix(path: str, principal: Principal | None) -> str:
    if principal is not None and principal.is_confined:
        return principal.own_prefix
    parts = path.split("/", 4)
    return parts[2] if principal is not None and parts[3:4] and parts[3] in PREFIXED else ""
