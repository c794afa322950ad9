"""The file service: a program in a box that reads small files for the worker, lists directories, and writes files; see
`init/files.c`.

The worker asks through a pipe, and each request is answered through another one before the next. What comes is
untrusted: the box may have put anything in the program's place, or have stopped it. Through a socket it could pass
descriptors, see `closing.py`.

    type  mode, uid, gid, time  path  content
    S                           *              what is at the path; a link at its end is not followed
    R                           *              read a regular file
    D                           *     *        list a directory behind the name that is the content
    W     *                     *     *        write one, in place of whatever is there but a directory
    L     *                     *              likewise for a large one: its content follows the answer, and a second
                                               answer follows that
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import select
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
from .ends import PIPE_BYTES, sealed
from .link import Link

MAX_BYTES = 1 << 20  # of a small file
MAX_LARGE = 2**32 - 1  # bytes of a large one
MAX_PATH = 4095  # bytes
PATIENCE = 5.0  # seconds for all requests of one transfer, without what a large file takes
SLOWEST = 32 << 20  # bytes of a large file in a second
REST = 2.0  # seconds for which a program waits for the next transfer; it ends by itself after ten
_REQUEST = struct.Struct("<B3xIIIIIqI4x")
_ANSWER = struct.Struct("<IIIII4xq")
_DETAILS = struct.Struct("<QI4x")  # of an answer to S; the text of a link follows
_ENTRY = struct.Struct("<QqIHH")  # of an answer to D; the name and the text of a link follow
_MAX_NAME = 255  # bytes
_MOST = {"R": MAX_BYTES, "D": MAX_BYTES, "S": _DETAILS.size + MAX_PATH + 1}  # bytes of an answer behind its head
_MAX_ID = 2**31 - 1
_NOWHERE = (errno.ENOENT, errno.ENOTDIR)


class UnservedError(Exception):
    """The file service did nothing, or cannot be trusted to have done it. The engine has to."""


class Found(NamedTuple):
    """A file of a box. `mode` has its kind, as in stat(). `modified`: nanoseconds since 1970; only `stat` tells more
    than whole seconds. `size`: bytes; None: it was not asked for, or an older program does not tell. `text`: of a
    link."""

    mode: int
    uid: int
    gid: int
    modified: int
    size: int | None = None
    text: str = ""


_NOTHING = Found(0, 0, 0, 0)


class Program:
    """The program, which runs in a box, and the worker's ends of its pipes: `asking` to write to, `answers` to read
    from."""

    def __init__(self, command: Command, asking: int, answers: int) -> None:
        self.command = command
        for pipe in (asking, answers):
            os.set_blocking(pipe, False)
            with suppress(OSError):  # a worker without root may have so many large pipes, and no more
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._asking = os.fdopen(asking, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb", buffering=0)

    def is_out_of_turn(self) -> bool:
        """Whether the program has ended, or says what nobody has asked."""
        return self._wait(self._answers, select.POLLIN, 0)

    def send(self, data: bytes, deadline: float) -> None:
        """Raises OSError when the program does not take it in time or has ended. `deadline`: of the monotonic
        clock."""
        view = memoryview(data)
        while view:
            if not self._wait(self._asking, select.POLLOUT, deadline - time.monotonic()):
                raise TimeoutError("it took nothing in time")
            view = view[self._asking.write(view) or 0 :]

    def send_part(self, part: FilePart, deadline: float) -> None:
        """Send a part of a file past this process. Raises what `send` raises, also when nothing is taken for long."""
        position, end = part.position, part.position + part.size
        while position < end:
            if not self._wait(self._asking, select.POLLOUT, min(deadline - time.monotonic(), PATIENCE)):
                raise TimeoutError("it took nothing of a file in time")
            flags = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
            with suppress(BlockingIOError):
                left = end - position
                sent = os.splice(part.file.fileno(), self._asking.fileno(), left, offset_src=position, flags=flags)
                if not sent:
                    raise OSError("a file is shorter than it was")
                position += sent

    def receive(self, size: int, deadline: float) -> bytes:
        """So many bytes. Raises OSError when they do not come in time or the program has ended."""
        received = bytearray()
        while len(received) < size:
            if not self._wait(self._answers, select.POLLIN, deadline - time.monotonic()):
                raise TimeoutError("it did not answer in time")
            piece = self._answers.read(size - len(received))
            if piece == b"":
                raise EOFError("it has ended")
            received += piece or b""
        return bytes(received)

    @staticmethod
    def _wait(pipe: io.FileIO, event: int, seconds: float) -> bool:
        poll = select.poll()
        poll.register(pipe, event)
        return bool(poll.poll(max(seconds, 0) * 1000))

    def close(self) -> None:
        self._asking.close()
        self._answers.close()


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
        if program.is_out_of_turn():
            self.end(program, kill=True)
            return self._start()
        return program

    def _start(self) -> Program:
        with ExitStack() as theirs, ExitStack() as ours:
            (reading, asking), (answers, writing) = _pipe(theirs, ours), _pipe(ours, theirs)
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            theirs.callback(os.close, nothing)
            command = self._link.start(sealed(self._spec, theirs), None, (reading, writing, nothing), is_own=True)
            ours.pop_all()
            return Program(command, asking, answers)

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
        program.close()
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
            found, content = self._ask("S", path)
        except _RefusedError as exc:
            if exc.number in _NOWHERE:
                return None
            raise
        if not content:
            return found
        if len(content) < _DETAILS.size:
            raise self._broken("its answer has no details")
        size, nanoseconds = _DETAILS.unpack_from(content)
        if size >= 1 << 63 or nanoseconds >= 10**9:
            raise self._broken(f"its answer tells of {size} bytes, and {nanoseconds} ns")
        text = content[_DETAILS.size :].decode(errors="surrogateescape")
        return found._replace(modified=found.modified + nanoseconds, size=size, text=text)

    def entries(self, path: str, after: str) -> tuple[dict[str, Found], bool]:
        """The first entries of a directory behind the name `after`, in the order of their names' bytes, and whether
        there are more."""
        last = after.encode(errors="surrogateescape")
        _, content = self._ask("D", path, content=last)
        try:
            return _entries(content, last), content[0] == 1
        except (ValueError, IndexError, struct.error) as exc:
            raise self._broken(f"its list is no list: {exc}") from exc

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
        program = self._taken()
        try:
            program.send_part(content, self._deadline)
            self._answer(program, "L")
        except (OSError, EOFError) as exc:
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
        program = self._taken()
        try:
            program.send(head + name + content, self._deadline)
            return self._answer(program, kind)
        except (OSError, EOFError) as exc:
            raise self._broken(str(exc)) from exc

    def _answer(self, program: Program, kind: str) -> tuple[Found, bytes]:
        error, size, mode, uid, gid, modified = _ANSWER.unpack(program.receive(_ANSWER.size, self._deadline))
        if size > _MOST.get(kind, 0) or max(uid, gid) > _MAX_ID or abs(modified) >= 1 << 53:
            raise self._broken(f"its answer has {size} bytes, of {uid}:{gid}, from {modified}")
        received = program.receive(size, self._deadline)
        if error:
            raise _RefusedError(error)
        return Found(mode, uid, gid, modified * 10**9), received

    def _taken(self) -> Program:
        """The program, which is taken at first."""
        if self._is_over:
            raise UnservedError("the file service was of no use before")
        if self._program is None:
            self._deadline = time.monotonic() + PATIENCE
            try:
                self._program = self._programs.take()
            except (OSError, UnheardError) as exc:
                raise self._broken(str(exc)) from exc
        return self._program

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


def _entries(content: bytes, last: bytes) -> dict[str, Found]:
    """The entries that a list holds behind its first byte. Raises ValueError and struct.error for what no directory
    has, or in another order, and for a list without entries that is not the end."""
    found: dict[str, Found] = {}
    position = 1
    while position < len(content):
        size, seconds, mode, name_size, text_size = _ENTRY.unpack_from(content, position)
        position += _ENTRY.size
        name, text = content[position : position + name_size], content[position + name_size :][:text_size]
        position += name_size + text_size
        if not last < name or len(name) > _MAX_NAME or b"/" in name or b"\0" in name or name in (b".", b".."):
            raise ValueError("a name is none, or not in its place")
        if position > len(content) or size >= 1 << 63 or abs(seconds) >= 1 << 53:
            raise ValueError("an entry is cut off, or its numbers are none")
        last = name
        name_text, link = (part.decode(errors="surrogateescape") for part in (name, text))
        found[name_text] = Found(mode, 0, 0, seconds * 10**9, size, link)
    if not found and content[0]:
        raise ValueError("there are more, but none is told")
    return found


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """The ends of a pipe, for reading and for writing, which the one and the other closes. Raises OSError."""
    ends = os.pipe()
    for end, closing in zip(ends, (reader, writer), strict=True):
        closing.callback(os.close, end)
    return ends
