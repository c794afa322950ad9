"""What becomes of a terminal whose readers leave, and what is remembered of them."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
from support.clock import Clock
from support.sites import Site

from boxlite_server import ids
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.executions.execution import Delivered, Ended, Execution
from boxlite_server.worker.executions.registry import Executions
from boxlite_server.worker.runtime import BoxRef

GRACE = 300.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def executions(site: Site, tmp_path: Path, clock: Clock) -> Executions:
    return Executions(site.runtime, tmp_path, clock)


def shell(executions: Executions, box: BoxRef, script: str, **options: object) -> Execution:
    spec = ExecSpec(("sh", "-c", script), tty=True)
    options = {"hangup": GRACE, **options}
    state = executions.start(ids.execution_id(), box, spec, **options)  # type: ignore[arg-type]
    return executions.find(box.box_id, state.execution_id)


def look_in(executions: Executions, execution: Execution, text: bytes) -> None:
    """Read until the text has come, and leave."""
    stream, seen = executions.read_output(execution.box.box_id, execution.execution_id), b""
    while text not in seen:
        seen += next(stream).data  # type: ignore[union-attr]
    stream.close()  # type: ignore[attr-defined]


def ring(executions: Executions) -> None:
    """Ring the alarms that are due, and wait until they have been handled."""
    executions.tick()
    for thread in threading.enumerate():
        if thread.name == "alarm":
            thread.join(20)


def exit_code(executions: Executions, execution: Execution) -> int | None:
    """The exit code of a command that ends; reads its output to the end."""
    *_, end = executions.read_output(execution.box.box_id, execution.execution_id)
    assert isinstance(end, Ended)
    return end.state.exit_code


def test_hung_up_when_the_grace_is_over(executions: Executions, box: BoxRef, clock: Clock) -> None:
    execution = shell(executions, box, "trap 'exit 9' HUP; echo ready; while :; do sleep 0.02; done")
    look_in(executions, execution, b"ready")
    clock.now += GRACE - 1
    ring(executions)
    assert not execution.is_over
    clock.now += 1
    ring(executions)
    assert exit_code(executions, execution) == 9


def test_a_reader_that_comes_back_starts_the_grace_anew(executions: Executions, box: BoxRef, clock: Clock) -> None:
    execution = shell(executions, box, "trap 'echo hup' HUP; echo ready; while :; do sleep 0.02; done")
    look_in(executions, execution, b"ready")
    clock.now += GRACE - 1
    look_in(executions, execution, b"ready")
    clock.now += 2  # the first alarm rings
    ring(executions)
    stream = executions.read_output(box.box_id, execution.execution_id)
    next(stream)
    clock.now += 2 * GRACE  # and the second, while somebody reads
    ring(executions)
    execution.end(execution.state.status)
    assert b"hup" not in b"".join(getattr(event, "data", b"") for event in stream)


def test_the_last_of_several_readers_counts(executions: Executions, box: BoxRef, clock: Clock) -> None:
    execution = shell(executions, box, "trap 'exit 9' HUP; echo ready; while :; do sleep 0.02; done")
    first = executions.read_output(box.box_id, execution.execution_id)
    next(first)
    look_in(executions, execution, b"ready")
    clock.now += GRACE
    ring(executions)
    assert not execution.is_over
    first.close()  # type: ignore[attr-defined]
    clock.now += GRACE
    ring(executions)
    assert exit_code(executions, execution) == 9


def test_nobody_ever_comes(executions: Executions, box: BoxRef, clock: Clock) -> None:
    script = "trap 'exit 9' HUP; while :; do sleep 0.02; done"
    expected = shell(executions, box, script, expects_reader=True)
    detached = shell(executions, box, script)
    clock.now += GRACE
    ring(executions)
    assert exit_code(executions, expected) in (9, 128 + signal.SIGHUP)  # the signal may come before the trap is set
    assert not detached.is_over
    detached.signal(signal.SIGKILL)
    assert exit_code(executions, detached) == 137


def test_never_hung_up_without_a_grace(executions: Executions, box: BoxRef, clock: Clock) -> None:
    execution = shell(executions, box, "trap 'exit 9' HUP; echo ready; while :; do sleep 0.02; done", hangup=0)
    look_in(executions, execution, b"ready")
    clock.now += 1e9
    ring(executions)
    execution.signal(signal.SIGKILL)
    assert exit_code(executions, execution) == 137


def test_a_main_command_that_has_not_begun_is_left_alone(executions: Executions, site: Site, clock: Clock) -> None:
    box = site.new_box(cmd=("sh", "-c", "trap 'exit 9' HUP; echo ready; while :; do sleep 0.02; done"), tty=True)
    state = executions.attach_box(box, hangup=GRACE)
    execution = executions.find(box.box_id, state.execution_id)

    left = threading.Event()

    def leave_at_once(leave: object) -> bool:
        left.set()
        return False

    assert list(executions.read_output(box.box_id, execution.execution_id, 0, leave_at_once)) == []
    assert left.is_set()
    site.runtime.start(box)
    clock.now += GRACE
    ring(executions)
    look_in(executions, execution, b"ready")
    clock.now += GRACE
    ring(executions)
    assert exit_code(executions, execution) == 9
    site.runtime.remove(box, force=True)


def test_what_a_client_has_only_grows(executions: Executions, box: BoxRef) -> None:
    execution = shell(executions, box, "exit 3")
    assert execution.state.delivered == Delivered()
    execution.confirm(Delivered(10, 25, 8))
    execution.confirm(Delivered(9, 20, 4))
    assert execution.state.delivered == Delivered(10, 25, 8)
    assert exit_code(executions, execution) == 3
    execution.confirm(Delivered(11, 30, 11))
    assert executions.get(box.box_id, execution.execution_id).delivered == Delivered(11, 30, 11)
