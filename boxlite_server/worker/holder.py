"""A small process that keeps the worker's connections to commands open while the worker itself is restarted.

An engine that loses the connection to a command gives the command up: its output has nowhere to go any more, its
exit code is lost, its input ends. So each connection has a second owner: the holder process gets a copy of it, and
hands it to the next worker process. The holder never reads from a connection, so a command whose output is not read
waits, as it does for any slow reader.

What a command has left running at its end loses its output too: the engine closes the pipes, and the next write kills.
So the holder gets the pipes' ends for reading, and reads and drops what comes until the last writer has ended.

Messages are packets on a Unix socket: a letter, a name and, in some, descriptors. `K` has the holder keep the
descriptors that come along under the name. `D` drops them. `T` takes copies of them; the answer is `Y` with the
descriptors, or `N`. `R` has the holder read and drop what comes on the descriptor that comes along.

`Holder` is the worker's side; `main` is the process, which ends some time after the worker has.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import select
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

SOCKET_NAME = "holder.sock"
# Seconds that the process waits for the worker to come back: while commands run, while it holds only connections of
# ended commands, whose output may still be unread, and while it holds nothing.
LIVE_SECONDS, ENDED_SECONDS, EMPTY_SECONDS = 900.0, 60.0, 2.0
MAX_DRAINED = 512  # pipes whose output is dropped; more are closed at once
_DRAIN_SECONDS = 0.1  # between two looks at these pipes
_DRAIN_READS, _DRAIN_BYTES = 16, 65536  # of each pipe, at a look
_TIMEOUT = 5.0  # seconds, of the worker's calls
_MAX_PACKET = 512  # bytes
_MAX_DESCRIPTORS = 4  # under one name
_DESCRIPTOR = array.array("i").itemsize

log = logging.getLogger(__name__)


class Holder:
    """The worker's side. Without the process, commands do not survive a restart of the worker; all else goes on."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None

    def keep(self, name: str, *descriptors: int) -> None:
        """Have the process keep copies of the descriptors, at most four, under a name that nobody else uses."""
        if failure := self._hand_over(b"K" + name.encode(), descriptors):
            log.warning("a command would not survive a restart of this worker: %s", failure)

    def drain(self, pipe: int) -> None:
        """Have the process read and drop what comes on the non-blocking descriptor, which this closes here."""
        if failure := self._hand_over(b"R", [pipe]):
            log.warning("what a command has left running cannot go on writing: %s", failure)
        os.close(pipe)

    def _hand_over(self, packet: bytes, descriptors: Sequence[int]) -> OSError | None:
        """Send the packet and the descriptors to the process. Returns the failure."""
        failure = None
        with self._lock:
            for _ in range(2):  # the second time with a new process, in case the old one has died
                try:
                    _send(self._reached(or_started=True), packet, descriptors)
                    return None
                except OSError as exc:
                    self._forget()
                    failure = exc
        return failure

    def drop(self, name: str) -> None:
        """Have the process close the descriptors kept under the name, if it can be reached."""
        with self._lock, contextlib.suppress(OSError):
            if self._connection is not None:
                _send(self._connection, b"D" + name.encode())

    def take(self, name: str) -> list[int]:
        """Copies of the descriptors kept under the name, for the caller to close; empty: there are none.

        The process keeps the descriptors until `drop`.
        """
        with self._lock:
            try:
                connection = self._reached(or_started=False)
                _send(connection, b"T" + name.encode())
                return _receive(connection)[1]
            except OSError as exc:
                log.debug("no holder: %s", exc)
                self._forget()
                return []

    def close(self) -> None:
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _reached(self, *, or_started: bool) -> socket.socket:
        """The connection to the process, which is started if it does not run and `or_started`. Raises OSError."""
        if self._connection is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection.settimeout(_TIMEOUT)
            try:
                with _address(self._home) as address:
                    try:
                        connection.connect(address)
                    except (FileNotFoundError, ConnectionError):
                        if not or_started:
                            raise
                        self._start(address)
                        connection.connect(address)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _start(self, address: str) -> None:
        (self._home / SOCKET_NAME).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(address)
            (self._home / SOCKET_NAME).chmod(0o600)
            listener.listen()  # connections wait until the process is up
            subprocess.Popen(
                # The process needs only the standard library. The home is an argument so that process lists show it.
                [sys.executable, "-I", __file__, str(self._home)],
                stdin=listener.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # so that the worker's terminal does not end the process with the worker
            )


