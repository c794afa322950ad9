"""A program that attacks the supervisor of its box, or the worker in the supervisor's place.

It runs inside a box, by itself, and so it imports nothing of this package. The first argument names the attack; a box
whose supervisor is replaced by this program names it in the variable ATTACK. See `attackers.py`.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tty
from collections import deque
from collections.abc import Callable
from pathlib import Path

SOCKET = "/dev/boxlite/socket"
HEADER = struct.Struct("<BBHIII")
MAX_PASSED = 253  # descriptors with one packet, as the kernel has it
SYS_PIDFD_OPEN, SYS_PIDFD_GETFD = 434, 438
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
UNREAD: deque[socket.socket] = deque(maxlen=32)  # the other ends of sockets that linger


def packet(kind: str, command: int = 0, a: int = 0, b: int = 0, flags: int = 0) -> bytes:
    return HEADER.pack(ord(kind), flags, 0, command, a, b)


def dialled() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(SOCKET)
    return connection


def say(connection: socket.socket, data: bytes, *descriptors: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([data], rights)


def hear(connection: socket.socket) -> tuple[str, int, int]:
    """Type, id and flags of the worker's next packet. Raises ConnectionError at the end of the connection."""
    data, rights, _, _ = connection.recvmsg(64, 256)
    for _, _, passed in rights:
        for descriptor in array.array("i", passed):
            os.close(descriptor)
    if not data:
        raise ConnectionResetError
    kind, flags, _, command, _, _ = HEADER.unpack(data)
    return chr(kind), command, flags


def greeted() -> socket.socket:
    connection = dialled()
    say(connection, packet("H", a=1))
    return connection


def spawned(connection: socket.socket) -> int:
    """Wait for the worker to ask for a command. Returns its id."""
    while True:
        kind, command, _ = hear(connection)
        if kind == "S":
            return command


# ---- by any process of the box ----


def stranger() -> None:
    """Dials first and again and again, from many threads, and speaks as a supervisor would."""

    def dial() -> None:
        while True:
            with contextlib.suppress(OSError), greeted() as connection:
                say(connection, packet("A", 1, 7))
                connection.recv(1)

    for _ in range(16):
        threading.Thread(target=dial, daemon=True).start()
    time.sleep(0.2)
    print("dialling", flush=True)
    signal.pause()


def lingerer() -> None:
    """Dials first and again and again, and passes sockets whose last close, which is left to the worker, takes an
    hour."""
    while True:
        with contextlib.suppress(OSError):
            pass_lingering(dialled, packet("H", a=1))
        time.sleep(0.02)


def pass_lingering(connected: Callable[[], socket.socket], said: bytes) -> None:
    """Pass such a socket by a process that ends then: so its own close does not linger."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if not os.fork():
            with contextlib.suppress(OSError):
                passed = socket.create_connection(listener.getsockname())
                passed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
                passed.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        passed.send(bytes(65536))
                say(connected(), said, passed.fileno())
            os._exit(0)
        UNREAD.append(listener.accept()[0])
    os.wait()


def thief(*pids: str) -> None:
    """Tries to trace processes, to read and write their memory, and to take their descriptors; tells what it could."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: int) -> bool:
        return libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) >= 0

    for pid in map(int, (*pids, os.getppid())):
        done = {
            "attach": libc.ptrace(PTRACE_ATTACH, pid, 0, 0) == 0,
            "seize": libc.ptrace(PTRACE_SEIZE, pid, 0, 0) == 0,
            "descriptor": any(
                call(SYS_PIDFD_GETFD, handle, number, 0) for handle in [os.pidfd_open(pid)] for number in range(16)
            ),
        }
        for name in ("mem", "maps", "environ", "fd/3", "syscall"):
            with contextlib.suppress(OSError):
                opened = os.open(f"/proc/{pid}/{name}", os.O_RDWR if name == "mem" else os.O_RDONLY)
                done[name] = name == "mem" or bool(os.read(opened, 1))
        print(pid, sorted(name for name, is_done in done.items() if is_done), flush=True)


def tracer() -> None:
    """Tries to trace each process that begins in the box, from its first moment on; tells of each that it could, and
    kills it."""
    libc = ctypes.CDLL(None, use_errno=True)
    pid = os.getpid() + 1
    print("tracing", flush=True)
    while True:
        if libc.ptrace(PTRACE_SEIZE, pid, 0, 0) == 0:
            print("traced", Path(f"/proc/{pid}/comm").read_text().strip(), flush=True)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0x40000000)  # __WALL
            pid += 1
        elif ctypes.get_errno() == errno.ESRCH and Path(f"/proc/{pid + 1}").exists():
            pid += 1  # which has ended


def limiter() -> None:
    """Takes the descriptors from process 1 and from its own keeper, which have the same user."""
    import resource

    for pid in (1, os.getppid()):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0))
    print("limited", flush=True)


def signaller() -> None:
    """Sends its own keeper all signals, and process 1 those that its main command survives, for ever."""
    numbers = [number for number in range(1, 65) if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33)]
    harmless = (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)
    print("signalling", flush=True)
    while True:
        for number in numbers:
            os.kill(os.getppid(), number)
        for number in harmless:
            os.kill(1, number)


def killer() -> None:
    """Kills every supervisor and keeper as soon as it appears, and dials in its place."""
    threading.Thread(target=stranger, daemon=True).start()
    while True:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "comm").read_text() == "init\n":
                    os.kill(int(process.name), signal.SIGKILL)


