"""Who may read the metrics: the holder of a token."""

from __future__ import annotations

import hmac


def is_holder(authorization: str | None, token: str) -> bool:
    """Whether an ``Authorization`` header carries the token."""
    scheme, _, given = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())
