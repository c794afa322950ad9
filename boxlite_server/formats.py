"""Text formats that coordinator and worker share: times, JSON, hosts in URLs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def timestamp(seconds: float | None) -> str | None:
    """Format Unix seconds as RFC 3339 in UTC, with milliseconds; None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def refuse_constant(name: str) -> Any:
    """Raise ValueError for NaN and Infinity, which are not JSON. For `parse_constant` of `json.loads`."""
    raise ValueError(f"{name} is not JSON")


def in_url(host: str) -> str:
    """Write a host as it appears in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
