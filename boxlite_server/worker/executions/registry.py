"""The executions of this worker: live ones, and finished ones for a while.

Each execution has a thread that moves its command's output into a log and then collects the exit code. One more thread,
the keeper, enforces time limits, forgets old executions, and ends executions whose box has disappeared without a sign.

The commands outlive the worker process; the next process takes them over from the journal with `recover`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ... import ids
from ...errors import (
    BoxliteError,
    ExecutionError,
    InvalidStateError,
    NotFoundError,
    ResourceExhaustedError,
    UnsupportedError,
)
from ...rpc import MAX_EXECUTIONS, TENANT, Tenant
from ..commands import ExecSpec, Process
from ..runtime import BoxRef, BoxRuntime, BoxStatus
from ..shares import Shares
from .alarms import Alarms
from .execution import RESTARTED, Delivered, EndedProcess, Event, Execution, ExecutionState, ExecutionStatus
from .journal import Journal, Record, now_ms
from .output_log import DEFAULT_CAPACITY, refuse_full_disk, remove_logs
from .recovery import FormerExecutions, Kept, Logs, Outcome
from .tally import Tally
from .threads import Threads

KEEP_FINISHED = 300.0  # seconds
KILL_GRACE = 10.0  # seconds from a kill until the execution ends even if its output does not
MAX_KILLS = 10  # attempts to kill a command at its time limit, before its execution ends without its end
MAX_KILL_INTERVAL = 60.0  # seconds between two attempts; at first there is one second, then twice as many each time
SWEEP_INTERVAL = 5.0  # seconds
MAX_PER_BOX = 256  # live executions in one box, its main command not counted
_MAX_FORGOTTEN = 20_000  # ids of forgotten executions that are remembered, so that none is started again

log = logging.getLogger(__name__)


class Executions:
    """The registry. An execution that is unknown or forgotten raises `NotFoundError`.

    `clock` is monotonic, in seconds. `budget`: see `Logs`. `keep` runs the keeper; `tick` is one round of it.
    """

    def __init__(
        self,
        runtime: BoxRuntime,
        spool: Path,
        clock: Callable[[], float] = time.monotonic,
        log_capacity: int = DEFAULT_CAPACITY,
        journal: Journal | None = None,
        budget: int | None = None,
    ) -> None:
        self._runtime = runtime
        self._spool = spool
        self._clock = clock
        self._changed = threading.Condition()
        self._entries: dict[str, Future[Execution]] = {}  # futures: a repeated call has to join the first spawn
        self._mains: dict[BoxRef, Future[Execution]] = {}
        self._finished: deque[tuple[float, str]] = deque()  # (time of the end, execution id), oldest first
        self._alarms = Alarms(clock, self._changed)
        self._suspects: set[str] = set()  # execution ids whose box was not running at the last sweep
        self._tallies: dict[str, Tally] = {}  # by box id
        self._counts: Counter[str] = Counter()  # executions that have not ended, by box id
        self.slots = Shares(MAX_EXECUTIONS, f"runs {MAX_EXECUTIONS} executions", quota="executions")
        self._forgotten: OrderedDict[str, None] = OrderedDict()
        self._threads = Threads()
        self._journal = journal or Journal(None)
        self.logs = Logs(spool, log_capacity, budget)
        self._former = FormerExecutions(runtime, self._journal, self._take_over)

    def start(
        self,
        execution_id: str,
        box: BoxRef,
        spec: ExecSpec,
        timeout: float = 0,
        *,
        hangup: float = 0,
        expects_reader: bool = False,
        stdin: bytes | None = None,
        owned: bool = False,
    ) -> ExecutionState:
        """Run a command in a running box. For a known id, return the state of that execution.

        `timeout` is in seconds, 0 means none. `hangup`: seconds without a reader after which the command gets
        SIGHUP, 0 means never; they count from the last reader's leaving and, with `expects_reader`, from the
        start. `stdin`: all of the input; None: it comes later. `owned`: the caller moves the output, see `run.py`.
        Raises what `BoxRuntime.spawn` raises; the id is then free again.
        """
        tenant = TENANT.get()
        self._former.find(lambda record: record.execution_id == execution_id)
        with self._changed:
            self._forget_old()
            entry = self._entries.get(execution_id)
            is_new = entry is None
            if entry is None:
                self._take_slot(execution_id, box, tenant)
                entry = self._entries[execution_id] = Future()
                self._counts[box.box_id] += 1
        if is_new:
            tied, command = owned or bool(stdin), spec.command
            how: dict[str, Any] = {"hangup": hangup, "awaits_reader": expects_reader, "tied": tied, "command": command}
            begun: list[tuple[Record, Execution]] = []

            def on_begun(process: Process) -> None:  # while the command is being started
                record = Record.started(execution_id, box, process.handle, timeout, tenant=tenant.prefix, **how)
                self._journal.add(record)
                begun.append((record, self._execution(record, process, tenant)))

            self._spawn(execution_id, entry, box, replace(spec, is_kept=not owned), tenant, on_begun)
            self._begin(*begun[-1], entry, pumped=not owned)
            if stdin is not None:
                entry.result().feed(stdin, lambda: self._journal.update(execution_id, tied=owned))
        execution = entry.result()
        if execution.box.box_id != box.box_id or (owned and not is_new):
            raise InvalidStateError(f"execution {execution_id} belongs to another box or request")
        return execution.state

    def _spawn(
        self,
        execution_id: str,
        entry: Future[Execution],
        box: BoxRef,
        spec: ExecSpec,
        tenant: Tenant,
        on_begun: Callable[[Process], None],
    ) -> None:
        """Start the command of a new entry. If that fails, the entry goes, and those who wait for it get the error."""
        try:
            self._runtime.spawn(box, spec, on_begun)
            self.tally(box.box_id).started()
        except BaseException as exc:
            if isinstance(exc, ExecutionError):
                self.tally(box.box_id).failed()
            self._journal.remove(execution_id)
            with self._changed:
                del self._entries[execution_id]
                self._uncount(box.box_id, tenant.prefix)
            entry.set_exception(exc)
            raise

    def attach_box(self, box: BoxRef, hangup: float = 0) -> ExecutionState:
        """The main command of the box as an execution; calls during one run of the command give the same one.

        `hangup` is as in `start`; the first call for a run sets it.
        """
        self._former.find(lambda record: record.is_main and record.box_id == box.box_id)
        tenant = TENANT.get()
        with self._changed:
            self._forget_old()
            entry = self._mains.get(box)
            is_new = entry is None or (entry.done() and not entry.exception() and entry.result().is_over)
            if is_new:
                refuse_full_disk(self._spool)
                self.slots.take(tenant)
                entry = self._mains[box] = Future()
        assert entry is not None
        if is_new:
            try:
                process = self._runtime.attach_main(box)
            except BaseException as exc:
                with self._changed:
                    del self._mains[box]
                    self._uncount(None, tenant.prefix)
                entry.set_exception(exc)
                raise
            execution_id = ids.execution_id()
            with self._changed:
                self._entries[execution_id] = entry
            record = Record.started(execution_id, box, "", is_main=True, hangup=hangup, tenant=tenant.prefix)
            self._journal.add(record)
            self._begin(record, self._execution(record, process, tenant), entry)
        return entry.result().state

    def get(self, box_id: str, execution_id: str) -> ExecutionState:
        return self.find(box_id, execution_id).state

    def find(self, box_id: str, execution_id: str) -> Execution:
        """The execution itself, to write to, signal or resize."""
        self._former.find(lambda record: record.execution_id == execution_id)
        with self._changed:
            self._forget_old()
            entry = self._entries.get(execution_id)
        if entry is not None and (execution := entry.result()).box.box_id == box_id:
            return execution
        raise NotFoundError(
            f"execution {execution_id} not found: it never was in box {box_id}, or ended over "
            f"{KEEP_FINISHED / 60:.0f} minutes ago"
        )

    def kill(self, box_id: str, execution_id: str) -> None:
        """Send SIGKILL to the command. An execution that has ended is left as it is."""
        self._end(self.find(box_id, execution_id), ExecutionStatus.KILLED)

    def abandon(self, execution: Execution) -> None:
        """Kill a command that nobody waits for any more, if need be in several attempts."""
        self._end(execution, ExecutionStatus.KILLED, insists=True)

    def dismiss(self, execution: Execution) -> None:
        """Forget an execution that has ended and whose caller has seen all of it."""
        self._alarms.cancel(execution.execution_id)
        with self._changed:
            self._uncount(execution.box.box_id, execution.tenant)
            self._forget(execution.execution_id)

    def lose_input(self, box_id: str, execution_id: str) -> None:
        """Kill a command of whose input a part was lost on the way, unless it has a terminal."""
        execution = self.find(box_id, execution_id)
        if not execution.is_over and execution.lose_input():
            self._end(execution, ExecutionStatus.KILLED)

    def confirm(self, box_id: str, execution_id: str, delivered: Delivered) -> None:
        """Note how much output the attached client has received; see `Execution.confirm`."""
        execution = self.find(box_id, execution_id)
        execution.confirm(delivered)
        self._journal.record_delivered(execution_id, execution.state.delivered)

    def read_output(
        self,
        box_id: str,
        execution_id: str,
        position: int = 0,
        on_end: Callable[[Callable[[], None]], bool] = lambda callback: True,
    ) -> Iterator[Event]:
        """Yield output from `position` on as it comes, and `Ended` last.

        `on_end(callback)` registers the function to call when the reader goes away, and returns False if the
        reader has already gone. When it goes, the iterator ends without `Ended`.
        """
        for events in self.read_batches(box_id, execution_id, position, on_end):
            yield from events

    def read_batches(
        self, box_id: str, execution_id: str, position: int, on_end: Callable[[Callable[[], None]], bool]
    ) -> Iterator[list[Event]]:
        """`read_output`, with what is there at once in one list. The first list comes at once, and may be empty."""
        execution = self.find(box_id, execution_id)
        if execution.hangup > 0:
            self._journal.update(execution_id, awaits_reader=True)

        def deserted(visits: int) -> None:
            # A main command that has not started has no terminal to hang up.
            if execution.has_run and not execution.is_over:
                self._hang_up_later(execution, visits)

        return execution.read(position, on_end, deserted)

    def begun(self) -> list[Execution]:
        """The executions that are known, also those that have ended and are kept."""
        with self._changed:
            return [entry.result() for entry in self._entries.values() if entry.done() and not entry.exception()]

    def live(self) -> list[Execution]:
        """The executions that have not ended."""
        return [execution for execution in self.begun() if not execution.is_over]

    def running_in(self, box_id: str) -> int:
        """The number of live executions in the box, its main command not counted."""
        return sum(execution.box.box_id == box_id and not execution.is_main for execution in self.live())

    def tally(self, box_id: str) -> Tally:
        """The counts of the box's commands since this worker process started."""
        with self._changed:
            return self._tallies.setdefault(box_id, Tally(self._clock))

    def forget_box(self, box_id: str) -> None:
        """Drop the counts of a box that was removed."""
        with self._changed:
            self._tallies.pop(box_id, None)

    # ---- the keeper ----

    def keep(self, stopping: threading.Event) -> None:
        """Run the keeper. Returns once `stopping` is set; call `wake` to make it notice."""
        next_sweep = self._clock() + SWEEP_INTERVAL
        while not stopping.is_set():
            self.tick()
            if self._clock() >= next_sweep:
                self.sweep()
                next_sweep = self._clock() + SWEEP_INTERVAL
            with self._changed:
                if not stopping.is_set():
                    self._changed.wait(max(self._alarms.next_time(next_sweep) - self._clock(), 0.001))

    def wake(self) -> None:
        """Make the keeper start its next round at once."""
        with self._changed:
            self._changed.notify_all()

    def tick(self) -> None:
        """Run the alarms that are due, and forget old executions."""
        with self._changed:
            self._forget_old()
        self._alarms.ring_due()

    def sweep(self) -> None:
        """End executions whose box has stopped or gone and whose output does not end by itself.

        An execution is ended only when two sweeps in a row find it so: an end under way has time to complete.
        """
        with suppress(BoxliteError):
            self._former.find()
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

    def _time_out(self, execution: Execution) -> None:
        self._end(execution, ExecutionStatus.TIMED_OUT, insists=True)

    def _end(self, execution: Execution, status: ExecutionStatus, attempt: int = 1, *, insists: bool = False) -> None:
        """Kill the command. Where that fails, raise the error or, with `insists`, try again later."""
        try:
            if not execution.end(status):
                return
        except BoxliteError as exc:
            if not insists:
                raise
            log.warning("cannot end execution %s (attempt %d): %s", execution.execution_id, attempt, exc)
            if attempt == MAX_KILLS or isinstance(exc, UnsupportedError):
                is_late = status is ExecutionStatus.TIMED_OUT
                what = "ran into its time limit" if is_late else "is not waited for any more"
                execution.give_up(f"the command {what}, and runs on because it cannot be killed: {exc.message}", status)
            else:
                delay = min(2.0 ** (attempt - 1), MAX_KILL_INTERVAL)
                self._alarms.set(delay, lambda: self._end(execution, status, attempt + 1, insists=True))
            return
        self._alarms.set(KILL_GRACE, lambda: None if execution.is_over else execution.give_up())

    def _hang_up_later(self, execution: Execution, visits: int) -> None:
        if execution.hangup <= 0:
            return

        def ring() -> None:
            try:
                execution.hang_up(visits)
            except InvalidStateError:
                pass  # the execution has ended
            except BoxliteError as exc:
                log.warning("cannot hang up execution %s: %s", execution.execution_id, exc)

        self._alarms.set(execution.hangup, ring)

    # ---- the registry ----

    def _begin(self, record: Record, execution: Execution, entry: Future[Execution], *, pumped: bool = True) -> None:
        if pumped:
            self._threads.run(f"execution {record.execution_id}", partial(self._run, execution))
        entry.set_result(execution)
        if record.awaits_reader:
            self._hang_up_later(execution, 0)
        if record.deadline_ms:
            left = max((record.deadline_ms - now_ms()) / 1000, 0.0)
            self._alarms.set(left, lambda: self._time_out(execution), record.execution_id)

    def _execution(self, record: Record, process: Process, tenant: Tenant, kept: Kept | None = None) -> Execution:
        """`kept`: what a former process has left; None for an execution that this process starts."""
        execution_id = record.execution_id
        execution = Execution(
            execution_id,
            BoxRef(record.box_id, record.generation),
            process,
            kept.output if kept else self.logs.new(execution_id, tenant),
            self._clock,
            self.tally(record.box_id),
            is_main=record.is_main,
            hangup=record.hangup,
            started_at_ms=record.started_at_ms,
            gap=kept.gap if kept else None,
            source=record.source,
            on_source=lambda source: self._journal.record_source(execution_id, source),
            tenant=record.tenant,
            command=(record.command, record.is_command_cut),
        )
        execution.confirm(kept.delivered if kept else Delivered())
        return execution

    def _run(self, execution: Execution) -> None:
        execution.run(
            lambda: self._journal.update(execution.execution_id, has_output=True),
            lambda: self._note_end(execution, now_ms()),
        )

    def _note_end(self, execution: Execution, at_ms: int) -> None:
        """Record that the execution ended at `at_ms` (Unix time)."""
        self._alarms.cancel(execution.execution_id)
        self._journal.record_end(
            execution.state, at_ms, has_output=bool(execution.gap) or not execution.output.is_empty
        )
        with self._changed:
            self._finished.append((self._clock() - (now_ms() - at_ms) / 1000, execution.execution_id))
            self._uncount(None if execution.is_main else execution.box.box_id, execution.tenant)

    # ---- executions of a former process ----

    def recover(self) -> None:
        """Take over the executions in the journal.

        Executions that are not found because the engine does not answer are looked for again; until then, calls about
        them raise the engine's error.
        """
        self._former.load(KEEP_FINISHED)
        remove_logs(self._spool, self._journal.execution_ids())
        with suppress(BoxliteError):
            self._former.find()

    def _take_over(self, record: Record, found: Process | Outcome) -> Execution:
        return self._inherit_end(record, found) if isinstance(found, Outcome) else self._adopt(record, found)

    def _adopt(self, record: Record, process: Process) -> Execution:
        entry: Future[Execution] = Future()
        self._enter(record, entry)
        if record.is_main:
            self._mains[BoxRef(record.box_id, record.generation)] = entry
        execution = self._execution(record, process, Tenant(record.tenant), self.logs.of_running(record, process))
        self._begin(record, execution, entry)
        if record.tied:
            execution.lose_input(RESTARTED)
            self._alarms.set(0.0, lambda: self.abandon(execution))
        return execution

    def _inherit_end(self, record: Record, outcome: Outcome) -> Execution:
        kept = self.logs.of_ended(record)
        execution = self._execution(record, EndedProcess(), Tenant(record.tenant), kept)
        execution.conclude(replace(outcome.state, error_message=outcome.state.error_message or kept.gap))
        entry: Future[Execution] = Future()
        entry.set_result(execution)
        self._enter(record, entry)
        self._note_end(execution, outcome.ended_at_ms)
        return execution

    def _enter(self, record: Record, entry: Future[Execution]) -> None:
        self.slots.take_anyway(record.tenant)
        with self._changed:
            self._entries[record.execution_id] = entry
            if not record.is_main:
                self._counts[record.box_id] += 1

    # ---- forgetting, and refusing ----

    def _forget_old(self) -> None:
        while self._finished and self._clock() - self._finished[0][0] >= KEEP_FINISHED:
            self._forget(self._finished.popleft()[1])

    def _forget(self, execution_id: str) -> None:
        entry = self._entries.pop(execution_id)
        execution = entry.result()
        execution.output.discard()
        if self._mains.get(execution.box) is entry:
            del self._mains[execution.box]
        self._journal.remove(execution_id)
        self._forgotten[execution_id] = None
        while len(self._forgotten) > _MAX_FORGOTTEN:
            self._forgotten.popitem(last=False)

    def _uncount(self, box_id: str | None, prefix: str) -> None:  # None: it was a main command
        self.slots.give_back(prefix)
        if box_id is not None:
            self._counts[box_id] -= 1
            if not self._counts[box_id]:
                del self._counts[box_id]

    def _take_slot(self, execution_id: str, box: BoxRef, tenant: Tenant) -> None:
        if execution_id in self._forgotten:
            raise InvalidStateError(f"execution {execution_id} ended long ago; it is not started again")
        if self._counts[box.box_id] >= MAX_PER_BOX:
            raise ResourceExhaustedError(f"box {box.box_id} runs {MAX_PER_BOX} executions already; try again later")
        refuse_full_disk(self._spool)
        self.slots.take(tenant)
