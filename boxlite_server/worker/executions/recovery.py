"""Finds the executions that a former process of this worker started, and tells how the others ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...errors import InvalidStateError, NotFoundError
from ...rpc import Tenant
from ..commands import GONE_EXIT_CODE, Durable, Process
from ..runtime import BoxRef, BoxRuntime, BoxStatus
from ..shares import Room, Shares
from .execution import Delivered, Execution, ExecutionState, ExecutionStatus
from .journal import Journal, Record, now_ms
from .output_log import OutputLog

GAP = "the worker was restarted: output since the last that was received is lost"

log = logging.getLogger(__name__)


class Kept(NamedTuple):
    """What is left of the output of an execution: its log, why other output is lost (empty: none is lost), and how far
    the attached client has been served."""

    output: OutputLog
    gap: str
    delivered: Delivered


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an execution of a former process ended. `ended_at_ms` is Unix time."""

    state: ExecutionState
    ended_at_ms: int


class FormerExecutions:
    """The executions that a former process started and that have not been found again yet.

    `take_over` enters an execution into the registry: with its process, or with its outcome if it is over.
    """

    def __init__(
        self,
        runtime: BoxRuntime,
        journal: Journal,
        take_over: Callable[[Record, Process | Outcome], Execution],
    ) -> None:
        self._runtime = runtime
        self._journal = journal
        self._take_over = take_over
        self._missing: dict[str, Record] = {}  # by execution id
        self._finding = threading.Lock()

    def load(self, keep_finished: float) -> None:
        """Read the journal and take over the executions that have ended, the oldest end first.

        Executions that ended `keep_finished` seconds ago or earlier are removed from the journal. The others
        are left to `find`.
        """
        for record in sorted(self._journal.load(), key=lambda record: record.ended_at_ms):
            if not record.ended_at_ms:
                self._missing[record.execution_id] = record
            elif now_ms() - record.ended_at_ms >= keep_finished * 1000:
                self._journal.remove(record.execution_id)
            else:
                self._take_over(record, _recorded_outcome(record))

    def find(self, wanted: Callable[[Record], bool] = lambda record: True) -> None:
        """Take over the missing executions whose record is `wanted`.

        Raises `EngineError` while the engine does not answer; what was not found by then stays missing.
        """
        if not any(map(wanted, list(self._missing.values()))):
            return
        with self._finding:
            for record in filter(wanted, list(self._missing.values())):
                execution = self._take_over(record, _find_again(self._runtime, record))
                log.info("execution %s of a former process: %s", record.execution_id, execution.state.status)
                del self._missing[record.execution_id]


class Logs:
    """Logs in `directory`, each under the name of its execution: new ones, and those that former processes kept.
    `budget`: of all logs, in bytes; None: there is none."""

    def __init__(self, directory: Path, capacity: int, budget: int | None) -> None:
        self._directory = directory
        self._capacity = capacity
        what = "keeps as much output as its disk may take"
        self.budget = Shares(budget, what, "spooled_bytes") if budget else None

    def new(self, execution_id: str, tenant: Tenant, begin: int = 0) -> OutputLog:
        """An empty log."""
        return OutputLog(self._directory, self._capacity, begin, execution_id, self._room(tenant))

    def of_running(self, record: Record, process: Process) -> Kept:
        """The log to go on with."""
        if record.is_main:  # its output is read again from its beginning
            return Kept(self._fresh(record, late=True), "", Delivered(record.delivered_bytes))
        if not isinstance(process, Durable) or not process.is_whole:
            return self._nothing(record)
        return self._found(record)

    def of_ended(self, record: Record) -> Kept:
        """The log to be read. What a command said between the end of the former process and its own is lost."""
        return self._found(record) if record.ended_at_ms else self._nothing(record)

    def _found(self, record: Record) -> Kept:
        has_ended = bool(record.ended_at_ms)
        room = self._room(Tenant(record.tenant))
        log = OutputLog.recovered(self._directory, record.execution_id, self._capacity, has_ended=has_ended, room=room)
        if log is not None:
            is_served = log.holds(record.delivered_position)
            is_cut = log.begin and not record.is_main
            return Kept(log, GAP if is_cut else "", record.delivered if is_served else Delivered())
        if record.has_output:
            return self._nothing(record)
        return Kept(self._fresh(record), "", Delivered())

    def _nothing(self, record: Record) -> Kept:
        return Kept(self._fresh(record, late=True), GAP, Delivered())

    def _fresh(self, record: Record, *, late: bool = False) -> OutputLog:
        """An empty log. `late`: its positions are none of the former log."""
        log = self.new(record.execution_id, Tenant(record.tenant), now_ms() << 20 if late else 0)
        log.clear()
        return log

    def _room(self, tenant: Tenant) -> Room | None:
        return Room(self.budget, tenant) if self.budget else None


def _recorded_outcome(record: Record) -> Outcome:
    """The outcome of an execution that the former process saw end."""
    state = ExecutionState(
        record.execution_id,
        ExecutionStatus(record.status),
        record.started_at_ms,
        record.exit_code,
        record.duration_ms,
        record.error_message,
    )
    return Outcome(state, record.ended_at_ms)


def _find_again(runtime: BoxRuntime, record: Record) -> Process | Outcome:
    """The command of the record, or how it ended. Raises `EngineError` while the engine does not answer."""
    box = BoxRef(record.box_id, record.generation)
    try:
        if not record.is_main:
            return runtime.readopt(box, record.handle)
        state = runtime.inspect(box)
        if state.status in (BoxStatus.STOPPED, BoxStatus.FAILED):
            code = GONE_EXIT_CODE if state.exit_code is None else state.exit_code
            return _ended_unseen(
                record, code, "the box stopped while its worker was restarted; what it said is in its log"
            )
        return runtime.attach_main(box)
    except NotFoundError:
        return _ended_unseen(record, GONE_EXIT_CODE, _why_gone(runtime, box))
    except InvalidStateError as exc:
        return _ended_unseen(record, GONE_EXIT_CODE, f"the exit code is lost: {exc.message}")


def _ended_unseen(record: Record, exit_code: int, reason: str) -> Outcome:
    """The outcome of an execution that ended while no worker process watched; it counts as ended now."""
    ended_at_ms = now_ms()
    state = ExecutionState(
        record.execution_id,
        ExecutionStatus.COMPLETED,
        record.started_at_ms,
        exit_code,
        ended_at_ms - record.started_at_ms,
        reason,
    )
    return Outcome(state, ended_at_ms)


def _why_gone(runtime: BoxRuntime, box: BoxRef) -> str:
    try:
        runtime.inspect(box)
    except (NotFoundError, InvalidStateError):
        return "the exit code is lost: the box was removed while its worker was restarted"
    return "the exit code is lost: the container engine was restarted, or has forgotten the command"
