"""One command in a box, while it runs and for a while after its end."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain

from ...errors import BoxliteError, InvalidStateError
from ...metrics import worker as metrics
from ..commands import GONE_EXIT_CODE, Durable, Process
from ..runtime import BoxRef
from .output_log import Chunk, Dropped, Gap, OutputLog
from .tally import Tally

FEED_PATIENCE = 5.0  # seconds of one attempt to write input; the next one follows
# A command that ends so soon is answered with its whole output. Whoever waits for a longer one loses no time.
BRIEF_SECONDS = 0.003
BRIEF_BYTES = 64 * 1024
# After a small piece of output that follows another at once, output gathers for a moment: each read costs much.
SMALL_BYTES = 32 * 1024
GATHER_SECONDS = 0.001
LOST_INPUT = "the command was killed, because a part of its input was lost on the way"
RESTARTED = "the command was killed, because its worker was restarted while a request waited for it or fed it"

log = logging.getLogger(__name__)


class ExecutionStatus(StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    KILLED = "killed"  # by `Executions.kill`
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True)
class Delivered:
    """How much output has reached the attached client: `total` bytes, of which `at_position` lie before
    `position` in the log.

    A position alone is not enough: the first bytes of a character that is not complete yet are sent later than
    their place in the log says.
    """

    total: int = 0
    position: int = 0
    at_position: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """Who feeds a command: a name, and how much input the command had been handed before the source's first byte."""

    name: str = ""
    base: int = 0


@dataclass(frozen=True, slots=True)
class ExecutionState:
    """`exit_code` and `duration_ms` are set once the execution is over. `started_at_ms` is Unix time."""

    execution_id: str
    status: ExecutionStatus
    started_at_ms: int
    exit_code: int | None = None
    duration_ms: int | None = None
    error_message: str = ""
    delivered: Delivered = Delivered()
    counts_input: bool = False  # whether a write by a source may be repeated, also in the next worker process


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of an execution's output."""

    position: int
    state: ExecutionState


Event = Chunk | Dropped | Gap | Ended


class EndedProcess:
    """Stands in for the process of an execution that is over. It holds nothing."""

    handle = lost = ""
    tty = False
    memory_limit_hit = 0

    def read(self) -> tuple[int, bytes] | None:
        return None

    def wait(self) -> int:
        return GONE_EXIT_CODE

    def write(self, data: bytes, timeout: float) -> int:
        raise InvalidStateError("the command has ended")

    def close_input(self, timeout: float) -> bool:
        return True

    def signal(self, number: int) -> None:
        raise InvalidStateError("the command has ended")

    def kill(self) -> None: ...

    def resize(self, cols: int, rows: int) -> None:
        raise InvalidStateError("the command has ended")

    def close(self) -> None: ...


class _Pace:
    """Lets output gather for a moment where small pieces follow each other."""

    def __init__(self) -> None:
        self._read_at = -math.inf

    def rest(self, size: int) -> None:
        """Sleep, if need be, after a piece of `size` bytes."""
        if size < SMALL_BYTES and time.monotonic() - self._read_at < GATHER_SECONDS:
            time.sleep(GATHER_SECONDS)
        self._read_at = time.monotonic()


