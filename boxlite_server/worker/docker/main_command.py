"""The main command of a Docker container: a child of the supervisor or of the engine's init, or process 1 itself.

The kernel drops a signal to process 1 that has no handler for it, where the same signal would end any other process.
What a signal should end is killed here instead.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import textwrap
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ...errors import EngineError, InvalidStateError, NotFoundError, UnsupportedError
from ..commands import check_signal
from ..holder import Holder, is_connected
from ..kernel.processes import is_alive, is_in, read_proc
from ..supervisor.links import PROGRAM_NAME
from .config import AWAITING, MIB, is_supervised, own_command, was_told
from .engine import Engine, engine_errors
from .logs import said_before, unix_time
from .process import DETACH_KEYS, Waiter
from .stream import Stream, end_input
from .watch import Watch

_INIT_NAMES = ("docker-init", "tini", PROGRAM_NAME)
_RUNTIME_NAME = "runc"  # of process 1 until it executes the main command
_NOT_EXECUTED = re.compile(
    r"\[FATAL tini[^]]*\] (?P<init>.*)"
    r"|(?P<itself>exec \S+: (?:no such file or directory|exec format error|permission denied))"
    r"|.*exec user process caused: (?P<older>.*)",
    re.IGNORECASE,
)
# Signals that end no process by default, and SIGKILL, which ends process 1 like any other.
_NEVER_DROPPED = frozenset(signal.Signals[f"SIG{n}"] for n in "CHLD CONT KILL STOP TSTP TTIN TTOU URG WINCH".split())
_SHOWN = 200  # characters of a command in an error text
_ENDING_PATIENCE = 2.0  # seconds for the engine to see that process 1 has ended
_LOOK = 0.02  # seconds between two looks at a process


class MainProcess:
    """The `Process` of a container's main command, in its present run or, for a container at rest, its next one."""

    def __init__(self, engine: Engine, container: dict[str, Any], watch: Watch, holder: Holder | None = None) -> None:
        self._engine = engine
        self._watch = watch
        self._holder = holder
        self._container_id: str = container["Id"]
        self._config: Mapping[str, Any] = container["Config"]
        self._tty: bool = container["Config"]["Tty"]
        self._memory: int = container["HostConfig"].get("Memory", 0)  # bytes; 0: no limit
        self._finished = 0.0  # Unix time
        # The log holds what a running command has said so far, after the output of former runs.
        is_running = container["State"]["Running"]
        self._former = said_before(engine, container) if is_running else {}  # bytes left to skip, by stream
        self._stream = self._attach(stdout=1, stderr=1, logs=int(is_running))
        self._input: Stream | None = None
        self._input_lock = threading.Lock()
        self._waiter = Waiter()

    @property
    def handle(self) -> str:
        return ""

    @property
    def tty(self) -> bool:
        return self._tty

    @property
    def lost(self) -> str:
        return self._waiter.lost

    @property
    def memory_limit_hit(self) -> int:
        is_hit = self._finished and self._watch.ran_out_of_memory(self._container_id, self._finished)
        return self._memory // MIB if is_hit else 0

    # ---- input and output ----

    def read(self) -> tuple[int, bytes] | None:
        while (piece := self._stream.read()) is not None:
            source, data = piece
            rest = data[self._former.get(source, 0) :]
            if len(rest) < len(data):
                self._former[source] -= len(data) - len(rest)
            if rest:
                return source, rest
        return None

    def write(self, data: bytes, timeout: float) -> int:
        try:
            return self._stdin().write(data, timeout)
        except OSError as exc:
            raise InvalidStateError("the main command takes no more input: it has ended") from exc

    def close_input(self, timeout: float) -> bool:
        return end_input(self._stdin(), self._tty, timeout)

    def _stdin(self) -> Stream:
        # Attached only when needed: the command's input ends when the connection that feeds it ends.
        # So a box that nobody has fed survives the worker's restart with its input open.
        with self._input_lock:
            if self._input is None:
                self._input = self._inherited_input() or self._attach(stdin=1)
                if self._holder is not None:
                    self._holder.keep(self._input_name, self._input.fileno())
            return self._input

    def _inherited_input(self) -> Stream | None:
        """The connection by which a former worker process fed this run, so that the input does not end with it."""
        kept = self._holder.take(self._input_name) if self._holder is not None else []
        if not kept:
            return None
        stream = Stream.inherited(kept[0], not self._tty)
        return stream if is_connected(kept[0]) else None

    @property
    def _input_name(self) -> str:
        return f"input {self._container_id}"

    def _attach(self, **what: int) -> Stream:
        params = {**what, "stream": 1, "detachKeys": DETACH_KEYS}
        with engine_errors("cannot attach to the main command"):
            return Stream(self._engine.attach(self._container_id, params), not self._tty)

    # ---- control ----

    def signal(self, number: int) -> None:
        with engine_errors("cannot signal the main command"):
            found = self._engine.api.inspect_container(self._container_id)
        send(self._engine, self._watch, {**found, "Config": self._config}, number)

    def kill(self) -> None:
        try:
            self.signal(signal.SIGKILL)
        except (InvalidStateError, NotFoundError):
            self.close()  # the command was never started or has ended: no end of output will come

    def resize(self, cols: int, rows: int) -> None:
        with engine_errors("cannot resize the terminal"):
            self._engine.api.resize(self._container_id, height=rows, width=cols)

    # ---- the end ----

    def wait(self) -> int:
        return self._waiter.until(self._exit_code)

    def _exit_code(self) -> int | None:
        with engine_errors("cannot inspect the box"):
            state = self._engine.api.inspect_container(self._container_id)["State"]
        if state["Running"] or state["Status"] == "created":
            return None
        self._finished = unix_time(state["FinishedAt"])
        return int(state["ExitCode"])

    def close(self) -> None:
        self._waiter.close()
        self._stream.close()
        with self._input_lock:
            if self._input is not None:
                if self._holder is not None:
                    self._holder.drop(self._input_name)
                self._input.close()


