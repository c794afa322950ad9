"""New keys that the holder of another key makes: none of them may do more than that key."""

from __future__ import annotations

from typing import Any

from ... import ids
from ...errors import InvalidArgumentError, InvalidStateError, PermissionDeniedError
from ..store import Key
from . import keys, scopes
from .prefixes import is_prefix
from .principal import ANONYMOUS, Principal


def grant(principal: Principal, body: dict[str, Any], now: float) -> tuple[Key, str]:
    """The row and the text of a new key, as the body of `createKey` asks for it.

    Raises InvalidArgumentError, PermissionDeniedError for more than `principal` may do, and InvalidStateError at a
    coordinator without keys: whoever made its first one would shut everybody else out.
    """
    if principal == ANONYMOUS:
        raise InvalidStateError("this coordinator has no keys; make the first on its host: boxlite-server keys create")
    key_id = ids.new_id()
    minted = keys.mint(key_id)
    key = Key(
        id=key_id,
        name=_name(body["name"]),
        prefix=_prefix(principal, body.get("prefix")),
        scopes=_scopes(principal, body.get("scopes")),
        secret_sha256=minted.secret_sha256,
        created_at=now,
        expires_at=_end(principal, body.get("expires_in"), now),
    )
    return key, minted.text


def _name(name: str) -> str:
    if not keys.is_name(name):
        raise InvalidArgumentError("the name of a key has 1 to 128 printable characters")
    return name


def _prefix(principal: Principal, wanted: str | None) -> str:
    prefix = wanted or principal.own_prefix
    if not is_prefix(prefix):
        raise InvalidArgumentError(f"'{prefix}' cannot be a prefix")
    if principal.is_confined and prefix != principal.own_prefix:
        raise PermissionDeniedError(f"your key makes keys of the prefix {principal.own_prefix} alone, not of {prefix}")
    return prefix


def _scopes(principal: Principal, wanted: list[str] | None) -> tuple[str, ...]:
    if wanted is None:
        wanted = [scope for scope in scopes.TENANT if scope in principal.scopes]
        if not wanted:
            raise InvalidArgumentError("your key has no scope of its prefix; name the scopes of the new key")
    lacking = [scope for scope in wanted if scope not in principal.scopes]
    if lacking:
        raise PermissionDeniedError(f"your key lacks {', '.join(lacking)}, and cannot make a key with more than it has")
    return tuple(dict.fromkeys(wanted))


def _end(principal: Principal, seconds: int | None, now: float) -> float | None:
    if seconds is None:
        return principal.expires_at
    if principal.expires_at is not None and now + seconds > principal.expires_at:
        raise PermissionDeniedError(
            "your key ends earlier than the new key would; ask for less, or leave out expires_in"
        )
    return now + seconds
