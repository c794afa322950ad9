"""Commands with one caller, who waits for the end: `run` keeps nothing of them, `follow` keeps them as executions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..commands import STDERR, STDOUT, ExecSpec
from ..runtime import BoxRef
from .execution import Ended, Execution, ExecutionState
from .output_log import Chunk, Dropped, Gap
from .registry import Executions

UNREAD = "earlier output was dropped: nobody read it in time"


@dataclass(frozen=True, slots=True)
class Started:
    """The command runs. It is the first event."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Output of a stream was dropped, because it was longer than asked for."""

    stream: int
    byte_count: int


@dataclass(slots=True)
class Result:
    """What became of a command. `output` and `dropped` (bytes behind the limit) are by stream, `loss` is the reason why
    other output is missing."""

    ended: ExecutionState | None = None
    output: dict[int, bytearray] = field(default_factory=lambda: {STDOUT: bytearray(), STDERR: bytearray()})
    dropped: dict[int, int] = field(default_factory=lambda: {STDOUT: 0, STDERR: 0})
    loss: str = ""


Event = Started | Chunk | Dropped | Gap | Cut | Ended
OnEnd = Callable[[Callable[[], None]], bool]  # as in `Executions.read_output`


def run(
    executions: Executions,
    execution_id: str,
    box: BoxRef,
    spec: ExecSpec,
    timeout: float,
    stdin: bytes,
    on_end: OnEnd,
) -> Iterator[Event]:
    """Run a command in the caller's thread: yield its output as it comes, and `Ended` last.

    `timeout` and what is raised are as in `Executions.start`. The command is killed when its caller goes away or closes
    the iterator. It is held back while the caller takes no output.
    """
    executions.start(execution_id, box, spec, timeout, stdin=stdin, owned=True)
    execution = executions.find(box.box_id, execution_id)
    is_whole = False
    try:
        if on_end(lambda: _leave(executions, execution)):
            yield Started()
            for stream, data in execution.pieces():
                yield Chunk(0, stream, data)
            is_whole = True
    finally:
        if not is_whole:
            executions.abandon(execution)
            for _ in execution.pieces():
                pass
        execution.collect()
        executions.dismiss(execution)
    yield Ended(0, execution.state)


def follow(
    executions: Executions,
    execution_id: str,
    box: BoxRef,
    spec: ExecSpec,
    timeout: float,
    stdin: bytes,
    on_end: OnEnd,
) -> Iterator[Event]:
    """Start a command, or find it again, and yield its output from the first byte. It outlives its caller."""
    executions.start(execution_id, box, spec, timeout, stdin=stdin)
    yield Started()
    yield from executions.read_output(box.box_id, execution_id, 0, on_end)


def _leave(executions: Executions, execution: Execution) -> None:
    """Kill the command, if it runs, in a thread: the caller's thread waits for it, and this one is gRPC's own."""
    if not execution.is_over:
        threading.Thread(target=executions.abandon, args=(execution,), name="abandon", daemon=True).start()


def head(events: Iterator[Event], limit: int) -> Iterator[Event]:
    """Pass on the first `limit` bytes of each stream, 0: all bytes, and tell of the others with a `Cut` before the
    end."""
    left, dropped = {STDOUT: limit, STDERR: limit}, {STDOUT: 0, STDERR: 0}
    for event in events:
        if isinstance(event, Ended):
            yield from (Cut(stream, count) for stream, count in dropped.items() if count)
        if limit and isinstance(event, Chunk):
            data = event.data[: left[event.stream]]
            left[event.stream] -= len(data)
            dropped[event.stream] += len(event.data) - len(data)
            event = Chunk(event.position, event.stream, data)
        if not isinstance(event, Chunk) or event.data:
            yield event


def collect(events: Iterator[Event], limit: int) -> Result:
    """Wait for the end, and keep the first `limit` bytes of each stream; 0: all bytes."""
    result = Result()
    for event in head(events, limit):
        match event:
            case Chunk():
                result.output[event.stream] += event.data
            case Cut():
                result.dropped[event.stream] += event.byte_count
            case Gap():
                result.loss = event.reason
            case Dropped():
                result.loss = UNREAD
            case Ended():
                result.ended = event.state
    return result
