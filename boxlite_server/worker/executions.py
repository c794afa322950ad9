"""The executions of this worker: live ones, and finished ones for a while.

Each execution has one thread that moves its command's output into a log and then collects the exit code.
A second kind of thread exists once: the keeper, which enforces time limits, forgets what is old, and ends
executions whose box has gone without a word.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from .. import ids
from ..errors import BoxliteError, InvalidStateError, NotFoundError, ResourceExhaustedError
from .output_log import DEFAULT_CAPACITY, Chunk, Dropped, OutputLog
from .runtime import GONE_EXIT_CODE, BoxRef, BoxRuntime, BoxStatus, ExecSpec, Process

KEEP_FINISHED = 300.0  # seconds
MAX_LIVE = 2000  # each costs a thread and a connection to the engine
KILL_GRACE = 10.0  # seconds from a kill to giving up on the end of output
SWEEP_INTERVAL = 5.0

log = logging.getLogger(__name__)


class ExecutionStatus(StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    KILLED = "killed"  # by our `kill`
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True)
class ExecutionState:
    """`exit_code` and `duration_ms` are set once the execution is over. Times in Unix milliseconds."""

    execution_id: str
    status: ExecutionStatus
    started_at_ms: int
    exit_code: int | None = None
    duration_ms: int | None = None
    error_message: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of an execution's output."""

    position: int
    state: ExecutionState


class Execution:
    """One command, its output and its end."""

    def __init__(
        self,
        execution_id: str,
        box: BoxRef,
        process: Process,
        output: OutputLog,
        clock: Callable[[], float],
        *,
        is_main: bool,
    ) -> None:
        self.execution_id = execution_id
        self.box = box
        self.is_main = is_main
        self.output = output
        self.has_run = not is_main  # a main command may be attached to before it starts
        self._process = process
        self._clock = clock
        self._started = clock()
        self._started_at_ms = int(time.time() * 1000)
        self._lock = threading.Lock()
        self._input = threading.Lock()
        self._input_closed = False
        self._ending: ExecutionStatus | None = None
        self._error = ""
        self._final: ExecutionState | None = None

    @property
    def state(self) -> ExecutionState:
        with self._lock:
            return self._final or ExecutionState(self.execution_id, ExecutionStatus.RUNNING, self._started_at_ms)

    @property
    def is_over(self) -> bool:
        return self._final is not None

    # ---- for clients ----

    def write(self, data: bytes, close: bool, timeout: float) -> int:
        """Input for the command, for at most `timeout` seconds; the bytes taken. `close` counts once all
        are. Raises `InvalidStateError` for data to a command that has ended or whose input is closed."""
        deadline = self._clock() + timeout
        if not self._input.acquire(timeout=max(timeout, 0)):
            return 0
        try:
            if self.is_over or self._input_closed:
                if data:
                    what = "has ended" if self.is_over else "has had the end of its input"
                    raise InvalidStateError(f"execution {self.execution_id} {what}")
                return 0
            taken = self._process.write(data, max(deadline - self._clock(), 0.0)) if data else 0
            if close and taken == len(data):
                self._input_closed = True
                self._process.close_input()
            return taken
        finally:
            self._input.release()

    def signal(self, number: int) -> None:
        self._refuse_when_over()
        self._process.signal(number)

    def resize(self, cols: int, rows: int) -> None:
        self._refuse_when_over()
        self._process.resize(cols, rows)

    def end(self, status: ExecutionStatus) -> bool:
        """Kill the command; it is then `status`, unless it ended by itself first. False: it is over."""
        with self._lock:
            if self._final is not None:
                return False
            self._ending = self._ending or status
        self._process.kill()
        return True

    def give_up(self) -> None:
        """End without waiting for the command's output or for slow readers any longer."""
        self.output.release()
        self._process.close()

    # ---- the pump ----

    def run(self) -> None:
        """Move output to the log until it ends, then collect the exit code. In its own thread."""
        try:
            while (piece := self._process.read()) is not None:
                self.has_run = True
                self.output.append(*piece)
        except Exception as exc:
            # Nobody would ever read on: without a log the command must not run for ever.
            log.exception("output of execution %s is lost", self.execution_id)
            self._error = f"output was lost: {exc}"
            try:
                self._process.kill()
            except BoxliteError as failure:
                log.warning("cannot kill execution %s: %s", self.execution_id, failure)
        try:
            exit_code = self._process.wait()
        except Exception as exc:
            log.exception("exit code of execution %s is lost", self.execution_id)
            self._error = self._error or f"exit code was lost: {exc}"
            exit_code = GONE_EXIT_CODE
        finally:
            self._process.close()
        self._finish(exit_code)
        self.output.close()

    def _finish(self, exit_code: int) -> None:
        with self._lock:
            # Exit code 0 cannot come from a kill: the command was faster.
            killed = self._ending if exit_code else None
            message = self._error
            if not message and killed is ExecutionStatus.TIMED_OUT:
                message = "the command ran into its time limit and was killed"
            self._final = ExecutionState(
                self.execution_id,
                killed or ExecutionStatus.COMPLETED,
                self._started_at_ms,
                exit_code,
                int((self._clock() - self._started) * 1000),
                message,
            )

    def _refuse_when_over(self) -> None:
        if self.is_over:
            raise InvalidStateError(f"execution {self.execution_id} has ended")


