"""Commands that the engine's exec starts in running containers."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import (
    EngineError,
    ExecutionError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    StoppedError,
    UnsupportedError,
)
from ..commands import GONE_EXIT_CODE, ExecSpec
from .engine import Engine, engine_errors
from .holder import Holder
from .main_command import ending_with
from .process import DETACH_KEYS, END_OF_TRANSMISSION, FIRST_POLL, Waiter, check_signal
from .stream import Stream
from .watch import Watch

_GIVEN_UP = 126  # the engine's exit code for a command that it gave up; without a pid, the command never started
_LAST_LOOK = 5.0  # seconds between two looks at a command whose end the engine also reports


class _Exec:
    """A command that is known by its exec id: what needs no connection to it."""

    def __init__(self, engine: Engine, container_id: str, exec_id: str) -> None:
        self._engine = engine
        self._container_id = container_id
        self._exec_id = exec_id
        self._waiter = Waiter()

    @property
    def handle(self) -> str:
        return self._exec_id

    @property
    def lost(self) -> str:
        return self._waiter.lost

    def resize(self, cols: int, rows: int) -> None:
        self._live_pid()
        with engine_errors("cannot resize the terminal"):
            self._engine.api.exec_resize(self._exec_id, height=rows, width=cols)

    # ---- signals ----

    def signal(self, number: int) -> None:
        check_signal(number)
        self._send(number, to_group=False)

    def kill(self) -> None:
        with suppress(InvalidStateError):
            self._send(signal.SIGKILL, to_group=True)

    def _send(self, number: int, *, to_group: bool) -> None:
        """Signal the pid that the engine names, after making sure that it is still the command's.

        The pid may be stale. A pidfd pins the process that has the pid now; if the engine then still says that the
        command runs under that pid, the pinned process is the command.
        """
        pid = self._live_pid()
        try:
            pinned = os.pidfd_open(pid)
        except OSError as exc:
            raise self._ended() from exc
        try:
            if self._live_pid() != pid:
                raise self._ended()
            if self._container_id not in _proc(pid, "cgroup"):
                self._live_pid()  # raises if the command has ended just now
                raise UnsupportedError("signals need the container engine on the worker's own host")
            # No pidfd pins the command's children. So their group comes first, while its leader, the command, lives.
            if to_group and os.getpgid(pid) == pid:
                os.killpg(pid, number)
            signal.pidfd_send_signal(pinned, number)
        except ProcessLookupError as exc:
            if not to_group:
                raise self._ended() from exc
        except PermissionError:
            self._send_from_inside(pid, number, to_group)
        finally:
            os.close(pinned)

    def _send_from_inside(self, pid: int, number: int, to_group: bool) -> None:
        """Run `kill` in the box, with the pid that the box knows: a worker without root cannot signal otherwise."""
        inside = next(
            (line.split()[-1] for line in _proc(pid, "status").splitlines() if line.startswith("NSpid:")), None
        )
        if inside is None:
            raise self._ended()
        api = self._engine.api
        command = ["kill", f"-{number}", f"-{inside}" if to_group else inside]
        with engine_errors("cannot signal the command"):
            exec_id = api.exec_create(self._container_id, command, user="0")["Id"]
            output = api.exec_start(exec_id)
            if api.exec_inspect(exec_id)["ExitCode"] != 0 and self._inspect()["Running"]:
                raise EngineError(f"cannot signal the command: {output.decode(errors='replace').strip()}")

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
        if code == GONE_EXIT_CODE and not self.lost and (end := ending_with(self._engine, self._container_id)):
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
        self, engine: Engine, container_id: str, exec_id: str, stream: Stream, tty: bool, holder: Holder | None
    ) -> None:
        super().__init__(engine, container_id, exec_id)
        self._stream = stream
        self._tty = tty
        self._holder = holder
        if holder is not None:
            holder.keep(exec_id, stream.fileno())

    # ---- the beginning ----

    @classmethod
    def spawn(
        cls, engine: Engine, container_id: str, box_id: str, spec: ExecSpec, holder: Holder | None
    ) -> ExecProcess:
        """Start `spec` in the container. Returns, and raises, as `BoxRuntime.spawn` does."""
        try:
            with engine_errors(f"command {spec.command[0]!r} cannot be started in box {box_id}"):
                exec_id = engine.api.exec_create(
                    container_id,
                    list(spec.command),
                    stdin=True,
                    tty=spec.tty,
                    environment=dict(spec.env),
                    workdir=spec.working_dir or None,
                    user=spec.user,
                    detach_keys=DETACH_KEYS,
                )["Id"]
                stream = Stream(engine.start_exec(exec_id, tty=spec.tty), not spec.tty)
        except InvalidStateError as exc:
            if "not running" in exc.message:
                raise StoppedError(f"box {box_id} is not running; start it first") from exc
            raise
        except InvalidArgumentError as exc:
            raise ExecutionError(exc.message) from exc
        process = cls(engine, container_id, exec_id, stream, spec.tty, holder)
        try:
            process._confirm(spec)
        except BaseException:
            process.close()
            raise
        return process

    def _confirm(self, spec: ExecSpec) -> None:
        """Wait until the engine has spawned the command. Raises `ExecutionError` when the engine gives up on it.

        Such a command ends with pid 0, and the reason is on its output.
        """
        interval = FIRST_POLL
        while True:
            state = self._inspect()
            if state["Pid"]:
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
        return self._stream.read()

    def write(self, data: bytes, timeout: float) -> int:
        try:
            return self._stream.write(data, timeout)
        except OSError as exc:
            raise InvalidStateError("the command takes no more input: it has ended") from exc

    def close_input(self) -> None:
        if self._tty:
            with suppress(OSError):
                self._stream.write(END_OF_TRANSMISSION, timeout=1)
        else:
            self._stream.close_write()

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

    def __init__(self, engine: Engine, container_id: str, exec_id: str, watch: Watch) -> None:
        super().__init__(engine, container_id, exec_id)
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

    def close_input(self) -> None:
        pass  # the input ended with the connection

    def close(self) -> None:
        self._left = True
        self._waiter.close()
        self._news.set()
        self._watch.forget_command(self._exec_id)


def readopt(
    engine: Engine, container_id: str, exec_id: str, watch: Watch, holder: Holder | None
) -> ExecProcess | AdoptedExec:
    """The command that a former worker process started. Raises `NotFoundError` when the engine does not know it any
    more, or the command is not in the container."""
    with engine_errors("cannot inspect the command"):
        known = engine.api.exec_inspect(exec_id)
    if known["ContainerID"] != container_id:
        raise NotFoundError("the command is one of another box")
    if holder is not None and (descriptor := holder.take(exec_id)) is not None:
        tty = bool(known["ProcessConfig"]["tty"])
        return ExecProcess(engine, container_id, exec_id, Stream.inherited(descriptor, not tty), tty, holder)
    return AdoptedExec(engine, container_id, exec_id, watch)


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


def _proc(pid: int, name: str) -> str:
    """The content of a file in /proc; empty if it cannot be read."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""
