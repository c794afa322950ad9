"""A network namespace of this host, and what can be done in it."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

_CLONE_NEWNET = 0x40000000
_OWN = Path("/proc/self/ns/net")
# Of rtnetlink: ask for all interfaces, and what an answer holds.
_GET_LINKS, _DUMP, _END, _LINK = 18, 0x301, 3, 16
_ADDRESS, _PEER = 1, 5
_PATIENCE = 60.0  # seconds for an answer of the kernel
_libc = ctypes.CDLL(None, use_errno=True)
_visitor = ThreadPoolExecutor(1, "namespaces")

T = TypeVar("T")


class NetworkNamespace:
    """The network namespace of a process, which has to live. A worker without root can use its own alone."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/ns/net")

    @property
    def is_own(self) -> bool:
        """Whether this process is in the namespace. Raises OSError when it may not know."""
        return self._path.stat().st_ino == _OWN.stat().st_ino

    def interfaces(self) -> set[str]:
        """The names of all interfaces. Raises OSError."""
        return self.within(lambda: {name for _, name in socket.if_nameindex()})

    def peer_of(self, hardware_address: str) -> int:
        """The index, in its own namespace, of the other end of the veth that has this address here. Raises OSError."""
        wanted = bytes.fromhex(hardware_address.replace(":", ""))
        for attributes in self.within(lambda: list(_links())):
            if attributes.get(_ADDRESS) == wanted and _PEER in attributes:
                return int.from_bytes(attributes[_PEER], sys.byteorder)
        raise OSError(f"no interface has the address {hardware_address}")

    def within(self, act: Callable[[], T]) -> T:
        """Call a function, which has to be quick, in the namespace: in the thread for such visits, unless this process
        is in the namespace. Raises OSError, and what the function raises."""
        return act() if self.is_own else _visitor.submit(self._visit, act).result()

    def _visit(self, act: Callable[[], T]) -> T:
        with _OWN.open("rb") as home, self._path.open("rb") as there:
            _enter(there)
            try:
                return act()
            finally:
                _enter(home)  # to stay would keep the namespace alive


def _enter(namespace: IO[bytes]) -> None:
    """Take the calling thread, and no other, to a network namespace."""
    if _libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _links() -> Iterator[dict[int, bytes]]:
    """The attributes of each interface of the calling thread's namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(_PATIENCE)
        kernel.send(struct.pack("IHHII16x", 32, _GET_LINKS, _DUMP, 1, 0))
        while True:
            answer = kernel.recv(1 << 20)
            while answer:
                size, kind = struct.unpack_from("IH", answer)
                if kind == _LINK:
                    yield _attributes(answer[32:size])
                elif kind <= _END:
                    return
                answer = answer[_aligned(size) :]


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        size, kind = struct.unpack_from("HH", data)
        found[kind] = data[4:size]
        data = data[max(4, _aligned(size)) :]
    return found


def _aligned(size: int) -> int:
    return (size + 3) & ~3