# ---- the first process of a container, as the engine describes the container ----


def has_init(container: Mapping[str, Any]) -> bool:
    """Whether the main command runs under a supervisor or under the engine's init process."""
    return is_supervised(container) or bool(container["HostConfig"].get("Init"))


def has_executed(container: Mapping[str, Any]) -> bool:
    """Whether the process of the main command runs the command already. False where that cannot be seen."""
    pid = container["State"]["Pid"]
    if not has_init(container):
        name = read_proc(pid, "comm")
        is_up = bool(name) and not name.startswith(_RUNTIME_NAME)
        return is_up and not (was_told(container) and _is_supervisor(pid))
    children = read_proc(pid, f"task/{pid}/children").split()
    if not children or not is_alive(int(children[0])):  # not begun, or ended: then the container ends too
        return False
    return read_proc(int(children[0]), "comm").strip() not in ("", *_INIT_NAMES)


def awaits_main(container: Mapping[str, Any]) -> bool:
    """Whether the first process is still, or will be, the supervisor that is to become the main command."""
    if has_init(container) or not was_told(container):
        return False
    pid = container["State"]["Pid"]
    return read_proc(pid, "comm").startswith(_RUNTIME_NAME) or _is_supervisor(pid)


def _is_supervisor(pid: int) -> bool:
    """Whether the process is a supervisor that awaits its main command, or has ended."""
    line = read_proc(pid, "cmdline")
    return not line or line.split("\0")[:2] == AWAITING


def is_visible(container: Mapping[str, Any]) -> bool:
    """Whether the first process can be seen. False once it has ended, and where the worker sees no process of boxes."""
    return bool(read_proc(container["State"]["Pid"], "comm"))


def not_executed(said: str) -> str:
    """What the first process said against the main command, in the last lines of its log; empty: nothing."""
    found = [match for line in said.splitlines() if (match := _NOT_EXECUTED.fullmatch(line.strip()))]
    return (found[-1].group(found[-1].lastgroup or 0)).strip() if found else ""


def send(engine: Engine, watch: Watch, container: Mapping[str, Any], number: int) -> None:
    """Send a signal to the main command of a container. Raises InvalidArgumentError for what is no signal, and
    InvalidStateError when the container does not run."""
    check_signal(number)
    if not container["State"]["Running"]:
        raise InvalidStateError("the main command does not run")
    with engine_errors("cannot signal the main command"):
        if number == signal.SIGSTOP and has_init(container):
            _stop_below_init(container)
            return
        if is_dropped(container, number):
            number = signal.SIGKILL
        watch.signalling(container["Id"], number)
        engine.api.kill(container["Id"], signal=number)