@contextlib.contextmanager
def _address(home: Path) -> Iterator[str]:
    """An address for the socket below `home`. It is short, since addresses of sockets have at most 107 bytes."""
    directory = os.open(home, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET_NAME}"
    finally:
        os.close(directory)


def _send(connection: socket.socket, packet: bytes, descriptors: Sequence[int] = ()) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([packet], rights)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """A packet and the descriptors that came with it; raises OSError once the other end is closed."""
    packet, rights, _, _ = connection.recvmsg(_MAX_PACKET, socket.CMSG_SPACE(_MAX_DESCRIPTORS * _DESCRIPTOR))
    if not packet:
        raise ConnectionResetError("the other end is gone")
    descriptors = array.array("i")
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) // _DESCRIPTOR * _DESCRIPTOR])
    return packet, list(descriptors)


# ---- the process ---------------------------------------------------------------------------------------


class _Process:
    """The holder process: keeps descriptors by name for the workers that connect to `listener`."""

    def __init__(self, listener: socket.socket) -> None:
        self._held: dict[str, list[int]] = {}
        self._drained: set[int] = set()
        self._listener = listener
        self._workers: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        alone_since = time.monotonic()
        drained_at = 0.0
        while True:
            timeout = _DRAIN_SECONDS if self._drained else None if self._workers else 1.0
            for key, _ in self._selector.select(timeout):
                if key.fileobj is self._listener:
                    worker, _ = self._listener.accept()
                    self._workers.add(worker)
                    self._selector.register(worker, selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket):
                    self._serve(key.fileobj)
            if time.monotonic() - drained_at >= _DRAIN_SECONDS:
                self._drain()
                drained_at = time.monotonic()
            if self._workers:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since >= self._patience():
                return

    def _serve(self, worker: socket.socket) -> None:
        try:
            packet, descriptors = _receive(worker)
            letter, name = packet[:1], packet[1:].decode()
            if letter == b"K":
                self._drop(name)
                self._held[name] = descriptors
            elif letter == b"R":
                for descriptor in descriptors:
                    if len(self._drained) < MAX_DRAINED:
                        self._drained.add(descriptor)
                    else:
                        os.close(descriptor)
            elif letter == b"D":
                self._drop(name)
            elif letter == b"T":
                kept = self._held.get(name, [])
                _send(worker, b"Y" if kept else b"N", kept)
        except OSError:
            self._selector.unregister(worker)
            self._workers.discard(worker)
            worker.close()

    def _drop(self, name: str) -> None:
        for kept in self._held.pop(name, []):
            os.close(kept)

    def _drain(self) -> None:
        """Drop what has come on the pipes, and close those without a writer."""
        for pipe in list(self._drained):
            with contextlib.suppress(BlockingIOError):
                if not all(os.read(pipe, _DRAIN_BYTES) for _ in range(_DRAIN_READS)):
                    self._drained.discard(pipe)
                    os.close(pipe)

    def _patience(self) -> float:
        if self._drained:
            return LIVE_SECONDS
        if not self._held:
            return EMPTY_SECONDS
        return LIVE_SECONDS if any(map(is_connected, chain(*self._held.values()))) else ENDED_SECONDS


def is_connected(descriptor: int) -> bool:
    """Whether a socket's other end is still open."""
    poll = select.poll()
    poll.register(descriptor, 0)  # a hang-up is always reported
    return not poll.poll(0)


def main() -> None:
    """Run the holder process. Its standard input is the listening socket."""
    with socket.socket(fileno=0) as listener:
        _Process(listener).run()


if __name__ == "__main__":
    main()
