"""The fake engine without processes: a command is a note that it runs. All else is as in `FakeRuntime`, which
passes the suite that every runtime must pass."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.fake_runtime import FakeBox, FakeRuntime

from boxlite_server.errors import InvalidStateError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.executions.execution import Execution
from boxlite_server.worker.executions.registry import Executions
from boxlite_server.worker.runtime import BoxRef, Capacity

CPUS = 2
CPU_LIMIT = 4  # what may be promised of them
MEMORY_MIB = 1024

_pids = itertools.count(1000)


class SimProcess:
    """A command: `true` ends at once, any other ends with a signal."""

    memory_limit_hit = 0

    def __init__(self, spec: ExecSpec) -> None:
        self.pid = next(_pids)
        self.handle = str(self.pid)
        self.lost = ""
        self.exit_code: int | None = None
        self.on_end: Callable[[int], None] = lambda code: None
        self.collected = threading.Event()
        self._over = threading.Event()
        if spec.command == ("true",):
            self._end(0)

    def read(self) -> None:
        self._over.wait()

    def wait(self) -> int:
        return 137 if self.exit_code is None else self.exit_code

    def write(self, data: bytes, timeout: float) -> int:
        self._refuse_when_over()
        return len(data)

    def close_input(self) -> None:
        pass

    def signal(self, number: int) -> None:
        self._refuse_when_over()
        self._end(128 + number)

    def kill(self) -> None:
        self._end(128 + signal.SIGKILL)

    def resize(self, cols: int, rows: int) -> None:
        self._refuse_when_over()

    def close(self) -> None:
        self._over.set()

    def ends_within(self, timeout: float) -> bool:
        return self.exit_code is not None

    def _end(self, code: int) -> None:
        if self.exit_code is None:
            self.exit_code = code
            self._over.set()
            self.on_end(code)

    def _refuse_when_over(self) -> None:
        if self.exit_code is not None:
            raise InvalidStateError("the command has ended")


class SimRuntime(FakeRuntime):
    """The engine of one host. It outlives the worker's process, and calls `on_change` as it goes."""

    def __init__(self, directory: Path, on_change: Callable[[], None]) -> None:
        super().__init__(directory)
        self.cpus = CPUS
        self._changes = _Changes(on_change)  # type: ignore[assignment]
        self._started: list[SimProcess] = []

    def capacity(self) -> Capacity:
        return Capacity(cpus=CPUS, memory_mib=MEMORY_MIB, engine_version="fake")

    def spawn(self, box: BoxRef, spec: ExecSpec, on_begun: Callable[[Any], object] = lambda process: None) -> Any:
        process = super().spawn(box, spec, on_begun)
        self._started.append(process)  # type: ignore[arg-type]
        return process

    def settle(self) -> None:
        """Wait until every ended command has been noticed: threads take no virtual time."""
        for process in [process for process in self._started if process.exit_code is not None]:
            assert process.collected.wait(60), "the end of a command is not noticed"
            self._started.remove(process)

    def lose(self, box_id: str) -> None:
        """Remove the container without telling anybody."""
        if box_id in self._boxes:
            self._delete(self._boxes[box_id])

    def close(self) -> None:
        for process in self._started:
            process.kill()

    def _spawn(self, spec: ExecSpec, directory: Path, env: dict[str, str]) -> Any:
        return SimProcess(spec)

    def _follow(self, box: FakeBox, process: Any) -> None:
        process.on_end = lambda code: self._ended(box, code)
        if process.exit_code is not None:
            self._ended(box, process.exit_code)


class SimExecutions(Executions):
    def _run(self, execution: Execution) -> None:
        process = execution._process  # which the execution lets go of at its end
        try:
            super()._run(execution)
        finally:
            process.collected.set()  # type: ignore[attr-defined]


class _Changes:
    """Replaces the queue that a thread would read."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change

    def put(self, change: None) -> None:
        self._on_change()
