"""Commands that the engine's exec starts in running containers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import IO, Any

from ... import ids
from ...errors import (
    BoxliteError,
    EngineError,
    ExecutionError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    StoppedError,
    UnsupportedError,
)
from ..commands import GONE_EXIT_CODE, ExecSpec, check_signal
from ..holder import Holder
from ..kernel.cgroup import Cgroup, MemoryLimit
from ..kernel.processes import (
    MARK,
    Found,
    all_in,
    family,
    is_alive,
    is_in,
    kill_all,
    mark_of,
    output_pipes,
    pid_inside,
    user_of,
)
from .config import MIB
from .engine import Engine, engine_errors
from .main_command import ending_with
from .process import DETACH_KEYS, FIRST_POLL, Waiter
from .stream import Stream, can_be_read, end_input
from .watch import Watch

_GIVEN_UP = 126  # the engine's exit code for a command that it gave up; without a pid, the command never started
_KILL_ATTEMPTS = 5
# Output of a command that has ended: seconds of silence after which no more of it is expected, and more bytes than the
# pipes and buffers between the command and this process hold.
_SILENCE, _ON_ITS_WAY = 0.2, 16 * 1024 * 1024
_LAST_LOOK = 5.0  # seconds between two looks at a command whose end the engine also reports


class _Exec:
    """A command that is known by its exec id: what needs no connection to it."""

    def __init__(self, engine: Engine, container: Mapping[str, Any], exec_id: str, tty: bool, mark: str = "") -> None:
        """`container`: the engine's description. `mark`: the command's `MARK`; empty: to be read when needed."""
        self._engine = engine
        self._container = container
        self._container_id: str = container["Id"]
        self._init: int = container["State"]["Pid"]
        self._exec_id = exec_id
        self._tty = tty
        self._mark = mark
        self._cgroup = Cgroup.of(self._init)
        self._memory = MemoryLimit(self._cgroup, container["HostConfig"].get("Memory", 0) // MIB)
        self._waiter = Waiter()

    @property
    def handle(self) -> str:
        return self._exec_id

    @property
    def tty(self) -> bool:
        return self._tty

    @property
    def lost(self) -> str:
        return self._waiter.lost

    @property
    def memory_limit_hit(self) -> int:
        return self._memory.hit()

    def resize(self, cols: int, rows: int) -> None:
        self._live_pid()
        self._set_size(cols, rows)

    def _set_size(self, cols: int, rows: int) -> None:
        with engine_errors("cannot resize the terminal"):
            self._engine.api.exec_resize(self._exec_id, height=rows, width=cols)

    # ---- signals ----

    def signal(self, number: int) -> None:
        check_signal(number)
        with self._pinned() as (pid, pinned):
            try:
                signal.pidfd_send_signal(pinned, number)
            except ProcessLookupError as exc:
                raise self._ended() from exc
            except PermissionError:
                self._send_from_inside(number, [pid])

    def kill(self) -> None:
        with suppress(InvalidStateError), self._pinned() as (pid, _):
            mark = self._mark or mark_of(pid)
            try:
                kill_all(lambda: self._family(pid, mark))
            except PermissionError:
                self._kill_from_inside(pid, mark)

    @contextmanager
    def _pinned(self) -> Iterator[tuple[int, int]]:
        """The command's pid, and a pidfd of it. Raises `InvalidStateError` once the command has ended.

        The pid that the engine names may be stale. A pidfd pins the process that has the pid now; if the engine then
        still says that the command runs under that pid, the pinned process is the command.
        """
        pid = self._live_pid()
        try:
            pinned = os.pidfd_open(pid)
        except OSError as exc:
            raise self._ended() from exc
        try:
            if self._live_pid() != pid:
                raise self._ended()
            if not is_in(pid, self._container_id):
                if not is_alive(pid):  # whatever the engine knows yet
                    raise self._ended()
                raise UnsupportedError("signals need the container engine on the worker's own host")
            yield pid, pinned
        finally:
            os.close(pinned)

    def _family(self, pid: int, mark: str) -> set[Found]:
        pids = self._cgroup.pids()
        return family(all_in(self._container_id) if pids is None else pids, pid, mark)

    def _kill_from_inside(self, pid: int, mark: str) -> None:
        """Kill the command's family as a worker without root can. What it starts meanwhile is killed by a further
        attempt."""
        for _ in range(_KILL_ATTEMPTS):
            pids = [found.pid for found in self._family(pid, mark)]
            # The command comes first: when its children are gone, it may end by itself.
            self._send_from_inside(signal.SIGKILL, sorted(pids, key=lambda found: found != pid))
            if not self._family(pid, mark):
                return
        raise EngineError("cannot kill the command: it starts processes faster than they can be killed")

    def _send_from_inside(self, number: int, pids: list[int]) -> None:
        """Have a shell in the box signal processes: a worker without root cannot signal them itself. Where root of the
        box gets no privileges, nobody but their own users can."""
        for user in sorted({"0"} | {user_of(pid) for pid in pids}):
            self._send_as(user, number, [known for pid in pids if (known := pid_inside(pid))])

    def _send_as(self, user: str, number: int, inside: list[str]) -> None:
        api = self._engine.api
        with engine_errors("cannot signal the command"):
            script = f'kill -{number} "$@" 2>/dev/null; true'  # processes that have ended are no failure
            exec_id = api.exec_create(self._container_id, ["sh", "-c", script, "kill", *inside], user=user)["Id"]
            output = api.exec_start(exec_id)
            code = api.exec_inspect(exec_id)["ExitCode"]
        if code and self._inspect()["Running"]:
            text = output.decode(errors="replace").strip()
            if "not found" in text.lower() or "no such file" in text.lower():
                raise UnsupportedError(
                    "cannot signal the command: the worker does not run as root, and the box has no `sh` that could "
                    f"signal it instead: {text}"
                )
            raise EngineError(f"cannot signal the command: {text}")

    def _live_pid(self) -> int:
        """The pid of the running command; raises `InvalidStateError` once the command has ended."""
        try:
            state = self._inspect()
        except NotFoundError as exc:
            raise self._ended() from exc
        if not state["Running"] or not state["Pid"]:
            raise self._ended()
        return int(state["Pid"])

    @staticmethod
    def _ended() -> InvalidStateError:
        return InvalidStateError("the command has ended")

    # ---- the end ----

    def wait(self) -> int:
        code = self._waiter.until(self._exit_code)
        if code == GONE_EXIT_CODE and not self.lost and (end := ending_with(self._engine, self._container)):
            self._waiter.lost = f"the command ended with its box: {end}"
        return code

    def _exit_code(self) -> int | None:
        state = self._inspect()
        return None if state["Running"] else state["ExitCode"]

    def _inspect(self) -> dict[str, Any]:
        with engine_errors("cannot inspect the command"):
            return dict(self._engine.api.exec_inspect(self._exec_id))


class ExecProcess(_Exec):
    """The `Process` of a command whose connection this process has."""

    def __init__(
        self,
        engine: Engine,
        container: Mapping[str, Any],
        exec_id: str,
        stream: Stream,
        tty: bool,
        holder: Holder | None,
        mark: str = "",
    ) -> None:
        super().__init__(engine, container, exec_id, tty, mark)
        self._stream = stream
        self._holder = holder
        self._life: IO[bytes] | None = None  # a pidfd of the command, once its end is watched
        self._pid = 0
        self._has_ended = False
        self._silent = 0.0  # seconds without output since the command's end
        self._late = 0  # bytes of output since then
        if holder is not None:
            holder.keep(exec_id, stream.fileno())

    # ---- the beginning ----

    @classmethod
    def spawn(
        cls, engine: Engine, container: Mapping[str, Any], box_id: str, spec: ExecSpec, holder: Holder | None
    ) -> ExecProcess:
        """Start `spec` in the container. Returns, and raises, as `BoxRuntime.spawn` does."""
        mark = ids.new_id()
        try:
            with engine_errors(f"command {spec.command[0]!r} cannot be started in box {box_id}"):
                marked = replace(spec, env={**spec.env, MARK: mark})
                exec_id = engine.create_exec(container["Id"], marked, DETACH_KEYS)
                stream = Stream(engine.start_exec(exec_id, tty=spec.tty), not spec.tty)
        except InvalidStateError as exc:
            if "not running" in exc.message:
                raise StoppedError(f"box {box_id} is not running; start it first") from exc
            raise
        except InvalidArgumentError as exc:
            raise spawn_error(spec, exc.message.partition(": ")[2]) from exc  # the engine's own words
        process = cls(engine, container, exec_id, stream, spec.tty, holder, mark)
        try:
            if spec.tty and not engine.sizes_terminals:
                process._set_first_size(spec)
            process._confirm(spec)
        except BaseException:
            process.close()
            raise
        return process

    def _set_first_size(self, spec: ExecSpec) -> None:
        """Set the size of the new terminal. The engine waits with it until the command has been started, or could
        not be; a command that reads the size first of all may be faster."""
        with suppress(BoxliteError):
            self._set_size(spec.cols, spec.rows)

    def _confirm(self, spec: ExecSpec) -> None:
        """Wait until the engine has spawned the command. Raises `ExecutionError` when the engine gives up on it.

        Such a command ends with pid 0, and the reason is on its output.
        """
        interval = FIRST_POLL
        while True:
            state = self._inspect()
            if state["Pid"]:
                self.watch_end(state["Pid"])
                return
            if not state["Running"] and state["ExitCode"] is not None:
                break
            # Output means that something has happened, but the engine's state may follow a moment later.
            if self._stream.readable(interval):
                self._waiter.pause(0.005)
            interval = min(interval * 1.5, 0.1)
        text = b""
        while piece := self._stream.read():
            text += piece[1]
        raise spawn_error(spec, text.decode(errors="replace").strip())

    # ---- input and output ----

    def read(self) -> tuple[int, bytes] | None:
        """See `Process.read`.

        The engine ends the output only when all processes that can write have ended, or 2 s after the command's end.
        What the command itself wrote comes before what its children write from then on. So the output ends here when
        a command that has left writers running has ended and its output has been silent for a while, or more has
        come than can be on its way.
        """
        if self._life is not None:
            self._stream.readable(None, self._life.fileno())
            if can_be_read(self._life):
                self._life, self._has_ended = None, True
        if self._has_ended and not self._comes_late():
            if self._has_left_writers():
                return None
            self._has_ended = False  # nothing is known to write: the engine is late, and its end of output is near
        piece = self._stream.read()
        self._late += len(piece[1]) if self._has_ended and piece else 0
        return piece

    def watch_end(self, pid: int) -> None:
        """Watch for the end of the command, which had this pid when the engine was last asked."""
        self._pid = pid
        self._mark = self._mark or mark_of(pid)
        try:
            life = os.fdopen(os.pidfd_open(pid), "rb", buffering=0)
        except OSError:
            self._has_ended = True
            return
        if is_in(pid, self._container_id):
            self._life = life
        else:
            self._has_ended = can_be_read(life)  # otherwise the engine is on another host

    def _comes_late(self) -> bool:
        """Whether more output of a command that has ended comes, or the end of output. Waits for it."""
        if self._silent >= _SILENCE or self._late >= _ON_ITS_WAY:
            return False
        began = time.monotonic()
        comes = self._stream.readable(_SILENCE - self._silent)
        self._silent += time.monotonic() - began
        return comes

    def _has_left_writers(self) -> bool:
        """Whether the command has left processes running that hold its output. What they write is read and dropped
        from now on, so that they can go on."""
        left = self._family(self._pid, self._mark)
        try:
            pipes = list(output_pipes(left, self._init))
        except PermissionError:
            return bool(left)  # a worker without root cannot see what they hold
        for pipe in pipes:
            if self._holder is not None:
                self._holder.drain(pipe)
            else:
                os.close(pipe)
        return bool(pipes)

    def write(self, data: bytes, timeout: float) -> int:
        try:
            return self._stream.write(data, timeout)
        except OSError as exc:
            raise InvalidStateError("the command takes no more input: it has ended") from exc

    def close_input(self, timeout: float) -> bool:
        return end_input(self._stream, self._tty, timeout)

    # ---- the end ----

    def close(self) -> None:
        self._waiter.close()
        if self._holder is not None:
            self._holder.drop(self._exec_id)
        self._stream.close()


class AdoptedExec(_Exec):
    """The `Process` of a command whose connection is lost; the engine gives out no second one.

    The command runs on, but if it writes output, the engine replaces its exit code by `_GIVEN_UP`.
    """

    def __init__(self, engine: Engine, container: Mapping[str, Any], exec_id: str, tty: bool, watch: Watch) -> None:
        super().__init__(engine, container, exec_id, tty)
        self._watch = watch
        self._news = watch.command_end(exec_id)
        self._left = False

    def _exit_code(self) -> int | None:
        state = self._inspect()
        if not state["Running"] and state["ExitCode"] == _GIVEN_UP and state["Pid"]:
            self._waiter.lost = "the exit code is lost: the command spoke while its worker was restarted"
        return None if state["Running"] else state["ExitCode"]

    def read(self) -> tuple[int, bytes] | None:
        """Wait for the command's end; there is no output to return."""
        interval = FIRST_POLL
        while not self._left:
            try:
                if self._exit_code() is not None:
                    break
            except NotFoundError:
                break
            except EngineError:
                pass  # the engine may come back
            self._news.wait(interval)
            self._news.clear()
            interval = min(interval * 2, _LAST_LOOK)
        return None

    def write(self, data: bytes, timeout: float) -> int:
        raise UnsupportedError("the command takes no more input: its input ended when the worker was restarted")

    def close_input(self, timeout: float) -> bool:
        return True  # the input ended with the connection

    def close(self) -> None:
        self._left = True
        self._waiter.close()
        self._news.set()
        self._watch.forget_command(self._exec_id)


