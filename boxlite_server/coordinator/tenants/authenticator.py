"""Authentication: from the credential of a request to its principal.

A credential is a key of the database, the one key of a small installation (`--api-key`), or a token or a ticket that
was issued for one of them. A coordinator without `--api-key`, whose database never had a key, lets everybody in.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from ... import errors
from ...formats import timestamp
from ..store import Key, Store
from . import scopes, tickets, tokens
from .attempts import Attempts
from .keys import Keys, digest, has_expired, is_secret_of, parse
from .principal import ANONYMOUS, Principal

API_KEY = "api-key"  # the principal of `--api-key`, and its id in tokens


class Refusal(StrEnum):
    """Why a request was refused."""

    MISSING = "missing"  # no credential
    WRONG = "wrong"  # a credential that nobody has
    ENDED = "ended"  # a key or token that was revoked or has expired
    FORBIDDEN = "forbidden"  # a credential without the scope of the operation, or for another prefix


class KeyEndedError(errors.AuthError):
    """The credential was a key, or a token of it, which was revoked or has expired."""

    def __init__(self, message: str, key_id: str) -> None:
        super().__init__(message)
        self.key_id = key_id


class _Granted(NamedTuple):
    """A principal, and what a token for it is made of."""

    principal: Principal
    key_id: str
    secret_sha256: str


class Grant(NamedTuple):
    """A new access token, how long it lasts in seconds, and its holder."""

    access_token: str
    seconds: int
    principal: Principal


class Authenticator:
    """Checks credentials. `api_key` is the one key of a small installation; `clock` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        rows: Keys,
        api_key: str | None,
        clock: Callable[[], float],
        attempts: Attempts | None = None,
    ) -> None:
        self._store = store
        self.keys = rows
        self._api_key = digest(api_key) if api_key else None
        self._clock = clock
        self._attempts = attempts or Attempts()
        self._token_secret = ""
        self.refused: Counter[Refusal] = Counter()  # requests, since this coordinator started

    async def is_open(self) -> bool:
        """Whether requests need no credential, since there is no key."""
        return self._api_key is None and not await self.keys.exist()

    async def authenticate(self, authorization: str | None, address: str) -> Principal:
        """The principal of an ``Authorization`` header from a client's address.

        Raises AuthError, and ResourceExhaustedError where too many wrong keys come from the address.
        """
        if await self.is_open():
            return ANONYMOUS
        scheme, _, credential = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not credential:
            self.refused[Refusal.MISSING] += 1
            raise errors.AuthError("no API key given; send it as 'Authorization: Bearer <key>'")
        granted = await self._of_key(credential.strip()) or await self._of_token(credential.strip())
        if granted is None:
            await self._note_wrong(address)
            raise errors.AuthError("the API key is not valid here")
        return granted.principal

    async def issue_token(self, client_secret: str, address: str) -> Grant:
        """An access token for the holder of a key; it lasts `TOKEN_SECONDS`, and no longer than its key.

        Raises AuthError when the secret is no key, and ResourceExhaustedError as `authenticate` does.
        """
        if await self.is_open():
            return Grant("anonymous", tokens.TOKEN_SECONDS, ANONYMOUS)
        granted = await self._of_key(client_secret)
        if granted is None:
            await self._note_wrong(address)
            raise errors.AuthError("the client secret is not valid here; it has to be an API key")
        now = self._clock()
        seconds = int(min(tokens.TOKEN_SECONDS, (granted.principal.expires_at or float("inf")) - now))
        text = tokens.issue(await self._secret(), granted.key_id, granted.secret_sha256, int(now) + seconds)
        return Grant(text, seconds, granted.principal)

    async def authenticate_ticket(self, text: str, target: Callable[[Principal], str], address: str) -> Principal:
        """The principal of a ticket, whose request is for what `target` says of that principal. Raises what
        `authenticate` raises."""
        if self._api_key is None and not await self.keys.exist():
            return ANONYMOUS
        ticket = tickets.parse(text)
        key, hashes = await self._present(ticket.key_id) if ticket else (None, [])
        for sha256 in hashes:
            principal = Principal.of_key(key, sha256) if key else (await self._single(sha256)).principal
            if ticket and tickets.is_signed(ticket, await self._secret(), sha256, target(principal)):
                if ticket.expires_at < self._clock():
                    raise self._ended("the ticket has expired; fetch a new one", ticket.key_id)
                if key:
                    self._checked(key, sha256)
                return principal
        await self._note_wrong(address)
        raise errors.AuthError("the ticket is not valid for this request")

    async def issue_ticket(self, principal: Principal, target: str, seconds: int) -> tuple[str, int]:
        """A ticket for the GET of `target` by `principal`, and when it ends, in Unix seconds."""
        expires_at = int(self._clock()) + seconds
        secret_sha256 = principal.secret_sha256 or self._api_key or ""
        return tickets.issue(await self._secret(), principal.sub, secret_sha256, expires_at, target), expires_at

    def refuse(self, principal: Principal, scope: str) -> errors.PermissionDeniedError:
        """The error for a principal without the scope of an operation."""
        self.refused[Refusal.FORBIDDEN] += 1
        has = ", ".join(sorted(principal.scopes))
        return errors.PermissionDeniedError(f"this operation needs the scope {scope}; the API key has {has}")

    async def _of_key(self, credential: str) -> _Granted | None:
        """What a key grants; None for any other text. Raises AuthError for a key that has ended."""
        if self._api_key is not None:
            secret_sha256 = digest(credential)
            if hmac.compare_digest(secret_sha256, self._api_key):
                return await self._single(secret_sha256)
        parsed = parse(credential)
        if parsed is None:
            return None
        key_id, secret_sha256 = parsed
        for again in (False, True):  # a key that was rotated a moment ago has a secret that is not known yet
            key = await self.keys.find(key_id, again=again)
            if key is None:
                return None
            if is_secret_of(key, secret_sha256, self._clock()):
                return self._checked(key, secret_sha256)
        return None

    async def _of_token(self, credential: str) -> _Granted | None:
        """What a token grants; None for any other text. Raises AuthError for a token that has ended."""
        token = tokens.parse(credential)
        if token is None:
            return None
        key, hashes = await self._present(token.key_id)
        secret = await self._secret()
        signed = [sha256 for sha256 in hashes if tokens.is_signed(token, secret, sha256)]
        if not signed:
            return None
        if token.expires_at < self._clock():
            raise self._ended("the access token has expired; fetch a new one", token.key_id)
        return self._checked(key, signed[0]) if key else await self._single(signed[0])

    async def _present(self, key_id: str) -> tuple[Key | None, list[str]]:
        """The key with that id, if it is one of the database, and the hashes of its secrets that are good now."""
        if key_id == API_KEY:
            return None, [self._api_key] if self._api_key else []
        key = await self.keys.find(key_id)
        is_former_good = key is not None and self._clock() < (key.former_until or 0.0)
        hashes = [key.secret_sha256, key.former_sha256 if is_former_good else None] if key else []
        return key, [sha256 for sha256 in hashes if sha256]

    async def _single(self, secret_sha256: str) -> _Granted:
        """What `--api-key` grants: everything, but it registers workers only as long as no key of workers was made."""
        of_workers = () if await self.keys.exist(of_workers=True) else (scopes.WORKER,)
        return _Granted(Principal(API_KEY, frozenset({*scopes.CLIENT, *of_workers})), API_KEY, secret_sha256)

    def _checked(self, key: Key, secret_sha256: str) -> _Granted:
        if key.revoked_at is not None:
            raise self._ended(f"the API key '{key.name}' was revoked at {timestamp(key.revoked_at)}", key.id)
        if has_expired(key, self._clock()):
            raise self._ended(f"the API key '{key.name}' has expired at {timestamp(key.expires_at)}", key.id)
        self.keys.note_use(key)
        return _Granted(Principal.of_key(key, secret_sha256), key.id, secret_sha256)

    def _ended(self, message: str, key_id: str) -> KeyEndedError:
        self.refused[Refusal.ENDED] += 1
        return KeyEndedError(message, key_id)

    async def _note_wrong(self, address: str) -> None:
        self.refused[Refusal.WRONG] += 1
        await self._attempts.failed(address)

    async def _secret(self) -> str:
        if not self._token_secret:
            self._token_secret = await self._store.token_secret()
        return self._token_secret
