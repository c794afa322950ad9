"""What a server asks of the kernel for its own process."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

_NICENESS = -10


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open descriptors to the hard one.

    The usual soft limit of 1024 suits programs that use `select`; a server holds a descriptor for each connection and
    each live execution.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def come_before_boxes() -> None:
    """Have the threads that this one starts served before the processes of boxes, however many those are.

    That takes root; without, all stays as it is.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, min(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
