"""Authentication. One API key opens everything; without a configured key everybody is let in.

Old clients first fetch a token with client credentials, whose secret is the API key. The token is stateless and
signed with the key, so it outlives a restart of the coordinator, but not a change of the key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import NamedTuple

from .. import errors

TOKEN_SECONDS = 3600
OWN_PREFIX = "default"  # the prefix of a caller whose path names none

SCOPES = ("box:read", "box:write", "box:exec", "box:delete", "image:read", "image:write", "worker:admin")


class Principal(NamedTuple):
    sub: str
    prefix: str


class Authenticator:
    """Checks bearer credentials against `api_key`; None lets everybody in. `clock` gives Unix seconds."""

    def __init__(self, api_key: str | None, clock: Callable[[], float]) -> None:
        self._key = api_key.encode() if api_key else None
        self._clock = clock

    def authenticate(self, authorization: str | None) -> Principal:
        """The principal of an ``Authorization`` header; raises AuthError."""
        if self._key is None:
            return Principal("anonymous", OWN_PREFIX)
        scheme, _, credential = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not credential:
            raise errors.AuthError("no API key given; send it as 'Authorization: Bearer <key>'")
        given = credential.strip().encode()
        if hmac.compare_digest(given, self._key) or self._is_token(given):
            return Principal("api-key", OWN_PREFIX)
        raise errors.AuthError("the API key is not valid here")

    def issue_token(self, client_secret: str) -> str:
        """An access token for `TOKEN_SECONDS` seconds; raises AuthError when the secret is not the API key."""
        if self._key is None:
            return "anonymous"
        if not hmac.compare_digest(client_secret.encode(), self._key):
            raise errors.AuthError("the client secret is not valid here; it is the coordinator's API key")
        expiry = str(int(self._clock()) + TOKEN_SECONDS)
        return f"{expiry}.{self._sign(expiry)}"

    def _is_token(self, given: bytes) -> bool:
        expiry, _, signature = given.decode(errors="replace").partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(expiry).encode()):
            return False
        if int(expiry) < self._clock():
            raise errors.AuthError("the access token has expired; fetch a new one")
        return True

    def _sign(self, expiry: str) -> str:
        assert self._key is not None
        return hmac.new(self._key, b"access-token " + expiry.encode(), hashlib.sha256).hexdigest()
