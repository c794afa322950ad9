"""Files with holes: gives the disk back what lies at the beginning of a file that goes on growing."""

from __future__ import annotations

import ctypes
import errno
import os

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of <linux/falloc.h>
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch_hole(descriptor: int, offset: int, size: int) -> None:
    """Free `size` bytes from `offset` on, which read as zeros from then on. The file's size stays. Raises OSError,
    EOPNOTSUPP where the file system knows no holes."""
    while _libc.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, offset, size):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
