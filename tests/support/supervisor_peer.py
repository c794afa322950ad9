"""The worker's side of the supervisor's socket, small and blocking, for tests of the program itself."""

from __future__ import annotations

import array
import itertools
import os
import shutil
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

HEADER = struct.Struct("<BBHIII")
TERMINAL = 1
BY_SIGNAL, LOST = 1, 2
USER, GROUP, IDENTITY, DIRECTORY, EXEC, RESOURCES, SPEC, AT_TERMINAL = range(1, 9)  # where a start failed
PATIENCE = 60.0  # seconds; a busy machine is slow


class Packet(NamedTuple):
    type: str
    id: int = 0
    a: int = 0
    b: int = 0
    flags: int = 0
    descriptors: tuple[int, ...] = ()


def spec_bytes(argv: Sequence[str], env: Mapping[str, str], user: str = "", working_dir: str = "") -> bytes:
    strings = [user, working_dir, *argv, *(f"{name}={value}" for name, value in env.items())]
    return struct.pack("<II", len(argv), len(env)) + b"".join(os.fsencode(text) + b"\0" for text in strings)


def memory_file(data: bytes) -> int:
    file = os.memfd_create("spec", os.MFD_CLOEXEC)
    with open(file, "wb", closefd=False) as opened:
        opened.write(data)
    return file


class Peer:
    """Listens in a directory that has the program too, and speaks with the supervisor that dials last."""

    def __init__(self, directory: Path, program: Path) -> None:
        self.directory = directory
        self._ids = itertools.count(1)
        self._unread: list[Packet] = []
        self.connection: socket.socket | None = None
        self.hello = Packet("")
        shutil.copy(program, directory / "init")
        directory.chmod(0o755)
        self.listen()

    def listen(self) -> None:
        path = self.directory / "socket"
        path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        path.chmod(0o666)
        self.listener.listen(8)
        self.listener.settimeout(PATIENCE)

    def accept(self, pid: int = 0) -> Packet:
        """Take the supervisor's connection, of the process with this pid if one is given. Returns its hello."""
        while True:
            connection, _ = self.listener.accept()
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if pid and struct.unpack("iII", credentials)[0] != pid:
                connection.close()
                continue
            connection.settimeout(PATIENCE)
            self.connection, self._unread = connection, []
            self.hello = self.next("H", 0)
            return self.hello

    def hang_up(self) -> None:
        """Go away as a worker does whose process ends."""
        self.listener.close()
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def come_back(self, pid: int = 0) -> Packet:
        self.listen()
        return self.accept(pid)

    # ---- packets ----

    def send(self, packet: Packet) -> None:
        assert self.connection is not None
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", packet.descriptors))]
        data = HEADER.pack(ord(packet.type), packet.flags, 0, packet.id, packet.a, packet.b)
        self.connection.sendmsg([data], passed if packet.descriptors else [])

    def receive(self) -> Packet:
        """The next packet. Raises ConnectionResetError at the end of the connection."""
        assert self.connection is not None
        data, passed, _, _ = self.connection.recvmsg(64, 256, socket.MSG_CMSG_CLOEXEC)
        if not data:
            raise ConnectionResetError
        kind, flags, reserved, command, a, b = HEADER.unpack(data)
        assert reserved == 0
        descriptors = tuple(file for _, _, packed in passed for file in array.array("i", packed))
        return Packet(chr(kind), command, a, b, flags, descriptors)

    def next(self, types: str, command: int) -> Packet:
        """The next packet of one of the types about a command. Others are kept for later."""
        for packet in self._unread:
            if packet.id == command and packet.type in types:
                self._unread.remove(packet)
                return packet
        while True:
            packet = self.receive()
            if packet.id == command and packet.type in types:
                return packet
            self._unread.append(packet)

    # ---- commands ----

    def spawn(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        user: str = "",
        working_dir: str = "",
        terminal: tuple[int, int] | None = None,
        output: int | None = None,
    ) -> Command:
        """Ask for a command. `terminal`: columns and rows. `output`: a descriptor to write to instead of a pipe."""
        made = [memory_file(spec_bytes(argv, {"PATH": "/bin"} if env is None else env, user, working_dir))]
        command = Command(self, next(self._ids))
        flags = size = 0
        if terminal:
            flags, size = TERMINAL, terminal[0] | terminal[1] << 16
        else:
            made.append(os.open(os.devnull, os.O_RDWR))
            for stream in ("stdout", "stderr"):
                reader, writer = os.pipe() if output is None else (-1, os.dup(output))
                if reader >= 0:
                    os.fchmod(reader, 0o666)
                command.readers[stream] = reader
                made.append(writer)
        self.send(Packet("S", command.id, size, 0, flags, tuple(made)))
        for descriptor in made:
            os.close(descriptor)
        return command

    def run(self, *argv: str, **options: object) -> tuple[int, bytes, bytes]:
        """Run a command to its end. Returns exit code, stdout and stderr."""
        command = self.spawn(*argv, **options)  # type: ignore[arg-type]
        stdout, stderr = command.read("stdout"), command.read("stderr")
        ended = command.end()
        return ended.a, stdout, stderr


@dataclass
class Command:
    peer: Peer
    id: int
    readers: dict[str, int] = field(default_factory=dict)

    def started(self) -> Packet:
        return self.peer.next("AE", self.id)

    def end(self) -> Packet:
        """Wait for the end, and have the supervisor forget the command."""
        ended = self.peer.next("XE", self.id)
        if ended.type == "X":
            self.forget()
        for reader in self.readers.values():
            if reader >= 0:
                os.close(reader)
        self.readers.clear()
        return ended

    def forget(self) -> None:
        self.peer.send(Packet("F", self.id))

    def read(self, stream: str = "stdout") -> bytes:
        """All output, until nobody writes to it any more."""
        pieces = []
        while piece := os.read(self.readers[stream], 1 << 20):
            pieces.append(piece)
        return b"".join(pieces)

    def read_line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(self.readers["stdout"], 1)
            assert piece, "the output ended within a line"
            line += piece
        return line.decode().strip()

    def signal(self, number: int) -> int:
        """Returns the errno of the answer."""
        self.peer.send(Packet("G", self.id, number))
        return self.peer.next("Q", self.id).a

    def kill(self) -> int:
        self.peer.send(Packet("K", self.id))
        return self.peer.next("Q", self.id).a
