"""The executions of this worker: live ones, and finished ones for a while.

Each execution has one thread that moves its command's output into a log and then collects the exit code.
A second kind of thread exists once: the keeper, which enforces time limits, forgets what is old, and ends
executions whose box has gone without a word.

The commands outlive this process. A journal tells the next one of them, and it takes them over: `recover`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import shutil
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from ... import ids
from ...errors import BoxliteError, ExecutionError, InvalidStateError, NotFoundError, ResourceExhaustedError
from ...rpc import MAX_EXECUTIONS
from ..commands import ExecSpec, Process
from ..runtime import BoxRef, BoxRuntime, BoxStatus
from .execution import Delivered, Ended, Execution, ExecutionState, ExecutionStatus
from .journal import Journal, Record
from .output_log import DEFAULT_CAPACITY, Chunk, Dropped, Gap, OutputLog
from .recovery import GAP, Bygone, Remains, find_again, remembered
from .tally import Tally

KEEP_FINISHED = 300.0  # seconds
KILL_GRACE = 10.0  # seconds from a kill to giving up on the end of output
SWEEP_INTERVAL = 5.0
MAX_PER_BOX = 256  # executions that live in one box, its main command not counted
KEEP_FREE = 16 * 1024 * 1024  # bytes of the spool's disk; with fewer no command is started
_BYGONE = 20_000  # ids of forgotten executions that are known not to be new

log = logging.getLogger(__name__)


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
        journal: Journal | None = None,
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
        self._tallies: dict[str, Tally] = {}  # by box id
        self._counts: Counter[str] = Counter()  # of those that have not ended, by box id
        self._bygone: OrderedDict[str, None] = OrderedDict()
        self._journal = journal or Journal(None)
        self._former: dict[str, Record] = {}  # not found again yet
        self._adopting = threading.Lock()

    # ---- verbs ----

    def start(
        self,
        execution_id: str,
        box: BoxRef,
        spec: ExecSpec,
        timeout: float = 0,
        *,
        hangup: float = 0,
        expects_reader: bool = False,
    ) -> ExecutionState:
        """Run a command in a running box; of a known id: its state. `timeout` in seconds, 0: none.

        `hangup`: SIGHUP when the last reader has been gone for so many seconds, or, where one is expected,
        none has come; 0: never. Raises what `BoxRuntime.spawn` raises; then the id is free again.
        """
        self._find_former(lambda record: record.execution_id == execution_id)
        with self._changed:
            self._forget_old()
            entry = self._entries.get(execution_id)
            is_new = entry is None
            if entry is None:
                self._refuse(execution_id, box)
                entry = self._entries[execution_id] = Future()
                self._counts[box.box_id] += 1
        if is_new:
            try:
                process = self._runtime.spawn(box, spec)
                self.tally(box.box_id).started()
            except BaseException as exc:
                if isinstance(exc, ExecutionError):
                    self.tally(box.box_id).failed()
                with self._changed:
                    del self._entries[execution_id]
                    self._uncount(box.box_id)
                entry.set_exception(exc)
                raise
            now_ms = _now_ms()
            record = Record(
                execution_id,
                box.box_id,
                box.generation,
                process.handle,
                is_main=False,
                started_at_ms=now_ms,
                deadline_ms=now_ms + int(timeout * 1000) if timeout > 0 else 0,
                hangup=hangup,
                awaits_reader=expects_reader,
            )
            self._journal.add(record)
            self._begin(record, process, entry)
        execution = entry.result()
        if execution.box.box_id != box.box_id:
            raise InvalidStateError(f"execution {execution_id} belongs to another box")
        return execution.state

    def attach_box(self, box: BoxRef, hangup: float = 0) -> ExecutionState:
        """The main command of the box as an execution: the same one as long as it lives. `hangup` as in
        `start`; it counts where this is the first call for this run."""
        self._find_former(lambda record: record.is_main and record.box_id == box.box_id)
        with self._changed:
            self._forget_old()
            entry = self._mains.get(box)
            is_new = entry is None or (entry.done() and not entry.exception() and entry.result().is_over)
            if is_new:
                self._refuse_too_many()
                self._refuse_full_disk()
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
            record = Record(
                execution_id, box.box_id, box.generation, "", is_main=True, started_at_ms=_now_ms(), hangup=hangup
            )
            self._journal.add(record)
            self._begin(record, process, entry)
        return entry.result().state

    def get(self, box_id: str, execution_id: str) -> ExecutionState:
        return self.find(box_id, execution_id).state

    def find(self, box_id: str, execution_id: str) -> Execution:
        """The execution, for its own verbs."""
        self._find_former(lambda record: record.execution_id == execution_id)
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

    def confirm(self, box_id: str, execution_id: str, delivered: Delivered) -> None:
        """Note what the attached client has; see `Execution.confirm`."""
        execution = self.find(box_id, execution_id)
        execution.confirm(delivered)
        if execution.is_main:  # its output can be had again, so that is worth to be known for longer
            self._journal.update(execution_id, delivered_bytes=execution.state.delivered.total)

    def read_output(
        self,
        box_id: str,
        execution_id: str,
        position: int = 0,
        on_leaving: Callable[[Callable[[], None]], bool] = lambda leave: True,
    ) -> Iterator[Chunk | Dropped | Gap | Ended]:
        """Output from `position` on as it comes, and `Ended` last.

        `on_leaving` gets the function to call when the reader goes away; it answers False when it
        already has. The iterator then ends without `Ended`.
        """
        execution = self.find(box_id, execution_id)
        if execution.is_inherited and not execution.output.holds(position):
            position = 0  # it is one of a former life's log
        if execution.hangup > 0:
            self._journal.update(execution_id, awaits_reader=True)

        def deserted(visits: int) -> None:
            # A main command that has not begun has no terminal to hang up.
            if execution.has_run and not execution.is_over:
                self._hang_up_later(execution, visits)

        with execution.visit(deserted), execution.output.reader(position) as reader:
            if not on_leaving(reader.close):
                return
            if execution.gap and position == 0:
                yield Gap(0, execution.gap)
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

    def running_in(self, box_id: str) -> int:
        """How many commands besides the main one have not ended in the box."""
        return sum(execution.box.box_id == box_id and not execution.is_main for execution in self.live())

    def tally(self, box_id: str) -> Tally:
        """What the commands of the box have done since this worker's process began."""
        with self._changed:
            return self._tallies.setdefault(box_id, Tally(self._clock))

    def forget_box(self, box_id: str) -> None:
        """The box is gone."""
        with self._changed:
            self._tallies.pop(box_id, None)

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
        with suppress(BoxliteError):
            self._find_former(lambda record: True)
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

    def _hang_up_later(self, execution: Execution, visits: int) -> None:
        if execution.hangup <= 0:
            return
        box_id, execution_id = execution.box.box_id, execution.execution_id

        def ring() -> None:
            try:
                self.find(box_id, execution_id).hang_up(visits)
            except (NotFoundError, InvalidStateError):
                pass  # it has ended
            except BoxliteError as exc:
                log.warning("cannot hang up execution %s: %s", execution_id, exc)

        self._alarm(execution.hangup, ring)

    def _alarm(self, delay: float, ring: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._alarms, (self._clock() + delay, next(self._sequence), ring))
            self._changed.notify_all()

    # ---- the registry ----

    def _begin(self, record: Record, process: Process, entry: Future[Execution], gap: str | None = None) -> None:
        execution = self._execution(record, process, gap)
        threading.Thread(
            target=self._run, args=(execution,), name=f"execution {record.execution_id}", daemon=True
        ).start()
        entry.set_result(execution)
        if record.awaits_reader:
            self._hang_up_later(execution, 0)
        if record.deadline_ms:
            left = (record.deadline_ms - _now_ms()) / 1000
            # By id, so that the alarm does not keep what is long forgotten.
            self._alarm(max(left, 0.0), lambda: self._time_out(record.box_id, record.execution_id))

    def _execution(self, record: Record, process: Process, gap: str | None) -> Execution:
        return Execution(
            record.execution_id,
            BoxRef(record.box_id, record.generation),
            process,
            OutputLog(self._spool, self._log_capacity, 0 if gap is None else _now_ms() << 20),
            self._clock,
            self.tally(record.box_id),
            is_main=record.is_main,
            hangup=record.hangup,
            started_at_ms=record.started_at_ms,
            gap=gap,
        )

    def _run(self, execution: Execution) -> None:
        execution.run()
        self._over(execution, _now_ms())

    def _over(self, execution: Execution, at_ms: int) -> None:
        """It has ended, at that Unix time."""
        state = execution.state
        self._journal.update(
            execution.execution_id,
            ended_at_ms=at_ms,
            status=str(state.status),
            exit_code=state.exit_code,
            duration_ms=state.duration_ms,
            error_message=state.error_message,
        )
        with self._changed:
            self._finished.append((self._clock() - (_now_ms() - at_ms) / 1000, execution.execution_id))
            if not execution.is_main:
                self._uncount(execution.box.box_id)

    # ---- former lives ----

    def recover(self) -> None:
        """Take over what the journal tells of. What cannot be told yet, because the engine does not answer, is
        found again later; until then who asks for it gets the engine's error."""
        for record in sorted(self._journal.load(), key=lambda record: record.ended_at_ms):
            if record.ended_at_ms and _now_ms() - record.ended_at_ms >= KEEP_FINISHED * 1000:
                self._journal.remove(record.execution_id)
            elif record.ended_at_ms:
                self._inherit_end(record, Future(), remembered(record), record.ended_at_ms)
            else:
                self._former[record.execution_id] = record
        with suppress(BoxliteError):
            self._find_former(lambda record: True)

    def _find_former(self, wanted: Callable[[Record], bool]) -> None:
        """Find again those of the former executions; raises what keeps that from being told."""
        if not any(map(wanted, list(self._former.values()))):
            return
        with self._adopting:
            for record in filter(wanted, list(self._former.values())):
                found = find_again(self._runtime, record)
                entry: Future[Execution] = Future()
                if isinstance(found, Remains):
                    now_ms = _now_ms()
                    state = ExecutionState(
                        record.execution_id,
                        ExecutionStatus.COMPLETED,
                        record.started_at_ms,
                        found.exit_code,
                        now_ms - record.started_at_ms,
                        found.reason,
                    )
                    self._inherit_end(record, entry, state, now_ms)
                else:
                    with self._changed:
                        self._entries[record.execution_id] = entry
                        if record.is_main:
                            self._mains[BoxRef(record.box_id, record.generation)] = entry
                        else:
                            self._counts[record.box_id] += 1
                    self._begin(record, found, entry, "" if record.is_main else GAP)
                    inherited = entry.result()
                    # What a main command has said is read again from its beginning.
                    inherited.confirm(Delivered(record.delivered_bytes, 0, 0))
                log.info("execution %s of a former process: %s", record.execution_id, entry.result().state.status)
                del self._former[record.execution_id]

    def _inherit_end(self, record: Record, entry: Future[Execution], state: ExecutionState, at_ms: int) -> None:
        execution = self._execution(record, Bygone(), GAP)
        execution.is_known_to_be(state)
        entry.set_result(execution)
        with self._changed:
            self._entries[record.execution_id] = entry
            if not record.is_main:
                self._counts[record.box_id] += 1
        self._over(execution, at_ms)

    # ---- forgetting, and refusing ----

    def _forget_old(self) -> None:
        while self._finished and self._clock() - self._finished[0][0] >= KEEP_FINISHED:
            execution_id = self._finished.popleft()[1]
            entry = self._entries.pop(execution_id)
            execution = entry.result()
            if self._mains.get(execution.box) is entry:
                del self._mains[execution.box]
            self._journal.remove(execution_id)
            self._bygone[execution_id] = None
            while len(self._bygone) > _BYGONE:
                self._bygone.popitem(last=False)

    def _uncount(self, box_id: str) -> None:
        self._counts[box_id] -= 1
        if not self._counts[box_id]:
            del self._counts[box_id]

    def _refuse(self, execution_id: str, box: BoxRef) -> None:
        if execution_id in self._bygone:
            raise InvalidStateError(f"execution {execution_id} ended long ago; it is not started again")
        if self._counts[box.box_id] >= MAX_PER_BOX:
            raise ResourceExhaustedError(f"box {box.box_id} runs {MAX_PER_BOX} executions already; try again later")
        self._refuse_too_many()
        self._refuse_full_disk()

    def _refuse_too_many(self) -> None:
        if len(self._entries) - len(self._finished) >= MAX_EXECUTIONS:
            raise ResourceExhaustedError(f"the worker runs {MAX_EXECUTIONS} executions already; try again later")

    def _refuse_full_disk(self) -> None:
        with suppress(OSError):
            if shutil.disk_usage(self._spool).free < KEEP_FREE:
                raise ResourceExhaustedError(
                    "the worker's disk is full: there is no room for the command's output; try again later"
                )


def _now_ms() -> int:
    return int(time.time() * 1000)
