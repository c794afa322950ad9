"""What a server asks of the kernel and of the C library for its own process."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress

_NICENESS = -10
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_KEPT = 8 * 1024 * 1024  # bytes, for each of the library's arenas
_LARGEST = 1024 * 1024  # bytes of an object that is made of kept memory


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


def keep_freed_memory() -> None:
    """Keep a few MiB of freed memory for what is allocated next.

    By default the memory of each piece of a stream goes back to the kernel, which clears it for the next piece; that
    is a third of the time that streams take. C libraries other than glibc are left as they are.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
