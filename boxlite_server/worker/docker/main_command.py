"""The main command of a Docker container."""

from __future__ import annotations

import signal
import threading
from typing import Any

from ...errors import InvalidStateError, NotFoundError
from .config import MIB
from .engine import Engine, engine_errors
from .holder import Holder, is_connected
from .logs import said_before, unix_time
from .process import DETACH_KEYS, Waiter, check_signal
from .stream import Stream, end_input
from .watch import Watch


class MainProcess:
    """The `Process` of a container's main command, in its present run or, for a container at rest, its next one."""

    def __init__(self, engine: Engine, container: dict[str, Any], watch: Watch, holder: Holder | None = None) -> None:
        self._engine = engine
        self._watch = watch
        self._holder = holder
        self._container_id: str = container["Id"]
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
        descriptor = self._holder.take(self._input_name) if self._holder is not None else None
        if descriptor is None:
            return None
        stream = Stream.inherited(descriptor, not self._tty)
        return stream if is_connected(descriptor) else None

    @property
    def _input_name(self) -> str:
        return f"input {self._container_id}"

    def _attach(self, **what: int) -> Stream:
        params = {**what, "stream": 1, "detachKeys": DETACH_KEYS}
        with engine_errors("cannot attach to the main command"):
            return Stream(self._engine.attach(self._container_id, params), not self._tty)

    # ---- control ----

    def signal(self, number: int) -> None:
        check_signal(number)
        self._watch.signalling(self._container_id, number)
        with engine_errors("cannot signal the main command"):
            self._engine.api.kill(self._container_id, signal=number)

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
