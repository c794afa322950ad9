"""Commands that a supervisor has started.

Their output and input are pipes that the worker has made, or the terminal that the supervisor has handed over: nothing
passes through the supervisor. The holder keeps the worker's ends over a restart of the worker.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from ...errors import (
    BoxliteError,
    EngineError,
    ExecutionError,
    InvalidStateError,
    NotFoundError,
    ResourceExhaustedError,
    UnsupportedError,
)
from ..commands import (
    END_OF_TRANSMISSION,
    GONE_EXIT_CODE,
    STDERR,
    STDOUT,
    Durable,
    ExecSpec,
    Process,
    Sink,
    check_signal,
)
from ..holder import Holder
from ..kernel.cgroup import Cgroup, MemoryLimit
from ..kernel.processes import child_inside, family, kill_all
from . import wire
from .command import Command, UnansweredError, UnheardError
from .ends import End, Terminal, pipes, sealed
from .input import Input
from .link import Link
from .wire import Failed, Stage, Started

HANDLE_PREFIX = "supervised "
ANSWER_PATIENCE = 10.0  # seconds
_OUTPUTS = {"terminal": STDOUT, "out": STDOUT, "err": STDERR}  # the stream that each of the worker's ends carries
_INPUTS = ("terminal", "in")
_TERMINAL_DESCRIPTORS = 3  # that the holder keeps of a command with a terminal
_RECEIVE = 128 * 1024  # bytes at once
_SILENCE = 0.1  # seconds after which a terminal, whose command has ended, has said all that the command said


class BeyondSupervisorError(Exception):
    """The supervisor, which is confined like all in the box, may not do what the command asks for."""


@dataclass(frozen=True)
class Surroundings:
    """What a box gives to its commands. `why_ended` tells how the box's main command ended; empty: it runs on."""

    container_id: str
    env: Sequence[str]  # each `NAME=value`
    working_dir: str
    cgroup: Cgroup
    memory_mib: int  # its limit; 0: none
    why_ended: Callable[[], str]

    def environment(self, spec: ExecSpec) -> list[str]:
        """The variables of a command: those of the box, replaced and followed by its own."""
        values = dict(pair.partition("=")[::2] for pair in self.env)
        if spec.tty:
            values = {"TERM": "xterm", **values}
        return [f"{name}={value}" for name, value in {**values, **spec.env}.items()]


