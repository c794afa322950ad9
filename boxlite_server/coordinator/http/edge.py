"""The first step of every HTTP and WebSocket request: give it an id, refuse it to pages of other web sites,
authenticate it, write out its prefix, and see whether the caller may do what it asks for, and so soon.

Released clients write the box paths in three ways: without a prefix, under ``default``, and under a prefix of
their own. The edge turns all three into ``/v1/{prefix}/…``. Under ``default`` a key finds its own prefix.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import errors, ids, rpc
from ...formats import without_secrets
from ...metrics import coordinator as metrics
from ...metrics.access import is_holder
from ..tenants import scopes, tickets
from ..tenants.audit import Audit
from ..tenants.authenticator import Authenticator, KeyEndedError
from ..tenants.prefixes import DEFAULT, PREFIXED, is_prefix
from ..tenants.principal import ANONYMOUS, Principal
from ..tenants.quotas import QuotaRows
from .bodies.streams import bounded
from .connections import ConnectionLimits
from .ending import Ending
from .errors import INTEGER_CODES, IS_OPERATOR, PRINCIPAL, REQUEST_ID, RETRY_AFTER, error_response
from .operations import OPERATION, Operation, Operations
from .origins import Origins, preflight

TENANT = "boxlite.tenant"  # key of the ASGI scope: the prefix whose request it is, as workers hear of it
ENTRY = "boxlite.entry"  # key of the ASGI scope: the request's Entry

_DOCUMENTS_BELOW = ("/swagger-ui/", "/ui/")

METRICS = "getPrometheusMetrics"  # the operation that a token of its own may call

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_REFUSED = frozenset({401, 403, 429})
_WEBSOCKET = 101  # the status of a WebSocket that is opened
_UNANSWERED = 0


class Edge:
    """ASGI middleware around the applications `http` and `websocket`.

    `audit` gets a line for each request that may have changed something, or was refused. `operations`: those of the
    API. `documents`: paths of pages beside the API, which need no credential. `origins`: the web sites whose pages may
    send requests; by default those of this server only. `body_seconds`: the longest pause in a request's body.
    `metrics_token`: the credential of monitoring, which needs no database; None: there is none.
    """

    def __init__(
        self,
        http: ASGIApp,
        websocket: ASGIApp,
        authenticator: Authenticator,
        quotas: QuotaRows,
        audit: Audit,
        operations: Operations,
        documents: Collection[str] = (),
        origins: Origins | None = None,
        body_seconds: float = ConnectionLimits.body,
        metrics_token: str | None = None,
    ) -> None:
        self._apps = {"http": http, "websocket": websocket}
        self._lifespan = http
        self._authenticator = authenticator
        self._quotas = quotas
        self._audit = audit
        self._origins = origins or Origins()
        self._body_seconds = body_seconds
        self._metrics_token = metrics_token
        self._operations = operations
        self._documents = frozenset(documents)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        IS_OPERATOR.set(False)
        headers = Headers(scope=scope)
        scope = dict(scope)
        query, ticket = tickets.split(scope["query_string"].decode("latin-1"))
        scope["query_string"] = query.encode("latin-1")
        scope[REQUEST_ID] = ids.parse_request_id(without_secrets(headers.get("x-request-id", ""))) or ids.request_id()
        scope[INTEGER_CODES] = scope["path"].startswith("/v1/default/")
        ids.current_request.set(scope[REQUEST_ID])  # of the task, which serves this request alone
        entry = scope[ENTRY] = Entry(self._audit, scope, send)
        try:
            await self._enter(scope, headers, ticket, receive, entry)
        finally:
            entry.end()

    async def _enter(self, scope: Scope, headers: Headers, ticket: str | None, receive: Receive, entry: Entry) -> None:
        """Admit the request, and serve it or answer why not."""
        more: dict[str, str] = {}
        send = _with_headers(entry.send, scope[REQUEST_ID], more)
        try:
            more.update(self._origins.check(scope, headers))
            if answer := preflight(scope, headers):  # which carries no credential
                await answer(scope, receive, send)
                return
            operation = entry.operation = await self._admit(scope, headers, ticket)
        except errors.BoxliteError as exc:
            entry.refused(self._asked_for(scope), exc)
            await error_response(scope, exc)(scope, receive, send)
            return
        IS_OPERATOR.set(PRINCIPAL in scope and scopes.ADMIN in scope[PRINCIPAL].scopes)
        with rpc.on_behalf_of(scope.get(TENANT, rpc.NOBODY)):
            await self._serve(scope, receive, send, operation)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, operation: Operation | None) -> None:
        """Run the application, and end what goes on for long when the key of its caller ends."""
        principal: Principal | None = scope.get(PRINCIPAL)
        if principal is None or not principal.secret_sha256 or operation is None or not operation.may_go_on:
            await self._run(scope, receive, send)
            return
        ending = Ending(scope, receive, send)
        with self._authenticator.keys.watched(principal.sub, principal.secret_sha256, ending.end):
            await self._run(scope, ending.receive, ending.send)
        await ending.close()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._apps["websocket"](scope, receive, send)
        elif scope["method"] == "GET":
            await self._answer(scope, receive, send)
        else:
            await self._answer(scope, bounded(receive, self._body_seconds), send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the HTTP application, and answer 503 if the server cancels the request before its answer has begun.

        At shutdown the server cancels every request that outlasts the grace period. An answer that has begun is
        broken off.
        """
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._apps["http"](scope, receive, watched)
        except asyncio.CancelledError:
            if not has_begun:
                error = errors.UpstreamUnavailableError(
                    "this coordinator is shutting down and did not wait for this request to end; look what became of it"
                )
                await error_response(scope, error)(scope, receive, send)

    async def _admit(self, scope: Scope, headers: Headers, ticket: str | None) -> Operation | None:
        """Set the principal, the canonical path and the operation in `scope`, and return the operation. A path without
        one is left to the application, which has no such operation either.

        Raises AuthError, PermissionDeniedError, NotFoundError, ResourceExhaustedError.
        """
        path, method = scope["path"], scope.get("method", "GET")  # a WebSocket handshake is a GET
        if path in self._documents or path.startswith(_DOCUMENTS_BELOW):
            return None
        operation = self._operations.find(method, path)
        if operation is None or not (operation.is_open or self._is_monitoring(operation, headers)):
            principal = await self._authenticate(scope, headers, ticket)
            scope[PRINCIPAL] = principal
            scope["path"] = canonical(path, principal)
            scope["raw_path"] = scope["path"].encode()
            if scope["path"] != path:
                operation = self._operations.find(method, scope["path"])
            if operation is not None and not operation.is_allowed(principal):
                raise self._authenticator.refuse(principal, operation.scope)
            if (prefix := prefix_of(scope["path"], principal)) is not None:
                scope[TENANT] = await self._quotas.take_request(prefix)
        scope[OPERATION] = operation and operation.id
        scope["path_params"] = operation.parameters_of(scope["path"]) if operation else {}
        return operation

    async def _authenticate(self, scope: Scope, headers: Headers, ticket: str | None) -> Principal:
        authorization, address = headers.get("authorization"), client_address(scope)
        if ticket is None or authorization is not None or scope.get("method", "GET") != "GET":
            return await self._authenticator.authenticate(authorization, address)
        path, query = scope["path"], scope["query_string"].decode("latin-1")

        def target(principal: Principal) -> str:
            with suppress(errors.NotFoundError):
                return tickets.target(canonical(path, principal), query)
            return ""  # no ticket is for that

        return await self._authenticator.authenticate_ticket(ticket, target, address)

    def _is_monitoring(self, operation: Operation, headers: Headers) -> bool:
        """Whether the request asks for the metrics with the token for them."""
        token = self._metrics_token
        return operation.id == METRICS and token is not None and is_holder(headers.get("authorization"), token)

    def _asked_for(self, scope: Scope) -> Operation | None:
        """The operation of a request that was refused, perhaps before its prefix was written out."""
        method, path = scope.get("method", "GET"), scope["path"]
        with suppress(errors.NotFoundError):
            path = canonical(path, ANONYMOUS)
        return self._operations.find(method, path)