def is_dropped(container: Mapping[str, Any], number: int) -> bool:
    """Whether the main command is process 1 and has no handler for a signal that would end any other process. False
    where that cannot be seen."""
    pid = container["State"]["Pid"]
    if has_init(container) or number in _NEVER_DROPPED or not is_in(pid, container["Id"]):
        return False
    masks = dict(line.split(":", 1) for line in read_proc(pid, "status").splitlines() if line.startswith("Sig"))
    # A blocked signal waits until the process asks for it.
    return bool(masks) and not any(int(masks[name], 16) >> number - 1 & 1 for name in ("SigBlk", "SigIgn", "SigCgt"))


def _stop_below_init(container: Mapping[str, Any]) -> None:
    """Send SIGSTOP to the main command, the first child of process 1: the engine would stop process 1 instead, which
    can pass this signal on to nobody."""
    pid = container["State"]["Pid"]
    children = read_proc(pid, f"task/{pid}/children").split()
    if not children:
        raise UnsupportedError("SIGSTOP needs the container engine on the worker's own host")
    try:
        pinned = os.pidfd_open(int(children[0]))
        try:
            if is_in(int(children[0]), container["Id"]):
                signal.pidfd_send_signal(pinned, signal.SIGSTOP)
        finally:
            os.close(pinned)
    except ProcessLookupError as exc:
        raise InvalidStateError("the main command has ended") from exc
    except PermissionError as exc:
        raise UnsupportedError("SIGSTOP needs a worker that runs as root") from exc


def ask_to_stop(engine: Engine, container: Mapping[str, Any], timeout: float) -> float:
    """Send its stop signal to a main command that is process 1, and return once the command has ended or drops the
    signal, after at most `timeout` seconds. Returns how long the engine should still wait before it kills the command:
    not at all, or `timeout` where the command cannot be seen or is not process 1."""
    pid, number, deadline = container["State"]["Pid"], stop_signal(container), time.monotonic() + timeout
    if has_init(container) or not is_in(pid, container["Id"]):
        return timeout
    if not is_dropped(container, number):
        with suppress(InvalidStateError, NotFoundError), engine_errors("cannot signal the main command"):
            engine.api.kill(container["Id"], signal=number)
    # A handler may put the default action back and send the signal again, to end the process by it.
    while time.monotonic() < deadline and is_in(pid, container["Id"]) and not is_dropped(container, number):
        time.sleep(_LOOK)
    return 0.0


def ending(container: Mapping[str, Any]) -> str:
    """How the main command of a container that has ended did so; for error texts."""
    command = textwrap.shorten(shlex.join(own_command(container)), _SHOWN)
    return f"its main command ({command}) ended with exit code {container['State']['ExitCode']}"


def ending_with(engine: Engine, container: Mapping[str, Any]) -> str:
    """`ending` of a container that may be ending just now; empty if its main command runs on, or never ran.
    `container`: as it was described before."""
    deadline = time.monotonic() + _ENDING_PATIENCE
    with suppress(EngineError, NotFoundError), engine_errors("cannot inspect the box"):
        while (state := engine.api.inspect_container(container["Id"])["State"])["Running"]:
            # The kernel kills all commands before process 1 is gone, which has no memory any more by then.
            if read_proc(state["Pid"], "cmdline") or time.monotonic() > deadline:
                return ""
            time.sleep(_LOOK)
        return ending({**container, "State": state}) if state["Status"] == "exited" else ""
    return ""


def stop_signal(container: Mapping[str, Any]) -> int:
    """The number of the signal that asks the main command to end. Like the engine, takes SIGTERM for what is none."""
    text = str(container["Config"].get("StopSignal") or "SIGTERM").upper().removeprefix("SIG")
    if text.isdecimal():
        return int(text)
    name, sign, offset = re.split(r"([+-])", f"{text}+0")[:3]  # as in RTMIN+3
    with suppress(KeyError, ValueError):
        return int(signal.Signals[f"SIG{name}"]) + int(sign + offset)
    return signal.SIGTERM
