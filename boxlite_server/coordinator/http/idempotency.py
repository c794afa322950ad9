"""Idempotency keys: a request with an `Idempotency-Key` is carried out once, and its answer is replayed.

The first request with a key is carried out, and its body is hashed as it passes, whatever its size. Its answer
depends only on the part of the body that was read: a repetition has to begin with the same bytes, and has to end
where the first body ended if that was read to its end. While the first request is under way it holds the lease of
its key, and requests with the same key wait, at every coordinator. A crash ends the lease and leaves no answer, so
the next request is carried out; if it creates a box, it finds the box of the first request by the key in its row.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable

import connexion
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import errors
from ..leases import Leases
from ..limits import REQUEST_SECONDS
from ..store import Answer, Store
from .errors import INTEGER_CODES, PRINCIPAL, REQUEST_ID, RequestTimeoutError, error_response
from .operations import OPERATION

log = logging.getLogger(__name__)

LIFETIME = "PT24H"
MAX_KEY = 255
MAX_BODY_BYTES = 4 * 1024 * 1024  # of an answer; a larger answer is a stream, and is not kept
_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_REPLAYED = (b"idempotency-replayed", b"true")

_KEYLESS = frozenset({"exportBox", "createTicket", "createKey"})  # operations that change nothing, or answer a secret

REQUEST_KEY = "boxlite.request_key"  # key of the ASGI scope: owner and key of the current request

Claim = tuple[str, str]  # owner and key


class Idempotency:
    """ASGI middleware inside the edge, around the HTTP application; `clock` gives Unix seconds."""

    def __init__(self, app: ASGIApp, store: Store, leases: Leases, clock: Callable[[], float]) -> None:
        self._app = app
        self._store = store
        self._leases = leases
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = Headers(scope=scope).get("idempotency-key") if scope["type"] == "http" else None
        if key is None or scope["method"] not in _METHODS:
            await self._app(scope, receive, send)
            return
        try:
            answered = await self._answer(_claim(scope, key), scope, receive, send)
        except errors.BoxliteError as exc:
            await error_response(scope, exc)(scope, receive, send)
            return
        if answered is not None:
            await send({"type": "http.response.start", "status": answered.status, "headers": _raw(answered.headers)})
            await send({"type": "http.response.body", "body": answered.body})

    async def _answer(self, claim: Claim, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        """Return the kept answer, or None after carrying the request out. Raises KeyReusedError, BusyError."""
        known = await self._store.find_answer(*claim, self._clock())
        if known is None:
            async with self._leases.hold(_lease(claim), "this Idempotency-Key"):
                known = await self._store.find_answer(*claim, self._clock())
                if known is None:
                    await self._carry_out(claim, scope, receive, send)
                    return None
        await _check_same(known, scope, receive)
        return known

    async def _carry_out(self, claim: Claim, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(receive)
        scope[REQUEST_KEY] = "/".join(claim)

        async def keep(status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
            if body.cut_off:
                return
            names = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
            answer = Answer(
                request=_line(scope),
                body_size=body.size,
                body_sha256=body.hash.hexdigest(),
                body_ended=body.ended,
                status=status,
                headers=[*names, ("x-request-id", scope[REQUEST_ID])],
                body=content,
                expires_at=self._clock() + REQUEST_SECONDS,
            )
            try:
                async with self._leases.writing(_lease(claim)) as tx:
                    await tx.put_answer(*claim, answer)
            except (errors.DatabaseError, errors.LeaseLostError) as exc:
                log.error("the answer cannot be kept for its Idempotency-Key: %s", exc)

        await self._app(scope, body.receive, _Recorder(send, keep).send)


class _Body:
    """Hashes and counts the request's body on its way to the application."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.hash = hashlib.sha256()
        self.size = 0
        self.ended = False
        self.cut_off = False  # the client went away, or fell silent, before the end

    async def receive(self) -> Message:
        try:
            message = await self._receive()
        except RequestTimeoutError:
            self.cut_off = True
            raise
        if message["type"] == "http.disconnect":
            self.cut_off |= not self.ended
        elif not self.ended:
            chunk = message.get("body", b"")
            self.hash.update(chunk)
            self.size += len(chunk)
            self.ended = not message.get("more_body", False)
        return message


class _Recorder:
    """Keeps the answer on its way to the client, just before its end is sent: a client that has the whole answer
    can rely on its replay.

    An answer that only says "try again" (429, 5xx) is not kept, nor is one that is too large, nor the answer to a
    request whose body was cut off, nor a stream of events: a repetition joins the command that says them.
    """

    def __init__(self, send: Send, keep: Callable[[int, list[tuple[bytes, bytes]], bytes], Awaitable[None]]) -> None:
        self._send = send
        self._keep = keep
        self._status = 500
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = bytearray()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body" and len(self._body) <= MAX_BODY_BYTES:
            self._body += message.get("body", b"")
            is_whole = not message.get("more_body", False) and len(self._body) <= MAX_BODY_BYTES
            if is_whole and self._status < 500 and self._status != 429 and not self._is_stream():
                await self._keep(self._status, self._headers, bytes(self._body))
        await self._send(message)

    def _is_stream(self) -> bool:
        return any(name == b"content-type" and b"event-stream" in value for name, value in self._headers)


async def _check_same(known: Answer, scope: Scope, receive: Receive) -> None:
    """Compare a repetition with the first request, reading only as much of its body as the comparison needs.

    Raises KeyReusedError where they differ.
    """
    if known.request != _line(scope):
        first = known.request.split(" #")[0]
        raise errors.KeyReusedError(f"this Idempotency-Key was used for another request: {first}")
    digest, left, ended = hashlib.sha256(), known.body_size, False
    while not ended and (left or known.body_ended):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise errors.InvalidArgumentError("the client went away in the middle of the request body")
        chunk = message.get("body", b"")
        ended = not message.get("more_body", False)
        digest.update(chunk[:left])
        if len(chunk) > left and known.body_ended:
            raise errors.KeyReusedError("this Idempotency-Key was used for a request with another body")
        left -= min(len(chunk), left)
    if left or digest.hexdigest() != known.body_sha256:
        raise errors.KeyReusedError("this Idempotency-Key was used for a request with another body")


def _claim(scope: Scope, key: str) -> Claim:
    """Return the owner and the key of a request; a key belongs to one caller in one prefix.

    Raises InvalidArgumentError for a malformed key, and UnsupportedError for an operation that takes none.
    """
    if not 1 <= len(key) <= MAX_KEY or not key.isprintable():
        raise errors.InvalidArgumentError(f"an Idempotency-Key has 1 to {MAX_KEY} printable characters")
    principal = scope.get(PRINCIPAL)
    if principal is None or scope.get(OPERATION) in _KEYLESS:
        raise errors.UnsupportedError(
            "this operation takes no Idempotency-Key: its answer is kept nowhere; leave it out"
        )
    return f"{principal.sub} {''.join(scope['path'].split('/')[2:3])}", key


def _lease(claim: Claim) -> str:
    return "/".join(("key", *claim))


def _line(scope: Scope) -> str:
    """Identify a request, apart from its body. The form of error codes counts: it is part of the answer."""
    query = f"?{scope['query_string'].decode('latin-1')}" if scope.get("query_string") else ""
    return f"{scope['method']} {scope['path']}{query}" + (" #integer" if scope.get(INTEGER_CODES) else "")


def _raw(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [*((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers), _REPLAYED]


def request_key() -> str | None:
    """Return the owner and Idempotency-Key of the current request as one string; None if the client sent no key."""
    key: str | None = connexion.request.scope.get(REQUEST_KEY)
    return key
