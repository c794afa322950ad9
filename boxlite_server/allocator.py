"""How the C library deals with memory that was freed."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_KEPT = 8 * 1024 * 1024  # bytes, for each of the library's arenas
_LARGEST = 1024 * 1024  # bytes of an object that is made of kept memory


def keep_freed_memory() -> None:
    """Keep a few MiB of freed memory for what is allocated next.

    By default the memory of each piece of a stream goes back to the kernel, which clears it for the next piece; that
    is a third of the time that streams take. C libraries other than glibc are left as they are.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