def client_address(scope: Scope) -> str:
    """The address of the client that sent a request."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def prefix_of(path: str, principal: Principal) -> str | None:
    """The prefix whose request this is: that of the canonical path, else the caller's own. None: it is a request of
    the fleet's operator or of a worker, of which there are never too many."""
    _, _, root, kind, *_ = *path.split("/", 4), "", "", ""
    if kind in PREFIXED:
        return root
    return None if root == "admin" else principal.own_prefix


def canonical(path: str, principal: Principal) -> str:
    """Return the path with its prefix written out. Raises NotFoundError for a segment that cannot be a prefix, and for
    a prefix that does not exist for the caller."""
    if not path.startswith("/v1/"):
        return path
    path = path.rstrip("/")
    root, _, rest = path.removeprefix("/v1/").partition("/")
    if root in PREFIXED:
        return f"/v1/{principal.own_prefix}/{path.removeprefix('/v1/')}"
    if rest.partition("/")[0] not in PREFIXED:
        return path
    if not is_prefix(root):
        raise errors.NotFoundError(f"'{root}' cannot be a prefix")
    if not principal.is_confined or root == principal.own_prefix:
        return path
    if root == DEFAULT:
        return f"/v1/{principal.own_prefix}/{rest}"
    raise errors.NotFoundError(f"prefix not found: {root}")


