"""Forms that texts take on both sides: times, JSON, hosts in URLs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def timestamp(seconds: float | None) -> str | None:
    """Unix seconds as RFC 3339 in UTC, with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def refuse_constant(name: str) -> Any:
    """The `parse_constant` of `json.loads`: NaN and Infinity are no JSON. Raises ValueError."""
    raise ValueError(f"{name} is not JSON")


def in_url(host: str) -> str:
    """A host as it stands in a URL: an IPv6 address goes in brackets."""
    return f"[{host}]" if ":" in host else host
