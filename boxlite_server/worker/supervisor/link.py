"""The worker's end of the connection to the supervisor of one box.

The worker listens, and the supervisor dials. Everybody in the box can dial, so only the process whose pid the runtime
names is heard. While a supervisor is connected, nobody else is accepted; when others dial instead of it, the worker
accepts seldom. All that comes on the connection follows from what the worker has sent, or else the connection is
dropped: so a box can keep the worker no busier than its client does.
"""

from __future__ import annotations

import array
import logging
import os
import secrets
import select
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from ..commands import GONE_EXIT_CODE
from . import wire
from .closing import Closing
from .command import Command, Left, UnheardError
from .ends import check_terminal
from .listener import BACKLOG, listen
from .poller import Poller
from .wire import Ended, Failed, Greeting, ProtocolError, Signalled, Started

_PACKETS = 64  # taken off a connection before others get their turn
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 5.0  # seconds without accepting after a connection that came to nothing
_REMEMBERED = 1024  # ids of forgotten commands
_INT = array.array("i").itemsize
_MAX_PASSED = 253  # descriptors that the kernel passes with one packet
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid

log = logging.getLogger(__name__)


class Link:
    """The connection to the supervisor of one box. `directory`: where the socket is, which is mounted into the box."""

    def __init__(self, directory: Path, poller: Poller) -> None:
        self._directory = directory
        self._poller = poller
        self._changed = threading.Condition(threading.RLock())
        self._listener: socket.socket | None = None
        self._is_listening = False  # whether the poller watches the listener
        self._pause = _FIRST_PAUSE
        self._pid = 0  # of the supervisor on this host; 0: not known
        self._life: int | None = None  # a pidfd of it
        self._waiting: list[socket.socket] = []  # connections that came before the pid was known
        self._connection: socket.socket | None = None
        self._closing = Closing()
        self._unmentioned = 0  # commands of the greeting that are still to come
        self._mentioned: dict[int, Started | Ended | Failed] = {}
        self._is_live = False
        self.awaits_main = False  # whether the supervisor has said, and still does, that it awaits the main command
        self._commands: dict[int, Command] = {}
        self._others: dict[int, Started | Ended] = {}  # known to the supervisor, started by a former process
        self._left: dict[int, Left] = {}  # let go by this process
        self._forgotten: deque[int] = deque(maxlen=_REMEMBERED)
        self._owed: Counter[int] = Counter()  # answers to signals, for commands that this process has forgotten
        self.dropped = 0  # connections, because of what came on them or who dialled

    # ---- who is heard ----

    def listen(self) -> None:
        """Let the supervisor dial. A link that listens is left as it is. Raises OSError."""
        with self._changed:
            if self._listener is None:
                self._listener = listen(self._directory)
                self._poller.start()
                self._resume()

    def expect(self, pid: int) -> None:
        """Hear the process with this pid, on this host, from now on, and no other. A former one is given up."""
        with self._changed:
            if pid == self._pid and self._life is not None and not _can_be_read(self._life):
                return
            self._give_up()
            try:
                self._life = os.pidfd_open(pid)
            except OSError:
                return
            self._pid = pid
            self._pause = _FIRST_PAUSE
            self._poller.add(self._life, self._peer_ended)
            waiting, self._waiting = self._waiting, []
            for connection in waiting:
                self._admit(connection)

    @property
    def pid(self) -> int:
        """The pid of the supervisor on this host; 0: none is known to live."""
        return self._pid

    @property
    def is_live(self) -> bool:
        """Whether commands can be started."""
        return self._is_live

    def wait_live(self, seconds: float) -> bool:
        """Wait at most so many seconds until commands can be started. Returns whether they can."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_live, seconds)

    def running(self) -> int:
        """How many commands of clients run, whoever started them."""
        with self._changed:
            mine = [known for known, command in self._commands.items() if command.exit_code is None]
            others = [known for known, told in self._others.items() if isinstance(told, Started)]
            return sum(not known & wire.OWN for known in (*mine, *self._left, *others))

    def close(self, *, gone: bool = False) -> None:
        """Hear nobody any more. `gone`: the box is, and so are its commands; otherwise they go on, and whoever waits
        for them waits in vain."""
        with self._changed:
            if gone:
                self._give_up()
            self._is_live = False
            opened = [each for each in (self._listener, self._connection, *self._waiting) if each is not None]
            for each in opened:
                self._poller.remove(each.fileno())
            self._closing.close(*opened)
            self._listener = self._connection = None
            self._waiting.clear()
            if self._life is not None:
                self._poller.remove(self._life)
                os.close(self._life)
                self._life = None

    # ---- commands ----

    def start(
        self, spec: int, size: tuple[int, int] | None, streams: Sequence[int], *, is_own: bool = False
    ) -> Command:
        """Have a command started. `spec`: the descriptor of its spec; `size`: of its terminal; `streams`: its stdin,
        stdout and stderr, where it has no terminal. `is_own`: it is the worker's own, and not to outlive the worker's
        process. Raises `UnheardError`."""
        with self._changed:
            command = Command(self._new_id(is_own=is_own), has_terminal=size is not None)
            self._send(wire.start(command.command_id, size), [spec, *streams])
            self._commands[command.command_id] = command
            return command

    def start_main(self, spec: int, *, as_first: bool) -> Command:
        """Have the main command started, for which the supervisor waits. Raises `UnheardError`."""
        with self._changed:
            command = Command(self._new_id(), has_terminal=False)
            self._send(wire.main(command.command_id, as_first=as_first), [spec])
            self._commands[command.command_id] = command
            return command

    def main_started(self, command: Command, *, gone: bool) -> None:
        """Take note that the main command was started. `gone`: in place of the supervisor."""
        with self._changed:
            self._commands.pop(command.command_id, None)
            self.awaits_main = False
            if gone:
                self._give_up()

    def claim(self, command_id: int) -> Command | None:
        """Follow a command that a former process started; None: the supervisor does not know it."""
        with self._changed:
            known = self._commands.get(command_id)
            if known is None and command_id not in self._others:
                return None
            command = self._commands[command_id] = Command(command_id, has_terminal=False)
            told = self._others.pop(command_id, None)
            command.started.set_result((told if isinstance(told, Started) else Started(command_id, 0), None))
            if isinstance(told, Ended):
                command.end(told.exit_code, told.is_lost)
            elif known is not None and known.exit_code is not None:
                command.end(known.exit_code, known.is_lost)
            return command

    def signal(self, command: Command, number: int) -> Future[int]:
        """Send a signal. Returns the error number to come. Raises `UnheardError`."""
        with self._changed:
            return self._ask(command, wire.signal(command.command_id, number))

    def kill(self, command: Command) -> Future[int]:
        """Kill the command and all it has started. Returns the error number to come. Raises `UnheardError`, and kills
        them as soon as the supervisor is connected again."""
        with self._changed:
            command.is_killed = True
            return self._ask(command, wire.kill(command.command_id))

    def forget(self, command: Command) -> None:
        """Let go of a command whose end was noted."""
        with self._changed:
            if self._commands.get(command.command_id) is command:
                del self._commands[command.command_id]
                self._owe(command)
                self._forget(command.command_id)

    def leave(self, command: Command, *, kill: bool = False) -> None:
        """Let go of a command whose end is of no interest."""
        with self._changed:
            if self._commands.pop(command.command_id, None) is command and self._life is not None:
                self._left[command.command_id] = Left(kill, command.started.done())
                self._owe(command)
                if kill:
                    self._kill_left(command.command_id)

    def _owe(self, command: Command) -> None:
        """Expect the answers to signals of a command that nobody follows any more."""
        if command.signals:
            self._owed[command.command_id] += len(command.signals)

    def _kill_left(self, command_id: int) -> None:
        with suppress(UnheardError):
            self._send(wire.kill(command_id))
            self._owed[command_id] += 1

    def _ask(self, command: Command, packet: bytes) -> Future[int]:
        """Send a packet that is answered by an error number."""
        self._send(packet)
        command.signals.append(Future())
        return command.signals[-1]

    def _forget(self, command_id: int) -> None:
        self._forgotten.append(command_id)
        with suppress(UnheardError):
            self._send(wire.forget(command_id))

    def _new_id(self, *, is_own: bool = False) -> int:
        while True:
            command_id = secrets.randbits(31) | (wire.OWN if is_own else 0)
            if command_id and not any(command_id in known for known in (self._commands, self._others, self._left)):
                return command_id

    def _send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        if not self._is_live or self._connection is None:
            raise UnheardError("the box's supervisor is not connected")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._connection.sendmsg([packet], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as exc:
            raise UnheardError(f"the box's supervisor takes nothing more: {exc}") from exc

    # ---- connections: in the poller's thread ----

    def _accept(self) -> None:
        with self._changed:
            for _ in range(BACKLOG + 1):
                if self._listener is None or self._connection is not None:
                    return
                try:
                    connection, _ = self._listener.accept()
                except BlockingIOError:
                    return
                except OSError:  # this process has no descriptor left
                    break
                if self._life is None and len(self._waiting) < BACKLOG:
                    self._waiting.append(connection)
                else:
                    self._admit(connection)
            self._rest()

    def _admit(self, connection: socket.socket) -> None:
        """Talk to the supervisor, and close the connection of anybody else."""
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        is_dead = self._life is None or _can_be_read(self._life)
        if _CREDENTIALS.unpack(credentials)[0] != self._pid or is_dead or self._connection is not None:
            self._closing.close(connection)
            self.dropped += 1
            self._rest()
            return
        self._connection = connection
        connection.setblocking(False)
        self._ignore_others()
        self._unmentioned = -1  # the greeting comes first
        self._mentioned = {}
        self._poller.add(connection.fileno(), self._receive)

    def _ignore_others(self) -> None:
        if self._listener is not None and self._is_listening:
            self._poller.remove(self._listener.fileno())
            self._is_listening = False

    def _rest(self) -> None:
        """Accept no connection for a while, the longer the more often this happens."""
        if self._is_listening:
            self._ignore_others()
            self._poller.later(self._pause, self._resume)
            self._pause = min(self._pause * 2, _LAST_PAUSE)

    def _resume(self) -> None:
        """Accept connections again, once all that came before is closed."""
        with self._changed:
            if self._listener is None or self._connection is not None or self._is_listening:
                return
            if self._closing.is_busy:
                self._poller.later(self._pause, self._resume)
                return
            self._is_listening = True
            self._poller.add(self._listener.fileno(), self._accept)

    def _receive(self, packets: int = _PACKETS) -> None:
        with self._changed:
            try:
                for _ in range(packets):
                    if self._connection is None or not self._take(self._connection):
                        return
            except (ProtocolError, OSError) as exc:
                log.warning("dropping the connection to the supervisor in %s: %s", self._directory.name, exc)
                self.dropped += 1
                self._disconnect()

    def _take(self, connection: socket.socket) -> bool:
        """Take a packet off the connection. Returns False when there is none."""
        try:
            packet, rights, flags, _ = connection.recvmsg(
                wire.PACKET_BYTES, socket.CMSG_SPACE(_MAX_PASSED * _INT), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except ConnectionError:
            self._disconnect()
            return False
        descriptors = [number for _, _, data in rights for number in array.array("i", data[: len(data) // _INT * _INT])]
        try:
            if not packet:
                self._disconnect()
                return False
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(descriptors) > 1:
                raise ProtocolError("a packet that is too large")
            self._note(wire.parse(packet), descriptors)
        finally:
            self._closing.close(*descriptors)
        return True

    def _disconnect(self) -> None:
        """Drop the connection. The commands go on, and the supervisor dials again."""
        if self._connection is None:
            return
        self._poller.remove(self._connection.fileno())
        self._closing.close(self._connection)
        self._connection = None
        self._is_live = False
        self._owed.clear()
        for command in self._commands.values():
            command.fail()
        self._poller.later(self._pause, self._resume)
        self._pause = min(self._pause * 2, _LAST_PAUSE)

    def _peer_ended(self) -> None:
        """The supervisor is dead: take what it has said last, and end what it can tell no more about."""
        with self._changed:
            self._receive(packets=4 * wire.MAX_COMMANDS)
            self._give_up()

    def _give_up(self) -> None:
        """Expect nobody any more, and end all commands."""
        if self._life is not None:
            self._disconnect()
            self._poller.remove(self._life)
            os.close(self._life)
            self._life, self._pid = None, 0
        for command in self._commands.values():
            command.fail()
            command.end(GONE_EXIT_CODE, True)
        self._commands.clear()
        self._others.clear()
        self._left.clear()
        self._changed.notify_all()

    # ---- what the supervisor says ----

    def _note(self, answer: wire.Answer, descriptors: list[int]) -> None:
        if not self._is_live:
            self._greet(answer)
        elif isinstance(answer, Greeting) or not self._is_expected(answer, descriptors):
            raise ProtocolError(f"an answer that nobody asked for: {answer}")

    def _is_expected(self, answer: Started | Ended | Failed | Signalled, descriptors: list[int]) -> bool:
        """Take note of an answer to what the worker has sent; False: the worker has sent nothing of that kind."""
        command_id = answer.command_id
        command = self._commands.get(command_id)
        if isinstance(answer, Signalled):
            if command is not None and command.signals:
                command.signals.popleft().set_result(answer.errno)
                return True
            if not (owed := self._owed.pop(command_id, 0)):
                return False
            if owed > 1:
                self._owed[command_id] = owed - 1
            return True
        if command is not None:
            return self._is_expected_of(command, answer, descriptors)
        if (left := self._left.get(command_id)) is not None:
            is_news = not (isinstance(answer, Started) and left.is_started)
            self._mention(answer)
            return is_news
        if isinstance(answer, Ended) and isinstance(self._others.get(command_id), Started):
            self._others[command_id] = answer
            return True
        return False

    def _is_expected_of(self, command: Command, answer: Started | Ended | Failed, descriptors: list[int]) -> bool:
        if isinstance(answer, Ended):
            is_news = command.exit_code is None
            command.end(answer.exit_code, answer.is_lost)
            if not command.started.done():  # it may have been started, and is not to be started again
                command.started.set_result((Started(command.command_id, 0), None))
            return is_news
        if command.started.done():
            return False
        self._pause = _FIRST_PAUSE
        terminal = None
        if isinstance(answer, Failed):
            del self._commands[command.command_id]
        elif command.has_terminal:
            check_terminal(descriptors)
            terminal = descriptors.pop()
        command.started.set_result((answer, terminal))
        return True

    def _greet(self, answer: wire.Answer) -> None:
        """Take the greeting, and the commands that follow it; then commands can be started."""
        if self._unmentioned < 0:
            if not isinstance(answer, Greeting):
                raise ProtocolError(f"no greeting, but {answer}")
            self._unmentioned = answer.known
            self.awaits_main = answer.awaits_main
        else:
            former = self._mentioned.get(answer.command_id) if not isinstance(answer, Greeting | Signalled) else answer
            if former is not None and not (isinstance(former, Started) and isinstance(answer, Ended)):
                raise ProtocolError(f"in a greeting: {answer}")
            assert isinstance(answer, Started | Ended | Failed)
            self._mentioned[answer.command_id] = answer  # a command may end while others are told of
            self._unmentioned -= former is None
        if self._unmentioned == 0:
            self._is_live = True
            self._go_on()
            self._changed.notify_all()

    def _go_on(self) -> None:
        """Compare what the supervisor knows with what this process knows."""
        for command in [self._commands[known] for known in self._commands.keys() - self._mentioned.keys()]:
            command.end(GONE_EXIT_CODE, True)
        for command_id in self._left.keys() - self._mentioned.keys():
            del self._left[command_id]
        self._others.clear()
        for answer in self._mentioned.values():
            self._mention(answer)
        self._mentioned = {}

    def _mention(self, answer: Started | Ended | Failed) -> None:
        """Take note of the state of a command whose start nobody waits for."""
        command_id = answer.command_id
        if command_id & wire.OWN and command_id not in self._commands:
            self._left.setdefault(command_id, Left(True, False))  # a former process of the worker needed it
        if (command := self._commands.get(command_id)) is not None:
            if isinstance(answer, Ended):
                command.end(answer.exit_code, answer.is_lost)
            elif command.is_killed:
                with suppress(UnheardError):
                    self.kill(command)
        elif (left := self._left.get(command_id)) is not None:
            if isinstance(answer, Started):
                left.is_started = True
                if left.is_to_be_killed:
                    self._kill_left(command_id)
                return
            del self._left[command_id]
            if isinstance(answer, Ended):
                self._forget(command_id)
        elif command_id in self._forgotten:
            self._forget(command_id)
        elif not isinstance(answer, Failed):
            self._others[command_id] = answer


def _can_be_read(descriptor: int) -> bool:
    """Whether a read would not block now; of a pidfd: whether the process has ended."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
