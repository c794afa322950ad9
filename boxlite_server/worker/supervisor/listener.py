"""The socket in the directory of a box, at which the box's supervisor dials."""

from __future__ import annotations

import os
import socket
from pathlib import Path

SOCKET_NAME = "socket"
BACKLOG = 8  # connections that wait to be accepted


def listen(directory: Path) -> socket.socket:
    """A listening socket in the directory, where it replaces a former one. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        (directory / SOCKET_NAME).unlink(missing_ok=True)
        place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{place}/{SOCKET_NAME}")  # short: addresses have at most 107 bytes
        finally:
            os.close(place)
        (directory / SOCKET_NAME).chmod(0o666)  # whoever dials is checked
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
