"""The caller of a request, as far as its credential tells."""

from __future__ import annotations

from typing import NamedTuple

from ..store import Key
from . import scopes
from .prefixes import DEFAULT


class Principal(NamedTuple):
    """Who sends a request, and what it may do."""

    sub: str
    scopes: frozenset[str]
    own_prefix: str = DEFAULT  # which a path without a prefix means
    is_confined: bool = False  # to `own_prefix`; any other prefix does not exist for it
    expires_at: float | None = None  # Unix seconds; None: never
    secret_sha256: str = ""  # of the secret of the key of the database, if it is one

    @classmethod
    def of_key(cls, key: Key, secret_sha256: str) -> Principal:
        """The holder of a key of the database, by the hash of its present or its former secret."""
        return cls(
            key.id,
            frozenset(key.scopes),
            key.prefix or DEFAULT,
            is_confined=True,
            expires_at=key.expires_at,
            secret_sha256=secret_sha256,
        )


ANONYMOUS = Principal("anonymous", frozenset({*scopes.CLIENT, scopes.WORKER}))