class SupervisedProcess(Durable):
    """The `Process` of a command that a supervisor has started."""

    def __init__(
        self,
        link: Link,
        command: Command,
        box: Surroundings,
        holder: Holder | None,
        ends: dict[str, End],
        memory: MemoryLimit,
        fed: Sequence[int] = (),
        *,
        is_kept: bool = True,
    ) -> None:
        """`ends`, by their names: `terminal`, or `in`, `out` and `err`. `fed`: what a former `Input` has left.
        `is_kept`: the holder keeps the ends."""
        self._link = link
        self._command = command
        self._box = box
        self._holder = holder
        self._is_kept = is_kept
        self._memory = memory
        self._ends: dict[str, End] = {}
        self._input: Input | None = None
        self._had_input = False
        self._input_lock = threading.Lock()
        self._outputs: dict[int, tuple[int, End]] = {}  # by their descriptors
        self._poll = select.poll()
        self._poll.register(command.news, select.POLLIN)
        self._connect(ends, fed)
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._is_new = True  # its terminal's relay may hold what a former process has left there
        self._unread: dict[int, int] | None = None  # bytes still to be read once the command has ended, by descriptor
        self._is_closed = False
        self._lost = ""

    def _connect(self, ends: dict[str, End], fed: Sequence[int] = ()) -> None:
        """Take these ends, of which there were none so far."""
        self._ends = ends
        feeding = next((ends[name] for name in _INPUTS if name in ends), None)
        if feeding is not None:
            holder = self._holder if self._is_kept else None
            keep = partial(holder.keep, f"{self.handle} in") if holder else lambda *descriptors: None
            self._input, self._had_input = Input(feeding, keep, fed), True
        self._outputs = {end.fileno(): (stream, end) for name, stream in _OUTPUTS.items() if (end := ends.get(name))}
        for number in self._outputs:
            self._poll.register(number, select.POLLIN)

    @classmethod
    def spawn(
        cls,
        link: Link,
        box: Surroundings,
        spec: ExecSpec,
        holder: Holder | None,
        on_begun: Callable[[Process], object] = lambda process: None,
    ) -> SupervisedProcess:
        """Start the command. `on_begun` is as in `BoxRuntime.spawn`. Raises `ExecutionError` when it cannot be started,
        `UnheardError` and `BeyondSupervisorError` when nothing was started and another way may do, `EngineError` when
        nobody knows whether it runs."""
        memory = MemoryLimit(box.cgroup, box.memory_mib)
        try:
            content = wire.spec(spec.user, spec.working_dir or box.working_dir, spec.command, box.environment(spec))
        except ValueError as exc:
            raise ExecutionError(f"command {spec.command[0]!r} cannot be started: {exc}") from exc
        size = (spec.cols, spec.rows) if spec.tty else None
        with ExitStack() as theirs:
            try:
                ends, streams = ({}, []) if spec.tty else pipes(theirs)
                described = sealed(content, theirs)
            except OSError as exc:
                raise ResourceExhaustedError(f"the worker cannot start another command now: {exc.strerror}") from exc
            command = link.start(described, size, streams)
        process = cls(link, command, box, holder, ends, memory, is_kept=spec.is_kept)
        on_begun(process)
        if (terminal := _started(link, command, spec)) is not None:
            process._connect({"terminal": Terminal(terminal)})
        process._keep()
        return process

    @classmethod
    def readopt(cls, link: Link, box: Surroundings, handle: str, holder: Holder | None) -> SupervisedProcess:
        """A command that a former worker process started. Raises `NotFoundError` when the supervisor does not know
        it."""
        memory = MemoryLimit(box.cgroup, box.memory_mib)
        command = link.claim(int(handle.split()[-1], 16)) if box.container_id in handle else None
        if command is None:
            raise NotFoundError("the box's supervisor does not know the command")
        outputs, fed = (holder.take(handle), holder.take(f"{handle} in")) if holder is not None else ([], [])
        ends: dict[str, End] = {}
        if len(outputs) == _TERMINAL_DESCRIPTORS:
            ends["terminal"] = Terminal(outputs[0], outputs[1:])
        else:
            ends = {name: End(kept) for name, kept in zip(("out", "err"), outputs, strict=False)}
            if fed:
                ends["in"] = End(fed.pop(0))
        return cls(link, command, box, holder, ends, memory, fed)

    def _keep(self) -> None:
        """Have the holder keep the ends: the input apart, since it may be closed before the others."""
        if self._holder is not None and self._is_kept and self._ends:
            terminal = self._ends.get("terminal")
            self._holder.keep(self.handle, *(terminal.descriptors if isinstance(terminal, Terminal) else self._outputs))
            if "in" in self._ends:
                self._holder.keep(f"{self.handle} in", self._ends["in"].fileno())

    @property
    def handle(self) -> str:
        return f"{HANDLE_PREFIX}{self._box.container_id} {self._command.command_id:08x}"

    @property
    def tty(self) -> bool:
        return "terminal" in self._ends

    @property
    def lost(self) -> str:
        return self._lost

    @property
    def memory_limit_hit(self) -> int:
        return self._memory.hit()

    # ---- output ----

    @property
    def is_whole(self) -> bool:
        return self.tty or len(self._ends.keys() & {"out", "err"}) == 2

    def read(self) -> tuple[int, bytes] | None:
        """See `Process.read`. What the command itself has written is in the pipes when it has ended; what comes after
        that, others have written."""
        while not self._pieces:
            if self._next(self._read) is None:
                return None
        return self._pieces.popleft()

    def _read(self, stream: int, pipe: int, count: int) -> int:
        data = os.read(pipe, min(count, _RECEIVE))
        self._pieces.append((stream, data))
        return len(data)

    def move(self, sink: Sink) -> int | None:
        while (size := self._next(sink.take)) == 0:
            pass
        return size

    def _next(self, take: Callable[[int, int, int], int]) -> int | None:
        """Wait for output or for news, and have output taken by `take(stream, pipe, count)`. Returns how many bytes
        were taken; None at the end."""
        if self._is_closed or not self._outputs:
            return None
        return self._take(take) if self._command.exit_code is None else self._take_last(take)

    def _take(self, take: Callable[[int, int, int], int]) -> int:
        taken = 0
        for number, event in self._poll.poll(0 if self._is_new else None) or [(each, 0) for each in self._outputs]:
            if number in self._outputs:
                stream, end = self._outputs[number]
                if count := end.ready(is_hung_up=bool(event & select.POLLHUP)):
                    taken += take(stream, end.source, count)
                elif count == 0:
                    self._drop(number)
        self._is_new = False
        return taken

    def _take_last(self, take: Callable[[int, int, int], int]) -> int:
        """Take what the command has left in one of its pipes, or in its terminal."""
        number, (stream, end) = next(iter(self._outputs.items()))
        if self._unread is None:
            self._unread = {each: end.unread() for each, (_, end) in self._outputs.items()}
            self._poll.unregister(self._command.news)
        if self.tty:  # what was written to it comes a moment later
            count = end.ready() if end.unread() or self._poll.poll(_SILENCE * 1000) else 0
        else:
            count = self._unread[number]
        if count:
            taken = take(stream, end.source, count)
            self._unread[number] -= taken
            return taken
        self._drop(number)
        self._drain(end)
        return 0

    def _drop(self, number: int) -> None:
        self._poll.unregister(number)
        del self._outputs[number]

    def _drain(self, end: End) -> None:
        """Have what others write from now on read and dropped, so that they can go on."""
        if self._holder is not None and not self.tty and end.has_writers():
            self._holder.drain(os.dup(end.fileno()))

    # ---- input ----

    @property
    def taken(self) -> int:
        return self._input.taken if self._input is not None else 0

    def write(self, data: bytes, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        if not self._input_lock.acquire(timeout=max(timeout, 0)):
            return 0
        try:
            if self._input is None and not self._had_input:
                raise UnsupportedError("the command takes no more input: its input ended when the worker was restarted")
            if self._input is None or self._command.exit_code is not None:
                raise InvalidStateError("the command takes no more input: it has ended")
            try:
                return self._input.write(data, max(deadline - time.monotonic(), 0), self._command.news)
            except OSError as exc:
                if exc.errno not in (errno.EPIPE, errno.EIO):
                    raise ResourceExhaustedError(f"the worker cannot pass on input now: {exc.strerror}") from exc
                return len(data)  # the command has closed its input, or is about to end
        finally:
            self._input_lock.release()

    def close_input(self, timeout: float) -> bool:
        if self.tty:
            try:
                return self.write(END_OF_TRANSMISSION, timeout) == len(END_OF_TRANSMISSION)
            except InvalidStateError:
                return True
        if not self._input_lock.acquire(timeout=max(timeout, 0)):
            return False
        try:
            if self._input is not None:
                self._drop_input()
        finally:
            self._input_lock.release()
        return True

    # ---- control ----

    def signal(self, number: int) -> None:
        check_signal(number)
        self._refuse_when_over()
        refused = self._answer(lambda: self._link.signal(self._command, number))
        if refused == errno.ESRCH:
            raise _over()
        if refused:
            raise UnsupportedError(f"cannot signal the command: {os.strerror(refused).lower()}")

    def kill(self) -> None:
        if self._command.exit_code is not None:
            return
        try:
            refused = self._answer(lambda: self._link.kill(self._command))
            if refused in (0, errno.ESRCH):
                return
            why = os.strerror(refused).lower()
        except EngineError as exc:
            why = exc.message
        if not self._is_killed_from_outside():
            raise EngineError(f"cannot kill the command: {why}")

    def _is_killed_from_outside(self) -> bool:
        """Kill the command and all it has started as root of the host can, whatever the box has done to its
        supervisor. Returns whether the command was found and killed."""
        pids = self._box.cgroup.pids() or set()
        command, root = child_inside(pids - {self._link.pid}, _pid_told(self._command))
        if not root:  # its keeper is gone
            root = command
        try:
            kill_all(lambda: family(self._box.cgroup.pids() or (), root, "") if root else set())
        except PermissionError:
            return False
        return bool(root)

    def _answer(self, ask: Callable[[], Future[int]]) -> int:
        """The supervisor's answer to a signal: an error number."""
        try:
            return ask().result(ANSWER_PATIENCE)
        except (UnheardError, UnansweredError, FutureTimeoutError) as exc:
            if self._command.exit_code is not None:
                return errno.ESRCH
            raise EngineError(f"cannot signal the command: {_silence(exc)}") from exc

    def resize(self, cols: int, rows: int) -> None:
        self._refuse_when_over()
        terminal = self._ends.get("terminal")
        if not isinstance(terminal, Terminal):
            raise InvalidStateError("the command has no terminal")
        try:
            terminal.resize(cols, rows)
        except OSError as exc:
            raise _over() from exc

    def _refuse_when_over(self) -> None:
        if self._command.exit_code is not None:
            raise _over()

    # ---- the end ----

    def wait(self) -> int:
        command = self._command
        while command.exit_code is None and not self._is_closed:
            command.news.wait()
        if command.exit_code is None:
            self._lost = "the exit code is lost: the command did not end in time"
            return GONE_EXIT_CODE
        if command.exit_code == GONE_EXIT_CODE and (end := self._box.why_ended()):
            self._lost = f"the command ended with its box: {end}"
        elif command.is_lost and not self._memory.hit():
            self._lost = "the exit code is lost: the process that watched over the command was killed"
        return command.exit_code

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._command.news.set()
        if isinstance(terminal := self._ends.get("terminal"), Terminal):
            terminal.release()
        self._drop_input()
        self._forget_kept()
        if self._command.exit_code is not None:
            self._link.forget(self._command)
        else:
            for _, end in list(self._outputs.values()):
                self._drain(end)
            self._link.leave(self._command)

    def _drop_input(self) -> None:
        """Close the input, unless it is the terminal's."""
        if self._ends.pop("in", None) is not None:
            self._input = None
            if self._holder is not None and self._is_kept:
                self._holder.drop(f"{self.handle} in")

    def _forget_kept(self) -> None:
        if self._holder is not None and self._is_kept:
            self._holder.drop(self.handle)
            if self.tty:
                self._holder.drop(f"{self.handle} in")


def start_main(link: Link, box: Surroundings, command: Sequence[str], *, tty: bool, as_first: bool) -> None:
    """Start the main command of a box whose supervisor awaits it. Raises `ExecutionError` when it cannot be started,
    and `EngineError` when nobody knows whether it was."""
    spec = ExecSpec(tuple(command), working_dir=box.working_dir, tty=tty)
    with ExitStack() as theirs:
        try:
            content = wire.spec("", spec.working_dir, command, box.environment(spec))
            told = link.start_main(sealed(content, theirs), as_first=as_first)
        except ValueError as exc:
            raise ExecutionError(f"the main command cannot be started: {exc}") from exc
        except (OSError, UnheardError) as exc:
            raise EngineError(f"the main command cannot be started: {exc}") from exc
    try:
        _started(link, told, spec)
    except BeyondSupervisorError as exc:
        raise EngineError(f"the main command cannot be started: {exc}") from exc
    link.main_started(told, gone=as_first)


def _pid_told(command: Command) -> int:
    """The pid inside the box that the supervisor has told; 0: none."""
    told = command.started.result()[0] if command.started.done() and not command.started.exception() else None
    return told.pid if isinstance(told, Started) else 0


def _started(link: Link, command: Command, spec: ExecSpec) -> int | None:
    """Wait until the command is started. Returns the descriptor of its terminal, if it has one."""
    try:
        answer, terminal = command.started.result(ANSWER_PATIENCE)
    except (UnansweredError, FutureTimeoutError) as exc:
        link.leave(command, kill=True)
        command.drop_terminal()
        raise EngineError(f"command {spec.command[0]!r} cannot be started: {_silence(exc)}") from exc
    if isinstance(answer, Failed):
        raise _refusal(spec, answer)
    return terminal


def _refusal(spec: ExecSpec, failed: Failed) -> Exception:
    """The error for a command that could not be started."""
    reason, command = os.strerror(failed.errno).lower(), spec.command[0]
    is_missing = failed.errno in (errno.ENOENT, errno.ENOTDIR)
    match failed.stage:
        case Stage.SET_USER | Stage.RESOURCES:
            return BeyondSupervisorError(reason)
        case Stage.USER | Stage.GROUP:
            return ExecutionError(f"user {spec.user!r} not found in the box: {reason}")
        case Stage.DIRECTORY:
            what = "not found in the box" if is_missing else "cannot be used"
            return ExecutionError(f"working directory {spec.working_dir!r} {what}: {reason}")
        case Stage.EXECUTE if is_missing:
            return ExecutionError(f"command {command!r} not found in the box: {reason}")
        case Stage.EXECUTE if failed.errno == errno.EACCES:
            return ExecutionError(f"command {command!r} cannot be executed: {reason}")
    return ExecutionError(f"command {command!r} cannot be started: {reason}")


def _silence(exc: Exception) -> str:
    return str(exc) or f"the box's supervisor did not answer within {ANSWER_PATIENCE:.0f} s"


def _over() -> BoxliteError:
    return InvalidStateError("the command has ended")
