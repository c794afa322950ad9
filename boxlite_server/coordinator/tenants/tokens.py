"""Access tokens: short-lived, and signed with a secret of the cluster, so that every coordinator takes them.

A token is ``blt_<key id>_<expiry>_<signature>``. The signature covers the hash of the key's secret too, so that a
token ends with that secret.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import NamedTuple

TOKEN_SECONDS = 900

_TEXT = re.compile(r"blt_([0-9A-Za-z-]{1,32})_([0-9]{1,12})_([0-9a-f]{64})")


class Token(NamedTuple):
    """What a token's text says; whether that is true, `is_signed` tells."""

    key_id: str
    expires_at: int  # Unix seconds
    signature: str


def issue(secret: str, key_id: str, secret_sha256: str, expires_at: int) -> str:
    """The text of a token. `secret` is the cluster's."""
    return f"blt_{key_id}_{expires_at}_{_signature(secret, key_id, secret_sha256, expires_at)}"


def parse(credential: str) -> Token | None:
    """Read the text of a token; None for any other text."""
    match = _TEXT.fullmatch(credential)
    return Token(match[1], int(match[2]), match[3]) if match else None


def is_signed(token: Token, secret: str, secret_sha256: str) -> bool:
    """Whether the cluster issued the token for the key's secret with this hash."""
    expected = _signature(secret, token.key_id, secret_sha256, token.expires_at)
    return hmac.compare_digest(token.signature, expected)


def _signature(secret: str, key_id: str, secret_sha256: str, expires_at: int) -> str:
    message = f"access-token {key_id} {expires_at} {secret_sha256}"
    return hmac.new(secret.encode(), message.encode(), hashlib.sha256).hexdigest()
