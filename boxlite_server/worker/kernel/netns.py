"""A network namespace of this host, and what can be done in it."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

_CLONE_NEWNET = 0x40000000
# Of rtnetlink: ask for all interfaces, and what an answer holds.
_GET_LINKS, _DUMP, _END, _LINK = 18, 0x301, 3, 16
_ADDRESS, _PEER = 1, 5
_PATIENCE = 60.0  # seconds for an answer of the kernel

T = TypeVar("T")


class NetworkNamespace:
    """The network namespace of a process, which has to live. A worker without root can use its own alone."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/ns/net")

    @property
    def is_own(self) -> bool:
        """Whether this process is in the namespace. Raises OSError when it may not know."""
        return self._path.stat().st_ino == Path("/proc/self/ns/net").stat().st_ino

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
        """Call a function in the namespace: in a thread that enters it, and ends there, unless this process is in it.
        Raises OSError, and what the function raises."""
        if self.is_own:
            return act()
        call = _Call(act, self._path)
        thread = threading.Thread(target=call.run, daemon=True)
        thread.start()
        thread.join()
        return call.result()


class _Call(Generic[T]):
    def __init__(self, act: Callable[[], T], path: Path) -> None:
        self._act = act
        self._path = path
        self._results: list[T] = []
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            with self._path.open("rb") as namespace:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            self._results.append(self._act())
        except Exception as exc:
            self._error = exc

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._results[0]


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
