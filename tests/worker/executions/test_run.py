"""Commands with one caller, on every runtime: their output, their end, and what becomes of them without the caller."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.sites import Site, abandon, in_thread

from boxlite_server import ids
from boxlite_server.errors import ExecutionError, InvalidStateError, NotFoundError
from boxlite_server.worker.commands import STDERR, STDOUT, ExecSpec
from boxlite_server.worker.executions.execution import Ended, ExecutionState, ExecutionStatus
from boxlite_server.worker.executions.journal import Journal
from boxlite_server.worker.executions.output_log import Chunk, Dropped, Gap
from boxlite_server.worker.executions.registry import Executions
from boxlite_server.worker.executions.run import Cut, Event, Started, collect, follow, head, run
from boxlite_server.worker.runtime import BoxRef


class Caller:
    """Waits for a command, until it goes away."""

    def __init__(self) -> None:
        self.leave: Callable[[], None] = lambda: None

    def on_end(self, callback: Callable[[], None]) -> bool:
        self.leave = callback
        return True


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    directory.mkdir()
    return directory


@pytest.fixture
def executions(site: Site, tmp_path: Path, journal: Path) -> Executions:
    return Executions(site.runtime, tmp_path, journal=Journal(journal))


def shell(
    executions: Executions,
    box: BoxRef,
    script: str,
    *,
    stdin: bytes = b"",
    timeout: float = 0,
    execution_id: str = "",
    caller: Caller | None = None,
    how: Callable[..., Iterator[Event]] = run,
) -> Iterator[Event]:
    spec, caller = ExecSpec(("sh", "-c", script)), caller or Caller()
    return how(executions, execution_id or ids.execution_id(), box, spec, timeout, stdin, caller.on_end)


def whole(events: Iterator[Event]) -> tuple[bytes, bytes, ExecutionState]:
    """Stdout, stderr and the end, which must come last and once, behind `Started`."""
    first, *others, last = events
    assert isinstance(first, Started)
    assert isinstance(last, Ended)
    output = {STDOUT: b"", STDERR: b""}
    for event in others:
        assert isinstance(event, Chunk)
        output[event.stream] += event.data
    return output[STDOUT], output[STDERR], last.state


@pytest.mark.parametrize("how", [run, follow])
def test_output_and_exit_code(executions: Executions, box: BoxRef, how: Callable[..., Iterator[Event]]) -> None:
    out, err, state = whole(shell(executions, box, "cat; echo err >&2; exit 3", stdin=b"in", how=how))
    assert (out, err, state.exit_code, state.status) == (b"in", b"err\n", 3, ExecutionStatus.COMPLETED)


@pytest.mark.parametrize("how", [run, follow])
def test_input_larger_than_any_pipe_goes_through_a_command_that_answers_while_it_reads(
    executions: Executions, box: BoxRef, how: Callable[..., Iterator[Event]]
) -> None:
    data = bytes(range(256)) * 8192
    assert whole(shell(executions, box, "cat", stdin=data, how=how))[0] == data


def test_a_command_that_does_not_read_its_input_ends_as_ever(executions: Executions, box: BoxRef) -> None:
    assert whole(shell(executions, box, "exit 4", stdin=b"x" * 2_000_000))[2].exit_code == 4


def test_nothing_is_left_of_a_run(executions: Executions, box: BoxRef, journal: Path, tmp_path: Path) -> None:
    execution_id, threads = ids.execution_id(), set(threading.enumerate())
    events = shell(executions, box, "echo up; exec cat", execution_id=execution_id, stdin=b"x")
    assert isinstance(next(events), Started)
    assert executions.running_in(box.box_id) == 1
    assert executions.get(box.box_id, execution_id).status is ExecutionStatus.RUNNING
    assert [record.execution_id for record in Journal(journal).load()] == [execution_id]
    assert set(threading.enumerate()) <= threads, "the command is run in the caller's thread"
    *_, last = events
    assert isinstance(last, Ended)
    assert executions.running_in(box.box_id) == 0
    assert Journal(journal).load() == []
    assert list(tmp_path.glob("output-*")) == []
    with pytest.raises(NotFoundError):
        executions.get(box.box_id, execution_id)
    with pytest.raises(InvalidStateError, match="ended long ago"):
        whole(shell(executions, box, "true", execution_id=execution_id))


def test_a_command_that_cannot_be_spawned_is_an_error_and_leaves_nothing(executions: Executions, box: BoxRef) -> None:
    for how in (run, follow):
        with pytest.raises(ExecutionError, match="not found"):
            next(how(executions, ids.execution_id(), box, ExecSpec(("nosuch",)), 0, b"", Caller().on_end))
    assert executions.live() == []


def test_a_time_limit_ends_a_run(executions: Executions, box: BoxRef) -> None:
    stopping = threading.Event()
    keeper = in_thread(lambda: executions.keep(stopping))
    out, _, state = whole(shell(executions, box, "echo begun; sleep 1000", timeout=0.5))
    assert (out, state.status, state.exit_code) == (b"begun\n", ExecutionStatus.TIMED_OUT, 137)
    stopping.set()
    executions.wake()
    keeper.join(60)


def test_a_kill_ends_a_run(executions: Executions, box: BoxRef) -> None:
    execution_id = ids.execution_id()
    events = shell(executions, box, "echo begun; sleep 1000", execution_id=execution_id)
    next(events)
    assert isinstance(next(events), Chunk)
    executions.kill(box.box_id, execution_id)
    (last,) = events
    assert isinstance(last, Ended)
    assert last.state.status is ExecutionStatus.KILLED


def is_gone(executions: Executions, box: BoxRef, mark: str) -> bool:
    """Whether no process of the box carries the mark in its arguments."""
    script = f"for each in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$each; done 2>/dev/null | grep -q '[s]leep {mark}'"
    return whole(shell(executions, box, script))[2].exit_code == 1


def test_a_caller_that_goes_away_takes_its_command_with_it(executions: Executions, box: BoxRef) -> None:
    caller = Caller()
    events = shell(executions, box, "setsid sleep 7171 & echo up; sleep 7171", caller=caller)
    next(events)
    assert isinstance(next(events), Chunk)
    assert not is_gone(executions, box, "7171")
    caller.leave()
    *_, last = events
    assert isinstance(last, Ended)
    assert last.state.exit_code == 137
    assert executions.live() == []
    assert is_gone(executions, box, "7171")


def test_a_caller_that_takes_no_more_output_takes_its_command_with_it(executions: Executions, box: BoxRef) -> None:
    events = shell(executions, box, "yes")
    next(events)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert executions.live() == []
    assert executions.running_in(box.box_id) == 0


def test_a_caller_that_was_gone_before_the_start_takes_its_command_with_it(executions: Executions, box: BoxRef) -> None:
    events = run(executions, ids.execution_id(), box, ExecSpec(("sleep", "1000")), 0, b"", lambda callback: False)
    (last,) = events
    assert isinstance(last, Ended)
    assert last.state.status is ExecutionStatus.KILLED


def test_a_followed_command_outlives_its_caller_and_is_joined(executions: Executions, box: BoxRef) -> None:
    execution_id = ids.execution_id()
    script = "echo begun; until test -e go-on; do sleep 0.02; done; rm go-on; cat"
    events = shell(executions, box, script, execution_id=execution_id, stdin=b"fed once", how=follow)
    next(events)
    assert isinstance(next(events), Chunk)
    events.close()  # type: ignore[attr-defined]
    assert executions.running_in(box.box_id) == 1
    again = shell(executions, box, script, execution_id=execution_id, stdin=b"fed once", how=follow)
    next(again)
    whole(shell(executions, box, "touch go-on"))
    output = b"".join(event.data for event in again if isinstance(event, Chunk))
    assert output == b"begun\nfed once"
    assert executions.get(box.box_id, execution_id).exit_code == 0


class TestAfterTheDeathOfTheWorker:
    def next_life(self, former: Executions, site: Site, tmp_path: Path, journal: Path) -> Executions:
        after = tmp_path / "journal-2"
        with former._journal._lock:
            shutil.copytree(journal, after)  # the threads of the dead worker write nothing any more
        for execution in former.live():
            abandon(execution._process)
        executions = Executions(site.runtime, tmp_path, journal=Journal(after))
        executions.recover()
        executions.tick()
        return executions

    def ended(self, executions: Executions, box: BoxRef, execution_id: str) -> ExecutionState:
        *_, last = executions.read_output(box.box_id, execution_id)
        assert isinstance(last, Ended)
        return last.state

    def test_the_command_of_a_request_that_died_with_it_is_killed(
        self, site: Site, executions: Executions, box: BoxRef, tmp_path: Path, journal: Path
    ) -> None:
        execution_id = ids.execution_id()
        events = shell(executions, box, "echo up; sleep 1000", execution_id=execution_id)
        next(events)
        assert isinstance(next(events), Chunk)
        state = self.ended(self.next_life(executions, site, tmp_path, journal), box, execution_id)
        assert (state.status, state.exit_code) == (ExecutionStatus.KILLED, 137)
        assert "restarted" in state.error_message

    def test_a_followed_command_goes_on(
        self, site: Site, executions: Executions, box: BoxRef, tmp_path: Path, journal: Path
    ) -> None:
        execution_id = ids.execution_id()
        script = "echo up; until test -e go-5; do sleep 0.02; done; rm go-5; exit 6"
        events = shell(executions, box, script, execution_id=execution_id, stdin=b"x", how=follow)
        next(events)
        assert isinstance(next(events), Chunk)
        executions = self.next_life(executions, site, tmp_path, journal)
        whole(shell(executions, box, "touch go-5"))
        assert self.ended(executions, box, execution_id).exit_code == 6

    def test_a_followed_command_that_lacks_input_is_killed(
        self, site: Site, executions: Executions, box: BoxRef, tmp_path: Path, journal: Path
    ) -> None:
        execution_id = ids.execution_id()
        data = b"x" * 3_000_000
        events = shell(executions, box, "echo up; sleep 1000", execution_id=execution_id, stdin=data, how=follow)
        next(events)
        assert isinstance(next(events), Chunk)
        state = self.ended(self.next_life(executions, site, tmp_path, journal), box, execution_id)
        assert (state.status, state.exit_code) == (ExecutionStatus.KILLED, 137)


# ---- What is made of the events ----


def test_the_head_of_each_stream_is_passed_and_the_rest_counted() -> None:
    ended = Ended(9, ExecutionState("x", ExecutionStatus.COMPLETED, 0, 0, 1))
    pieces = [Chunk(1, STDOUT, b"abc"), Chunk(2, STDERR, b"x"), Chunk(3, STDOUT, b"def"), Chunk(4, STDOUT, b"ghi")]
    assert list(head(iter([Started(), *pieces, ended]), 4)) == [
        Started(),
        *(Chunk(1, STDOUT, b"abc"), Chunk(2, STDERR, b"x"), Chunk(3, STDOUT, b"d")),
        *(Cut(STDOUT, 5), ended),
    ]
    assert list(head(iter([*pieces, ended]), 0)) == [*pieces, ended]


def test_the_whole_of_a_command_has_all_that_is_said_of_it() -> None:
    ended = Ended(9, ExecutionState("x", ExecutionStatus.COMPLETED, 0, 0, 1))
    pieces = [Chunk(1, STDOUT, b"abc"), Chunk(2, STDERR, b"x"), Chunk(3, STDOUT, b"def")]
    result = collect(iter([Started(), Gap(0, "a restart"), *pieces, ended]), 4)
    assert result.output == {STDOUT: b"abcd", STDERR: b"x"}
    assert result.dropped == {STDOUT: 2, STDERR: 0}
    assert (result.ended, result.loss) == (ended.state, "a restart")
    assert collect(iter([Started(), Dropped(5, 5), ended]), 4).loss.startswith("earlier output was dropped")