def readopt(
    engine: Engine, container: Mapping[str, Any], exec_id: str, watch: Watch, holder: Holder | None
) -> ExecProcess | AdoptedExec:
    """The command that a former worker process started. Raises `NotFoundError` when the engine does not know it any
    more, or the command is not in the container."""
    with engine_errors("cannot inspect the command"):
        known = engine.api.exec_inspect(exec_id)
    if known["ContainerID"] != container["Id"]:
        raise NotFoundError("the command is one of another box")
    tty = bool(known["ProcessConfig"]["tty"])
    if holder is not None and (kept := holder.take(exec_id)):
        process = ExecProcess(engine, container, exec_id, Stream.inherited(kept[0], not tty), tty, holder)
        if known["Running"] and known["Pid"]:
            process.watch_end(known["Pid"])
        return process
    return AdoptedExec(engine, container, exec_id, tty, watch)


def spawn_error(spec: ExecSpec, text: str) -> ExecutionError:
    """The engine's reason `text` in the user's terms: which part of the spec cannot be had."""
    low = text.lower()
    command = spec.command[0]
    if "unable to find user" in low or "unable to find group" in low:
        return ExecutionError(f"user {spec.user!r} not found in the box: {text}")
    if "cwd" in low or "chdir" in low:
        missing = "no such file" in low
        return ExecutionError(
            f"working directory {spec.working_dir!r} {'not found in the box' if missing else 'cannot be used'}: {text}"
        )
    if "not found" in low or "no such file" in low:
        return ExecutionError(f"command {command!r} not found in the box: {text}")
    if "permission denied" in low:
        return ExecutionError(f"command {command!r} cannot be executed: permission denied: {text}")
    return ExecutionError(f"command {command!r} cannot be started: {text or 'the engine gives no reason'}")
