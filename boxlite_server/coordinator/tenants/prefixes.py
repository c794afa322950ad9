"""The names of prefixes, and what a path means that names none."""

from __future__ import annotations

import re

DEFAULT = "default"  # the prefix of callers who have none of their own, and in the paths of older clients

# A path that begins with one of these names a resource and has no prefix; it gets the caller's own.
PREFIXED = frozenset({"boxes", "events", "images", "metrics", "tickets", "volumes"})
RESERVED = PREFIXED | {"admin", "config", "me", "oauth", "health", "local"}

_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_prefix(text: str) -> bool:
    """Whether a prefix can have this name."""
    return text not in RESERVED and _PREFIX.fullmatch(text) is not None
