"""The first step of every HTTP and WebSocket request: give it an id, refuse it to pages of other web sites,
authenticate it, write out its prefix.

Released clients write the box paths in three ways: without a prefix, under ``default``, and under a prefix of
their own. The edge turns all three into ``/v1/{prefix}/…``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import errors, ids
from ..auth import Authenticator
from .bodies import bounded
from .connections import ConnectionLimits
from .errors import INTEGER_CODES, PRINCIPAL, REQUEST_ID, RETRY_AFTER, error_response
from .origins import Origins, preflight

# A path that begins with one of these names a resource and has no prefix; it gets the caller's own.
_PREFIXED = frozenset({"boxes", "images", "metrics", "volumes"})
RESERVED = _PREFIXED | {"admin", "config", "me", "oauth", "health", "local"}
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Edge:
    """ASGI middleware around the applications `http` and `websocket`. Requests to `open_paths` need no credential.
    `origins`: the web sites whose pages may send requests; by default those of this server only. `body_seconds`: the
    longest pause in a request's body."""

    def __init__(
        self,
        http: ASGIApp,
        websocket: ASGIApp,
        authenticator: Authenticator,
        open_paths: Collection[str],
        origins: Origins | None = None,
        body_seconds: float = ConnectionLimits.body,
    ) -> None:
        self._apps = {"http": http, "websocket": websocket}
        self._lifespan = http
        self._authenticator = authenticator
        self._origins = origins or Origins()
        self._body_seconds = body_seconds
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        scope = dict(scope)
        scope[REQUEST_ID] = request_id if _REQUEST_ID.fullmatch(request_id) else ids.request_id()
        scope[INTEGER_CODES] = scope["path"].startswith("/v1/default/")
        more: dict[str, str] = {}
        send = _with_headers(send, scope[REQUEST_ID], more)
        try:
            more.update(self._origins.check(scope, headers))
            if answer := preflight(scope, headers):  # which carries no credential
                await answer(scope, receive, send)
                return
            self._admit(scope, headers)
        except errors.BoxliteError as exc:
            await error_response(scope, exc)(scope, receive, send)
            return
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

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Set the principal and the canonical path in `scope`. Raises AuthError, NotFoundError."""
        if not self._is_open(scope["path"]):
            principal = self._authenticator.authenticate(headers.get("authorization"))
            scope[PRINCIPAL] = principal
            scope["path"] = canonical(scope["path"], principal.prefix)
            scope["raw_path"] = scope["path"].encode()

    def _is_open(self, path: str) -> bool:
        return path in self._open_paths or path.startswith("/swagger-ui/")


def canonical(path: str, own_prefix: str) -> str:
    """Return the path with its prefix written out. Raises NotFoundError for a segment that cannot be a prefix."""
    if not path.startswith("/v1/"):
        return path
    path = path.rstrip("/")
    root, _, rest = path.removeprefix("/v1/").partition("/")
    if root in _PREFIXED:
        return f"/v1/{own_prefix}/{path.removeprefix('/v1/')}"
    if rest.partition("/")[0] in _PREFIXED and (root in RESERVED or not _PREFIX.fullmatch(root)):
        raise errors.NotFoundError(f"'{root}' cannot be a prefix")
    return path


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
