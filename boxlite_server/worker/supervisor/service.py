"""The file service: a program in a box that reads small files for the worker, and writes files; see `init/files.c`.

The worker asks on a socket, and each request is answered there before the next. What comes is untrusted: the box may
have put anything in the program's place, or have stopped it.

    type  mode, uid, gid, time  path  content
    S                           *              what is at the path; a link at its end is not followed
    R                           *              read a regular file
    W     *                     *     *        write one, in place of whatever is there but a directory
    L     *                     *              likewise for a large one: its content follows the answer, and a second
                                               answer follows that
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import NamedTuple

from ..box_files import FilePart
from . import wire
from .command import Command, UnheardError
from .ends import sealed
from .link import Link

MAX_BYTES = 1 << 20  # of a small file
MAX_LARGE = 2**32 - 1  # bytes of a large one
MAX_PATH = 4095  # bytes
PATIENCE = 5.0  # seconds for all requests of one transfer, without what a large file takes
SLOWEST = 32 << 20  # bytes of a large file in a second
REST = 2.0  # seconds for which a program waits for the next transfer; it ends by itself after ten
_REQUEST = struct.Struct("<B3xIIIIIqI4x")
_ANSWER = struct.Struct("<IIIII4xq")
_MAX_ID = 2**31 - 1
_NOWHERE = (errno.ENOENT, errno.ENOTDIR)


class UnservedError(Exception):
    """The file service did nothing, or cannot be trusted to have done it. The engine has to."""


class Found(NamedTuple):
    """A file of a box. `mode` has its kind, as in stat(). `modified`: nanoseconds since 1970; an answer has whole
    seconds."""

    mode: int
    uid: int
    gid: int
    modified: int


_NOTHING = Found(0, 0, 0, 0)


class Program(NamedTuple):
    """The program, which runs in a box, and the socket on which it answers."""

    command: Command
    socket: socket.socket


class Programs:
    """The programs in one box: each has one user at a time. What a transfer has used rests for a moment, since the next
    may follow at once. `path`: of the program in the box. `later` calls a function after so many seconds."""

    def __init__(self, link: Link, path: str, later: Callable[[float, Callable[[], None]], None]) -> None:
        self._link = link
        self._spec = wire.spec("", "", [path, "--files"], ["HOME=/"])
        self._later = later
        self._lock = threading.Lock()
        self._resting: Program | None = None

    def take(self) -> Program:
        """A program for the caller alone. Raises OSError and `UnheardError`."""
        with self._lock:
            program, self._resting = self._resting, None
        if program is None:
            return self._start()
        if _can_be_read(program.socket):  # it has ended, or says what nobody has asked
            self.end(program, kill=True)
            return self._start()
        return program

    def _start(self) -> Program:
        with ExitStack() as theirs:
            mine, other = socket.socketpair()
            theirs.enter_context(other)
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            theirs.callback(os.close, nothing)
            streams = (other.fileno(), other.fileno(), nothing)
            try:
                return Program(self._link.start(sealed(self._spec, theirs), None, streams, is_own=True), mine)
            except BaseException:
                mine.close()
                raise

    def give_back(self, program: Program) -> None:
        """Let the program rest: it has answered all that it was asked."""
        with self._lock:
            former, self._resting = self._resting, program
        if former is not None:
            self.end(former, kill=False)
        self._later(REST, lambda: self._end_resting(program))

    def _end_resting(self, program: Program) -> None:
        with self._lock:
            if self._resting is not program:
                return
            self._resting = None
        self.end(program, kill=False)

    def end(self, program: Program, *, kill: bool) -> None:
        """End a program, which does so itself when its input ends, unless the box has stopped it."""
        program.socket.close()
        self._link.leave(program.command, kill=kill)


class FileService:
    """The file service of one box, for one transfer.

    Requests raise `UnservedError`. Once one was not answered in time, or with nonsense, so do all others.
    """

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._program: Program | None = None
        self._deadline = 0.0
        self._is_over = False

    def stat(self, path: str) -> Found | None:
        """What is at a path; None: nothing."""
        try:
            return self._ask("S", path)[0]
        except _RefusedError as exc:
            if exc.number in _NOWHERE:
                return None
            raise

    def read(self, path: str) -> tuple[Found, bytes]:
        """A regular file and its content, of at most `MAX_BYTES` bytes."""
        found, content = self._ask("R", path)
        if not stat.S_ISREG(found.mode):
            raise self._broken("it read what is no file")
        return found, content

    def write(self, path: str, file: Found, content: bytes | FilePart) -> None:
        """Write a regular file, in place of what is there, at once and whole. `content`: a part of a file where it is
        larger than `MAX_BYTES`."""
        if isinstance(content, bytes):
            self._ask("W", path, file, content)
            return
        self._ask("L", path, file, size=content.size)
        self._deadline += content.size / SLOWEST
        try:
            self._send_part(self._connected(), content)
            self._answer("L")
        except OSError as exc:
            raise self._broken(str(exc)) from exc

    def close(self) -> None:
        """Let go of the program. Nothing can be asked any more then."""
        self._is_over = True
        program, self._program = self._program, None
        if program is not None:
            self._programs.give_back(program)

    # ---- requests ----

    def _ask(
        self, kind: str, path: str, file: Found = _NOTHING, content: bytes = b"", *, size: int = 0
    ) -> tuple[Found, bytes]:
        """`size`: of content that follows the answer."""
        name, size = path.encode(errors="surrogateescape"), size or len(content)
        if len(name) > MAX_PATH or len(content) > MAX_BYTES or size > MAX_LARGE:
            raise UnservedError("the path or the file is too large")
        seconds, nanoseconds = divmod(file.modified, 10**9)
        head = _REQUEST.pack(
            ord(kind), len(name), size, stat.S_IMODE(file.mode), file.uid, file.gid, seconds, nanoseconds
        )
        connection = self._connected()
        try:
            self._wait(connection)
            connection.sendall(head + name + content)
            return self._answer(kind)
        except OSError as exc:
            raise self._broken(str(exc)) from exc

    def _answer(self, kind: str) -> tuple[Found, bytes]:
        connection = self._connected()
        error, size, mode, uid, gid, modified = _ANSWER.unpack(self._receive(connection, _ANSWER.size))
        if size > (MAX_BYTES if kind == "R" else 0) or max(uid, gid) > _MAX_ID or abs(modified) >= 1 << 53:
            raise self._broken(f"its answer has {size} bytes, of {uid}:{gid}, from {modified}")
        received = self._receive(connection, size)
        if error:
            raise _RefusedError(error)
        return Found(mode, uid, gid, modified * 10**9), received

    def _send_part(self, connection: socket.socket, part: FilePart) -> None:
        """Send a part of a file past this process."""
        poll = select.poll()
        poll.register(connection, select.POLLOUT)
        position, end = part.position, part.position + part.size
        while position < end:
            left = min(self._wait(connection), PATIENCE)
            if not poll.poll(left * 1000):
                raise self._broken("it did not take a file in time")
            with suppress(BlockingIOError):
                sent = os.sendfile(connection.fileno(), part.file.fileno(), position, end - position)
                if not sent:
                    raise OSError("a file is shorter than it was")
                position += sent

    def _receive(self, connection: socket.socket, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            self._wait(connection)
            piece = connection.recv(size - len(received))
            if not piece:
                raise self._broken("it has ended")
            received += piece
        return bytes(received)

    def _wait(self, connection: socket.socket) -> float:
        """Have the next call on the connection end when the patience does. Returns how many seconds that are."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._broken("it did not answer in time")
        connection.settimeout(left)
        return left

    def _connected(self) -> socket.socket:
        """The connection to the program, which is taken at first."""
        if self._is_over:
            raise UnservedError("the file service was of no use before")
        if self._program is None:
            self._deadline = time.monotonic() + PATIENCE
            try:
                self._program = self._programs.take()
            except (OSError, UnheardError) as exc:
                raise self._broken(str(exc)) from exc
        return self._program.socket

    def _broken(self, why: str) -> UnservedError:
        self._is_over = True
        program, self._program = self._program, None
        if program is not None:
            self._programs.end(program, kill=True)
        return UnservedError(f"the file service is of no use: {why}")


class _RefusedError(UnservedError):
    """The program in the box was refused by the kernel, or itself refuses. `number`: an error number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the file service refuses: {os.strerror(number) if number < 4096 else number}")
        self.number = number


def _can_be_read(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
