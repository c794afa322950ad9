"""The limit of open descriptors of this process."""

from __future__ import annotations

import resource
from contextlib import suppress


def raise_limit() -> None:
    """Raise the soft limit of open descriptors to the hard one.

    The usual soft limit of 1024 suits programs that use `select`; a server holds a descriptor for each connection and
    each live execution.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