def _with_headers(send: Send, request_id: str, more: Mapping[str, str]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            # A replayed answer keeps the id of the first request.
            headers.setdefault("X-Request-Id", request_id)
            if seconds := RETRY_AFTER.get(message.get("status", 0)):
                headers.setdefault("Retry-After", str(seconds))
            headers.update(more)
        await send(message)

    return send_with_headers


class Entry:
    """What metrics and audit are to have of one request. It is noted once, when the status of the answer is known: a
    stream may last for hours. An answer that is there as a whole goes out before that."""

    def __init__(self, audit: Audit, scope: Scope, send: Send) -> None:
        self._audit = audit
        self._scope = scope  # whose path becomes the canonical one
        self._send = send
        self._began = perf_counter()
        self._status: int | None = None  # once it is known
        self._made = ""  # the path of what was made
        self._seconds = 0.0  # from the beginning to the status
        self._is_noted = False
        self._key_id = ""  # of a key that has ended
        self._is_refused = False
        self.operation: Operation | None = None
        self.principal: Principal | None = None  # where the scope has none

    async def send(self, message: Message) -> None:
        """Send, as ASGI's `send` does."""
        if self._status is None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                self._know(message["status"], Headers(raw=message.get("headers", [])).get("location", ""))
            elif message["type"] == "websocket.accept":
                self._know(_WEBSOCKET)
            await self._send(message)
        else:
            await self._send(message)
            self._note()

    def refused(self, operation: Operation | None, error: errors.BoxliteError) -> None:
        """Note that the request is refused before it reaches its operation."""
        self.operation, self._is_refused = operation, True
        if isinstance(error, KeyEndedError):
            self._key_id = error.key_id

    def end(self) -> None:
        """Note that the request has ended, with or without an answer."""
        if self._status is None:
            self._know(_UNANSWERED)
        self._note()

    def _know(self, status: int, made: str = "") -> None:
        self._status, self._made, self._seconds = status, made, perf_counter() - self._began
        asyncio.get_running_loop().call_soon(self._note)  # also when the body comes later

    def _note(self) -> None:
        if self._is_noted or self._status is None:
            return
        self._is_noted = True
        operation = self.operation.id if self.operation else metrics.NO_OPERATION
        metrics.REQUESTS[operation, self._status].inc()
        metrics.REQUEST_SECONDS[operation].observe(self._seconds)
        if self._is_wanted(self._status):
            self._write(self._status)

    def _write(self, status: int) -> None:
        scope, principal = self._scope, self.principal or self._scope.get(PRINCIPAL)
        client = scope.get("client")
        self._audit.note(
            key_id=principal.sub if principal else self._key_id,
            prefix=_prefix(scope["path"], principal),
            action=self.operation.id if self.operation else "",
            target=self._made if status == 201 and self._made else scope["path"],
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
