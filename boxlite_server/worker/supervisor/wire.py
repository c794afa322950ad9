"""The packets between the worker and the supervisor of a box, on a Unix socket of type SOCK_SEQPACKET.

A packet is a header of 16 bytes, little endian: type (1 byte), flags (1), zero (2), the command's id (4), and two
numbers `a` and `b` (4 each). The worker chooses the ids, which are not 0.

    from the worker
    S  start a command   flags: 1 a terminal; a: its columns, and its rows in the upper half
                         descriptors: the spec and, without a terminal, stdin, stdout and stderr
    G  signal it         a: the signal's number
    K  kill it, and all that it has started
    F  forget it: its end was noted
    M  start the main command of a box, which awaits it, under an id of its own
                         flags: 1 as process 1, in place of the supervisor; descriptor: the spec
                         it is answered as S is, and its end is that of the box
    from the supervisor
    H  greeting          flags: 1 the box awaits its main command; a: the protocol's version
                         b: how many commands it knows, each of which follows as A, X or E
    A  started           a: the pid inside the box; descriptor: the terminal, in the first answer
    X  ended             flags: 1 by a signal, 2 the exit code is lost; a: the exit code
    E  not started       a: the error number; b: the stage at which it failed
    Q  signalled, killed a: 0, or the error number, ESRCH after the command's end

What comes from a supervisor is untrusted: the box may have put anything in its place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

VERSION = 1
MAX_COMMANDS = 512  # that a supervisor knows at once
MAX_SPEC = 4 * 1024 * 1024  # bytes
OWN = 1 << 31  # bit of the ids of the worker's own commands, which are no executions
PACKET_BYTES = 16
_HEADER = struct.Struct("<BBHIII")
_COUNTS = struct.Struct("<II")
_TERMINAL, _AS_FIRST, _AWAITS_MAIN, _BY_SIGNAL, _LOST = 1, 1, 1, 1, 2  # flags
_MAX_ERRNO = 4095
_MAX_SIZE = 65535  # columns and rows of a terminal


class ProtocolError(Exception):
    """A packet that no supervisor sends."""


class Stage(IntEnum):
    """Where the start of a command can fail."""

    USER = 1
    GROUP = 2
    SET_USER = 3
    DIRECTORY = 4
    EXECUTE = 5
    RESOURCES = 6
    SPEC = 7
    TERMINAL = 8


@dataclass(frozen=True, slots=True)
class Greeting:
    known: int
    awaits_main: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    command_id: int
    pid: int


@dataclass(frozen=True, slots=True)
class Ended:
    command_id: int
    exit_code: int
    is_lost: bool


@dataclass(frozen=True, slots=True)
class Failed:
    command_id: int
    errno: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class Signalled:
    command_id: int
    errno: int


Answer = Greeting | Started | Ended | Failed | Signalled


def start(command_id: int, size: tuple[int, int] | None) -> bytes:
    """`size`: columns and rows of the terminal; None: the command has none."""
    if size is None:
        return _packet("S", command_id)
    cols, rows = (min(max(number, 0), _MAX_SIZE) for number in size)
    return _packet("S", command_id, cols | rows << 16, flags=_TERMINAL)


def main(command_id: int, *, as_first: bool) -> bytes:
    return _packet("M", command_id, flags=_AS_FIRST if as_first else 0)


def signal(command_id: int, number: int) -> bytes:
    return _packet("G", command_id, number)


def kill(command_id: int) -> bytes:
    return _packet("K", command_id)


def forget(command_id: int) -> bytes:
    return _packet("F", command_id)


def _packet(kind: str, command_id: int, a: int = 0, flags: int = 0) -> bytes:
    return _HEADER.pack(ord(kind), flags, 0, command_id, a, 0)


def spec(user: str, directory: str, command: Sequence[str], env: Iterable[str]) -> bytes:
    """The content of the spec's descriptor. Raises ValueError for text with a zero byte, and for too much text."""
    variables = list(env)
    texts = [user, directory, *command, *variables]
    if any("\0" in text for text in texts):
        raise ValueError("the command has a zero byte in its arguments or its environment")
    joined = "\0".join(texts).encode(errors="surrogateescape")
    if len(joined) + 1 + _COUNTS.size > MAX_SPEC:
        raise ValueError("the command's arguments and environment are too long")
    return _COUNTS.pack(len(command), len(variables)) + joined + b"\0"


def parse(packet: bytes) -> Answer:
    """What a supervisor says. Raises `ProtocolError` for anything that a supervisor does not say."""
    if len(packet) != PACKET_BYTES:
        raise ProtocolError(f"a packet of {len(packet)} bytes")
    kind, flags, zero, command_id, a, b = _HEADER.unpack(packet)
    answer = _parsed(kind, flags, command_id, a, b)
    if answer is None or zero or bool(command_id) == isinstance(answer, Greeting):
        raise ProtocolError(f"an unknown packet: {packet.hex()}")
    return answer


def _parsed(kind: int, flags: int, command_id: int, a: int, b: int) -> Answer | None:
    match chr(kind), flags:
        case "H", _ if flags <= _AWAITS_MAIN and a == VERSION and b <= MAX_COMMANDS:
            return Greeting(b, bool(flags))
        case "A", 0 if 0 < a < 1 << 31 and b == 0:
            return Started(command_id, a)
        case "X", _ if flags <= _BY_SIGNAL | _LOST and a <= 255 and b == 0:
            return Ended(command_id, a, bool(flags & _LOST))
        case "E", 0 if 0 < a <= _MAX_ERRNO and Stage.USER <= b <= Stage.TERMINAL:
            return Failed(command_id, a, Stage(b))
        case "Q", 0 if a <= _MAX_ERRNO and b == 0:
            return Signalled(command_id, a)
    return None
