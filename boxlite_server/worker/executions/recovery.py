"""Finding again what a former life of this process has started."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InvalidStateError, NotFoundError
from ..commands import GONE_EXIT_CODE, Process
from ..runtime import BoxRef, BoxRuntime, BoxStatus
from .execution import ExecutionState, ExecutionStatus
from .journal import Record

GAP = "the worker was restarted: output since the last that was received is lost"


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of an execution that cannot be found again."""

    exit_code: int
    reason: str


def find_again(runtime: BoxRuntime, record: Record) -> Process | Remains:
    """The command of the record, or how it ended. Raises `EngineError` while that cannot be told."""
    box = BoxRef(record.box_id, record.generation)
    try:
        if not record.is_main:
            return runtime.readopt(box, record.handle)
        state = runtime.inspect(box)
        if state.status in (BoxStatus.STOPPED, BoxStatus.FAILED):
            code = GONE_EXIT_CODE if state.exit_code is None else state.exit_code
            return Remains(code, "the box stopped while its worker was restarted; what it said is in its log")
        return runtime.attach_main(box)
    except NotFoundError:
        return Remains(GONE_EXIT_CODE, _why_gone(runtime, box))
    except InvalidStateError as exc:
        return Remains(GONE_EXIT_CODE, f"the exit code is lost: {exc.message}")


def _why_gone(runtime: BoxRuntime, box: BoxRef) -> str:
    try:
        runtime.inspect(box)
    except (NotFoundError, InvalidStateError):
        return "the exit code is lost: the box was removed while its worker was restarted"
    return "the exit code is lost: the container engine was restarted, or has forgotten the command"


def remembered(record: Record) -> ExecutionState:
    """The end of an execution that ended in a former life."""
    return ExecutionState(
        record.execution_id,
        ExecutionStatus(record.status),
        record.started_at_ms,
        record.exit_code,
        record.duration_ms,
        record.error_message,
    )


class Bygone:
    """In place of the process of an execution that is over."""

    handle = lost = ""

    def read(self) -> tuple[int, bytes] | None:
        return None

    def wait(self) -> int:
        return GONE_EXIT_CODE

    def write(self, data: bytes, timeout: float) -> int:
        raise InvalidStateError("the command has ended")

    def close_input(self) -> None: ...

    def signal(self, number: int) -> None: ...

    def kill(self) -> None: ...

    def resize(self, cols: int, rows: int) -> None: ...

    def close(self) -> None: ...