class Executions:
    """The registry. Unknown, and forgotten, executions are a `NotFoundError`.

    `clock` gives seconds that only grow. `keep` runs the keeper; `tick` is one of its rounds.
    """

    def __init__(
        self,
        runtime: BoxRuntime,
        spool: Path,
        clock: Callable[[], float] = time.monotonic,
        log_capacity: int = DEFAULT_CAPACITY,
    ) -> None:
        self._runtime = runtime
        self._spool = spool
        self._clock = clock
        self._log_capacity = log_capacity
        self._changed = threading.Condition()
        # A future, since a spawn takes its time and a repeated call must join the first one.
        self._entries: dict[str, Future[Execution]] = {}
        self._mains: dict[BoxRef, Future[Execution]] = {}
        self._finished: deque[tuple[float, str]] = deque()
        self._alarms: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._suspects: set[str] = set()

    # ---- verbs ----

    def start(self, execution_id: str, box: BoxRef, spec: ExecSpec, timeout: float = 0) -> ExecutionState:
        """Run a command in a running box; of a known id: its state. `timeout` in seconds, 0: none.

        Raises what `BoxRuntime.spawn` raises; then the id is free again.
        """
        with self._changed:
            self._forget_old()
            entry = self._entries.get(execution_id)
            is_new = entry is None
            if entry is None:
                self._refuse_too_many()
                entry = self._entries[execution_id] = Future()
        if is_new:
            try:
                process = self._runtime.spawn(box, spec)
            except BaseException as exc:
                with self._changed:
                    del self._entries[execution_id]
                entry.set_exception(exc)
                raise
            self._begin(execution_id, box, process, entry, is_main=False)
            if timeout > 0:
                # By id, so that the alarm does not keep what is long forgotten.
                self._alarm(timeout, lambda: self._time_out(box.box_id, execution_id))
        execution = entry.result()
        if execution.box.box_id != box.box_id:
            raise InvalidStateError(f"execution {execution_id} belongs to another box")
        return execution.state

    def attach_box(self, box: BoxRef) -> ExecutionState:
        """The main command of the box as an execution: the same one as long as it lives."""
        with self._changed:
            self._forget_old()
            entry = self._mains.get(box)
            is_new = entry is None or (entry.done() and not entry.exception() and entry.result().is_over)
            if is_new:
                self._refuse_too_many()
                entry = self._mains[box] = Future()
        assert entry is not None
        if is_new:
            try:
                process = self._runtime.attach_main(box)
            except BaseException as exc:
                with self._changed:
                    del self._mains[box]
                entry.set_exception(exc)
                raise
            execution_id = ids.execution_id()
            with self._changed:
                self._entries[execution_id] = entry
            self._begin(execution_id, box, process, entry, is_main=True)
        return entry.result().state

    def get(self, box_id: str, execution_id: str) -> ExecutionState:
        return self.find(box_id, execution_id).state

    def find(self, box_id: str, execution_id: str) -> Execution:
        """The execution, for its own verbs."""
        with self._changed:
            self._forget_old()
            entry = self._entries.get(execution_id)
        if entry is not None:
            execution = entry.result()
            if execution.box.box_id == box_id:
                return execution
        raise NotFoundError(
            f"execution {execution_id} not found: it never was in box {box_id}, or ended over "
            f"{KEEP_FINISHED / 60:.0f} minutes ago"
        )

    def kill(self, box_id: str, execution_id: str) -> None:
        """SIGKILL; of an ended execution: nothing."""
        self._end(self.find(box_id, execution_id), ExecutionStatus.KILLED)

    def read_output(
        self,
        box_id: str,
        execution_id: str,
        position: int = 0,
        on_leaving: Callable[[Callable[[], None]], bool] = lambda leave: True,
    ) -> Iterator[Chunk | Dropped | Ended]:
        """Output from `position` on as it comes, and `Ended` last.

        `on_leaving` gets the function to call when the reader goes away; it answers False when it
        already has. The iterator then ends without `Ended`.
        """
        execution = self.find(box_id, execution_id)
        with execution.output.reader(position) as reader:
            if not on_leaving(reader.close):
                return
            while events := reader.read():
                yield from events
            if reader.left:
                return
        yield Ended(reader.position, execution.state)

    def live(self) -> list[Execution]:
        """Those that have not ended."""
        with self._changed:
            entries = [entry for entry in self._entries.values() if entry.done() and not entry.exception()]
        return [execution for entry in entries if not (execution := entry.result()).is_over]

    # ---- the keeper ----

    def keep(self, stopping: threading.Event) -> None:
        """Run the keeper until `stopping` is set and `wake` is called."""
        next_sweep = self._clock() + SWEEP_INTERVAL
        while not stopping.is_set():
            self.tick()
            if self._clock() >= next_sweep:
                self.sweep()
                next_sweep = self._clock() + SWEEP_INTERVAL
            with self._changed:
                due = min(next_sweep, self._alarms[0][0]) if self._alarms else next_sweep
                if not stopping.is_set():
                    self._changed.wait(max(due - self._clock(), 0.001))

    def wake(self) -> None:
        """Make the keeper look at once."""
        with self._changed:
            self._changed.notify_all()

    def tick(self) -> None:
        """Ring the alarms that are due, and forget old executions."""
        due = []
        with self._changed:
            self._forget_old()
            while self._alarms and self._alarms[0][0] <= self._clock():
                due.append(heapq.heappop(self._alarms)[2])
        for ring in due:
            # In its own thread: an engine that is slow with one must not delay the others.
            threading.Thread(target=ring, name="alarm", daemon=True).start()

    def sweep(self) -> None:
        """End executions whose box has stopped or gone and whose output does not end by itself.

        Two sweeps must agree, so that an end that is just under way takes its normal course.
        """
        live = self.live()
        suspects: set[str] = set()
        if live:
            try:
                boxes = {state.box: state for state in self._runtime.list_boxes()}
            except BoxliteError as exc:
                log.debug("sweep: %s", exc)
                return
            for execution in live:
                state = boxes.get(execution.box)
                if state is not None and state.status in (BoxStatus.RUNNING, BoxStatus.PAUSED):
                    execution.has_run = True
                elif state is None or execution.has_run:
                    suspects.add(execution.execution_id)
                    if execution.execution_id in self._suspects:
                        log.warning("execution %s outlived its box; ending it", execution.execution_id)
                        execution.give_up()
        self._suspects = suspects

    def _time_out(self, box_id: str, execution_id: str) -> None:
        with suppress(NotFoundError):
            self._end(self.find(box_id, execution_id), ExecutionStatus.TIMED_OUT)

    def _end(self, execution: Execution, status: ExecutionStatus) -> None:
        try:
            if not execution.end(status):
                return
        except BoxliteError as exc:
            if status is ExecutionStatus.KILLED:
                raise
            log.warning("cannot end execution %s, trying again: %s", execution.execution_id, exc)
            self._alarm(1.0, lambda: self._end(execution, status))
            return
        self._alarm(KILL_GRACE, lambda: None if execution.is_over else execution.give_up())

    def _alarm(self, delay: float, ring: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._alarms, (self._clock() + delay, next(self._sequence), ring))
            self._changed.notify_all()

    # ---- the registry ----

    def _begin(
        self,
        execution_id: str,
        box: BoxRef,
        process: Process,
        entry: Future[Execution],
        *,
        is_main: bool,
    ) -> None:
        output = OutputLog(self._spool, self._log_capacity)
        execution = Execution(execution_id, box, process, output, self._clock, is_main=is_main)
        threading.Thread(target=self._run, args=(execution,), name=f"execution {execution_id}", daemon=True).start()
        entry.set_result(execution)

    def _run(self, execution: Execution) -> None:
        execution.run()
        with self._changed:
            self._finished.append((self._clock(), execution.execution_id))

    def _forget_old(self) -> None:
        while self._finished and self._clock() - self._finished[0][0] >= KEEP_FINISHED:
            entry = self._entries.pop(self._finished.popleft()[1])
            execution = entry.result()
            if self._mains.get(execution.box) is entry:
                del self._mains[execution.box]

    def _refuse_too_many(self) -> None:
        if len(self._entries) - len(self._finished) >= MAX_LIVE:
            raise ResourceExhaustedError(f"the worker runs {MAX_LIVE} executions already; try again later")