def bomb(count: str) -> None:
    """Keeps so many processes, each of which leaves its session, makes another one soon, and ends."""
    for _ in range(int(count)):
        if not os.fork():
            break
    else:
        print("forking", flush=True)
        signal.pause()
    while True:
        with contextlib.suppress(OSError):
            if not os.fork():
                os.setsid()
                time.sleep(0.1)
            else:
                os._exit(0)


def heavy_bomb() -> None:
    """Has ever more processes, each of which leaves its session and takes ever more memory."""
    if os.fork():
        print("forking", flush=True)
        signal.pause()
    taken = []
    while True:
        with contextlib.suppress(OSError, MemoryError):
            os.fork()
            taken.append(bytearray(2_000_000))
            os.setsid()


# ---- in the supervisor's place, with the pid that the worker expects ----


def again(talk: object) -> None:
    """Have a talk with the worker on one connection after the other."""
    while True:
        with contextlib.suppress(OSError):
            talk()  # type: ignore[operator]
        time.sleep(0.001)


def mute() -> None:
    """Never dials."""
    signal.pause()


def silent() -> None:
    """Greets, and answers nothing."""
    connection = greeted()
    while True:
        hear(connection)


def half_greeting() -> None:
    """Greets with commands of which it never tells."""
    connection = dialled()
    say(connection, packet("H", a=1, b=512))
    signal.pause()


def flood() -> None:
    """Sends packets as fast as it can, of each kind that a supervisor sends."""
    for kind in "HAXEQ":
        for _ in range(10):
            with contextlib.suppress(OSError), greeted() as connection:
                for command in itertools.count(1):
                    say(connection, packet(kind, command & 0xFFFF, 1, 1 if kind in "HE" else 0))


def replay() -> None:
    """Says of a command that it has started, without end. Where it is not heard it begins anew."""
    with greeted() as connection:
        command = spawned(connection)
        while True:
            say(connection, packet("A", command, 7))


def replay_left() -> None:
    """Answers a start only after the worker has given the command up, and then without end."""
    with greeted() as connection:
        command = spawned(connection)
        while hear(connection)[0] != "K":
            pass
        while True:
            say(connection, packet("A", command, 7))


def replay_end() -> None:
    """Says of one command again and again that it has ended, and answers what nobody has asked."""
    with greeted() as connection:
        command = spawned(connection)
        for said in (packet("A", command, 7), *[packet("X", command, 5)] * 1000, packet("Q", command)):
            say(connection, said)
        hear(connection)


def sizes() -> None:
    """Sends packets of sizes that none has."""
    for size in (0, 1, 15, 17, 64, 4096, 60_000, 200_000):
        with contextlib.suppress(OSError), greeted() as connection:
            for _ in range(1000):
                say(connection, b"H" * size)


def passer() -> None:
    """Passes descriptors of all kinds with each packet, as many as can be."""
    reading, writing = os.pipe()
    mine, other = socket.socketpair()
    kinds = [os.open("/", os.O_RDONLY), os.open("/dev/null", os.O_RDWR), reading, writing, mine.fileno()]
    many = list(itertools.islice(itertools.cycle([*kinds, other.fileno()]), MAX_PASSED))
    for passed in (many, kinds[:1], kinds[:2]):
        for said in (packet("H", a=1), packet("A", 1, 7), b"", b"x"):
            with contextlib.suppress(OSError), dialled() as connection:
                for _ in range(100):
                    say(connection, said, *passed)
    with greeted() as connection:
        say(connection, packet("A", spawned(connection), 7), *many)
        hear(connection)
    with greeted() as connection:  # for a terminal: what is none, and would block its reader
        say(connection, packet("A", spawned(connection), 7), reading)
        hear(connection)


def lingering_passer() -> None:
    """Passes sockets whose close takes an hour, with what it says and with what is never read."""
    with greeted() as connection:
        pass_lingering(lambda: connection, packet("A", spawned(connection), 7))
        for _ in range(8):
            pass_lingering(lambda: connection, packet("X", 1, 7))
        hear(connection)


def blocking_terminal() -> None:
    """Hands over a terminal whose master it keeps, and has reads and writes of the worker block."""
    master, other = os.openpty()
    tty.setraw(other)
    with greeted() as connection:
        command = spawned(connection)
        say(connection, packet("A", command, 7), master)
        _keep_blocking(master)
        while True:
            kind, command, _ = hear(connection)
            if kind in "GK":
                say(connection, packet("Q", command))
    assert other


def _keep_blocking(descriptor: int) -> None:
    """Clear O_NONBLOCK, which all who have the descriptor share, without end, by several processes."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_NONBLOCK
    for _ in range(4):
        if not os.fork():
            while True:
                fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)


def liar() -> None:
    """Says of each command that it has ended well, and keeps the pipes; claims commands that nobody has started."""
    connection = dialled()
    say(connection, packet("H", a=1, b=500))
    for number in range(500):
        say(connection, packet("A", 1_000_000 + number, 7))
    while True:
        data, rights, _, _ = connection.recvmsg(64, 256)
        kind, _, _, command, _, _ = HEADER.unpack(data)
        if kind == ord("S"):
            streams = [number for _, _, passed in rights for number in array.array("i", passed)]
            with contextlib.suppress(OSError):
                os.ftruncate(streams[0], 1 << 20)
            say(connection, packet("A", command, 7))
            say(connection, packet("X", command, 0))
            subprocess.Popen(["yes"], stdout=streams[2], stderr=streams[3])


REPEATED = (flood, replay, replay_left, replay_end, sizes, passer, lingering_passer)


def main() -> None:
    named = sys.argv[1:]
    if not named or named[0].startswith("-"):  # as a supervisor is started
        named = [os.environ["ATTACK"]]
    attack = globals()[named[0]]
    if attack in REPEATED:
        again(attack)
    attack(*named[1:])


main()