class Execution:
    """One command, its output and its end. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        execution_id: str,
        box: BoxRef,
        process: Process,
        output: OutputLog,
        clock: Callable[[], float],
        tally: Tally,
        *,
        is_main: bool,
        hangup: float = 0,
        started_at_ms: int,
        gap: str | None = None,
        source: Source = Source(),
        on_source: Callable[[Source], None] = lambda source: None,
        tenant: str = "",
        command: tuple[tuple[str, ...], bool] = ((), False),
    ) -> None:
        """`started_at_ms` is Unix time. `gap` is None for an execution that this process started. For one that a
        former process started, it is the reason why earlier output is lost, or empty if none is lost. `source`: who has
        fed the command last; `on_source` is called with another one before the command is handed its first byte."""
        self.execution_id = execution_id
        self.box = box
        self.is_main = is_main
        self.tenant = tenant  # the prefix on whose behalf the command was started
        self.command, self.is_command_cut = command  # as in `Record`
        self.hangup = hangup  # seconds from the last reader's leaving to SIGHUP; 0: never
        self.output = output
        self.has_run = not is_main  # clients may attach to a main command before it starts
        self._process = process
        self._clock = clock
        self._tally = tally
        self.started_at_ms = started_at_ms
        self._started = clock() - max(time.time() - started_at_ms / 1000, 0.0)
        self.gap = gap or ""
        self.is_inherited = gap is not None
        self._lock = threading.Lock()
        self._input = threading.Lock()
        self._input_closed = False
        self._source = source
        self._on_source = on_source
        self._counts_input = isinstance(process, Durable)
        self.in_message = False  # whether the end of a message is still to be written
        self._ending: ExecutionStatus | None = None
        self._error = ""
        self._final: ExecutionState | None = None
        self._delivered = Delivered()
        self._readers = 0
        self._visits = 0

    @property
    def state(self) -> ExecutionState:
        with self._lock:
            running = ExecutionState(self.execution_id, ExecutionStatus.RUNNING, self.started_at_ms)
            state = self._final or replace(running, counts_input=self._counts_input)
            return replace(state, delivered=self._delivered)

    @property
    def is_over(self) -> bool:
        return self._final is not None

    # ---- for clients ----

    def write(
        self, data: bytes, close: bool, timeout: float, *, more: bool = False, source: str = "", offset: int = 0
    ) -> tuple[int, bool]:
        """Write input to the command for at most `timeout` seconds. Returns the number of bytes taken, and whether
        there was no time left to do what `close` asks for.

        `close` closes the input once all of `data` is taken. `more`: the data belongs to a message that goes on.
        `source`: who writes, with `offset` bytes before `data`; bytes of it that the command was handed by an earlier
        call count as taken, and are not handed over again. Raises `InvalidStateError` for data to a command that has
        ended or whose input is closed.
        """
        deadline = self._clock() + timeout
        if not self._input.acquire(timeout=max(timeout, 0)):
            return 0, close
        try:
            if self.is_over or self._input_closed:
                if data:
                    what = "has ended" if self.is_over else "has had the end of its input"
                    raise InvalidStateError(f"execution {self.execution_id} {what}")
                return 0, False
            taken = self._repeated(source, offset, len(data))
            if rest := data[taken:]:
                new = self._process.write(rest, max(deadline - self._clock(), 0.0))
                self._tally.add_input(new)
                taken += new
            self.in_message = more or taken < len(data)
            if close and taken == len(data):
                self._input_closed = self._process.close_input(max(deadline - self._clock(), 0.0))
            return taken, close and not self._input_closed
        finally:
            self._input.release()

    def _repeated(self, source: str, offset: int, size: int) -> int:
        """How many of the `size` bytes behind `offset` the command has been handed already."""
        process = self._process
        if not source or not size or not isinstance(process, Durable):
            return 0
        if source != self._source.name:
            self._source = Source(source, process.taken - offset)
            self._on_source(self._source)
        return min(max(process.taken - self._source.base - offset, 0), size)

    def feed(self, data: bytes, on_done: Callable[[], None] = lambda: None) -> None:
        """Write all of the input and end it, then call `on_done`. What the command does not take at once is written
        by a thread, for as long as the command runs."""
        rest = self._feed_once(data, 0.0)
        if rest is None:
            on_done()
            return

        def go_on(rest: bytes | None = rest) -> None:
            while rest is not None:
                rest = self._feed_once(rest, FEED_PATIENCE)
            on_done()

        threading.Thread(target=go_on, name=f"input {self.execution_id}", daemon=True).start()

    def _feed_once(self, data: bytes, timeout: float) -> bytes | None:
        """Write for at most `timeout` seconds. Returns what is left; None once the input is ended, or its command."""
        try:
            taken, still_open = self.write(data, True, timeout)
        except BoxliteError:
            return None
        return data[taken:] if taken < len(data) or still_open else None

    def lose_input(self, reason: str = LOST_INPUT) -> bool:
        """Note that input was lost, and why. Returns whether the command has to be killed, since it would take what
        it got for the whole; on a terminal, a user sees what has arrived."""
        if not self._process.tty:
            self._error = self._error or reason
        return not self._process.tty

    def signal(self, number: int) -> None:
        self._refuse_when_over()
        self._process.signal(number)

    def resize(self, cols: int, rows: int) -> None:
        self._refuse_when_over()
        self._process.resize(cols, rows)

    def confirm(self, delivered: Delivered) -> None:
        """Note how much output the attached client has received. A late call that reports less is ignored."""
        with self._lock:
            if delivered.total > self._delivered.total:
                self._delivered = delivered

    @contextmanager
    def visit(self, on_deserted: Callable[[int], None]) -> Iterator[None]:
        """Count as a reader for the duration of the `with` block.

        When the last reader leaves, `on_deserted` is called with the number of visits so far.
        """
        with self._lock:
            self._readers += 1
            self._visits += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                deserted, visits = self._readers == 0, self._visits
            if deserted:
                on_deserted(visits)

    def read(
        self, position: int, on_end: Callable[[Callable[[], None]], bool], on_deserted: Callable[[int], None]
    ) -> Iterator[list[Event]]:
        """See `Executions.read_batches`; `on_deserted` is as in `visit`."""
        if self.is_inherited and not self.output.holds(position):
            position = 0  # the position belongs to the log of a former process
        with self.visit(on_deserted), self.output.reader(position) as reader:
            if not on_end(reader.close):
                return
            events: list[Event] = [Gap(0, self.gap)] if self.gap and position == 0 else []
            events += reader.read(timeout=0)
            while not reader.is_done:
                yield events
                events = [*reader.read()]
                if reader.left:
                    return
            yield [*events, Ended(reader.position, self.state)]

    def brief_events(self) -> list[Event]:
        """All output and `Ended`, if the command ends within `BRIEF_SECONDS`; nothing if it runs longer, if it printed
        more than `BRIEF_BYTES`, or if a client has had some of its output already."""
        size = self.output.size_at_end(BRIEF_SECONDS)
        if size is None or size > BRIEF_BYTES or self.state.delivered.total:
            return []
        return [*chain.from_iterable(self.read(0, lambda callback: True, lambda visits: None))]

    def hang_up(self, visits: int) -> None:
        """Send SIGHUP, unless there is a reader now or there were more than `visits` visits."""
        with self._lock:
            if self._readers or self._visits != visits or self._final is not None:
                return
        log.info("execution %s: nobody came back to its terminal; hanging up", self.execution_id)
        self._process.signal(signal.SIGHUP)

    def end(self, status: ExecutionStatus) -> bool:
        """Kill the command; its status becomes `status`, unless it ends by itself first.

        Returns False if the execution is already over. Raises what `Process.kill` raises; the status is then as it
        was.
        """
        with self._lock:
            if self._final is not None:
                return False
            former = self._ending
            self._ending = former or status
        try:
            self._process.kill()
        except BaseException:
            with self._lock:
                self._ending = former
            raise
        return True

    def give_up(self, reason: str = "", status: ExecutionStatus | None = None) -> None:
        """End the execution without waiting any longer for the command, its output or slow readers.

        `reason` becomes the error message, and `status` the status, unless the execution has them already.
        """
        with self._lock:
            self._error = self._error or reason
            self._ending = self._ending or status
        self.output.release()
        self._process.close()

    # ---- the pump ----

    def run(self, on_output: Callable[[], None], on_end: Callable[[], None]) -> None:
        """Move output to the log until it ends, then collect the exit code. This is the body of a thread.

        `on_output` is called when there is output, once.
        """
        was_empty = self.output.is_empty
        try:
            for _ in self._moves():
                if was_empty:
                    on_output()
                    was_empty = False
        except Exception as exc:
            self._lose_output(exc)
        self.collect(on_end)

    def _moves(self) -> Iterator[None]:
        """Move the output to the log, and yield after each piece."""
        process = self._process
        if not isinstance(process, Durable):
            for piece in self.pieces():
                self.output.append(*piece)
                yield
            return
        pace = _Pace()
        while (size := process.move(self.output)) is not None:
            self._note_output(size)
            yield
            pace.rest(size)

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield the output as it comes, as (STDOUT or STDERR, data), until it ends."""
        pace = _Pace()
        try:
            while (piece := self._process.read()) is not None:
                self._note_output(len(piece[1]))
                yield piece
                pace.rest(len(piece[1]))
        except Exception as exc:
            self._lose_output(exc)

    def _note_output(self, size: int) -> None:
        self.has_run = True
        self._tally.add_output(size)

    def _lose_output(self, reason: Exception) -> None:
        """Kill the command: it would block for ever on output that nobody reads."""
        log.error("output of execution %s is lost", self.execution_id, exc_info=reason)
        self._error = f"output was lost: {reason}"
        try:
            self._process.kill()
        except BoxliteError as failure:
            log.warning("cannot kill execution %s: %s", self.execution_id, failure)

    def collect(self, on_end: Callable[[], None] = lambda: None) -> None:
        """Wait for the exit code and set the final state. Follows the end of the output.

        `on_end` is called when the final state is known. Only after that the command is let go of, so that the next
        worker process finds the exit code if this one is killed before it has noted the end.
        """
        process = self._process
        try:
            self._finish(self._exit_code())
            on_end()
        finally:
            process.close()
            self.output.close()

    def _exit_code(self) -> int:
        """Wait for the exit code, and find the reason for what is lost or odd about the end."""
        limit = 0
        try:
            exit_code = self._process.wait()
            limit = self._process.memory_limit_hit if exit_code else 0
        except Exception as exc:
            log.exception("exit code of execution %s is lost", self.execution_id)
            self._error = self._error or f"exit code was lost: {exc}"
            exit_code = GONE_EXIT_CODE
        self._error = self._error or self._process.lost or self.gap
        if limit and not self._error:
            self._error = f"out of memory: the box hit its memory limit of {limit} MiB, and the kernel killed a process"
        return exit_code

    def _finish(self, exit_code: int) -> None:
        if not self.is_main:
            self._tally.ended()
        with self._lock:
            # A kill never gives exit code 0: the command ended before it.
            killed = self._ending if exit_code else None
            message = self._error
            if not message and killed is ExecutionStatus.TIMED_OUT:
                message = "the command ran into its time limit and was killed"
            self._final = ExecutionState(
                self.execution_id,
                killed or ExecutionStatus.COMPLETED,
                self.started_at_ms,
                exit_code,
                int((self._clock() - self._started) * 1000),
                message,
            )
            self._process = EndedProcess()  # so that the command's connection goes
        if not self.is_main:
            metrics.COMMAND_SECONDS[self._final.status.value].observe(self._clock() - self._started)

    def conclude(self, final: ExecutionState) -> None:
        """Set the final state of an execution that is over already. Takes the place of `run`."""
        self._process.close()
        with self._lock:
            self._final = final
        self.output.close()

    def _refuse_when_over(self) -> None:
        if self.is_over:
            raise InvalidStateError(f"execution {self.execution_id} has ended")
