from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.clock import Clock
from support.cluster import wait_until
from support.sites import ALL_RUNTIMES, Site, collect, in_thread

from boxlite_server import ids
from boxlite_server.errors import (
    BoxliteError,
    EngineError,
    ExecutionError,
    InvalidStateError,
    NotFoundError,
    ResourceExhaustedError,
    UnsupportedError,
)
from boxlite_server.worker.commands import ExecSpec, Process
from boxlite_server.worker.executions import output_log as output_log_module
from boxlite_server.worker.executions import registry as executions_module
from boxlite_server.worker.executions.execution import BRIEF_BYTES, Delivered, Ended
from boxlite_server.worker.executions.journal import Journal
from boxlite_server.worker.executions.output_log import Chunk, Dropped
from boxlite_server.worker.executions.registry import (
    KEEP_FINISHED,
    KILL_GRACE,
    MAX_KILLS,
    Executions,
    ExecutionState,
    ExecutionStatus,
)
from boxlite_server.worker.runtime import BoxRef

RUNTIMES = ALL_RUNTIMES


@pytest.fixture
def executions(site: Site, tmp_path: Path) -> Executions:
    return Executions(site.runtime, tmp_path)


def start(executions: Executions, box: BoxRef, *command: str, timeout: float = 0) -> str:
    execution_id = ids.execution_id()
    state = executions.start(execution_id, box, ExecSpec(command), timeout)
    assert state.execution_id == execution_id
    return execution_id


def shell(executions: Executions, box: BoxRef, script: str, timeout: float = 0) -> str:
    return start(executions, box, "sh", "-c", script, timeout=timeout)


def read(
    executions: Executions, box: BoxRef, execution_id: str, position: int = 0
) -> tuple[bytes, bytes, ExecutionState]:
    """Stdout, stderr and the end, which must come last and once."""
    output = {1: b"", 2: b""}
    events = list(executions.read_output(box.box_id, execution_id, position))
    for event in events[:-1]:
        assert isinstance(event, Chunk)
        output[event.stream] += event.data
    assert isinstance(events[-1], Ended)
    return output[1], output[2], events[-1].state


def test_a_late_reader_and_a_second_one_miss_nothing(executions: Executions, box: BoxRef) -> None:
    execution = shell(executions, box, "echo out; echo err >&2; exit 3")
    first = read(executions, box, execution)
    assert first[:2] == (b"out\n", b"err\n")
    assert (first[2].status, first[2].exit_code) == (ExecutionStatus.COMPLETED, 3)
    assert first[2].duration_ms is not None
    assert read(executions, box, execution) == first
    assert executions.get(box.box_id, execution) == first[2]


class TestBriefEvents:
    def test_a_command_that_has_ended_tells_all_its_output_and_its_end(
        self, executions: Executions, box: BoxRef
    ) -> None:
        execution_id = shell(executions, box, "echo out; echo err >&2; exit 3")
        read(executions, box, execution_id)
        *chunks, end = executions.find(box.box_id, execution_id).brief_events()
        told = {(chunk.stream, chunk.data) for chunk in chunks if isinstance(chunk, Chunk)}
        assert told == {(1, b"out\n"), (2, b"err\n")}
        assert isinstance(end, Ended)
        assert end.state.exit_code == 3

    def test_a_command_that_runs_tells_nothing(self, executions: Executions, box: BoxRef) -> None:
        execution_id = shell(executions, box, "echo out; read line")
        execution = executions.find(box.box_id, execution_id)
        assert execution.brief_events() == []
        execution.write(b"\n", False, 60)
        assert read(executions, box, execution_id)[0] == b"out\n"

    def test_much_output_is_left_to_a_reader(self, executions: Executions, box: BoxRef) -> None:
        execution_id = shell(executions, box, f"head -c {BRIEF_BYTES + 1} /dev/zero")
        read(executions, box, execution_id)
        assert executions.find(box.box_id, execution_id).brief_events() == []

    def test_output_that_a_client_has_had_is_not_told_again(self, executions: Executions, box: BoxRef) -> None:
        execution_id = shell(executions, box, "echo out")
        read(executions, box, execution_id)
        executions.confirm(box.box_id, execution_id, Delivered(2))
        assert executions.find(box.box_id, execution_id).brief_events() == []


def test_a_reader_goes_on_where_it_was(executions: Executions, box: BoxRef) -> None:
    execution = shell(executions, box, "echo one; read line; echo two")
    stream = executions.read_output(box.box_id, execution)
    event = next(stream)
    assert isinstance(event, Chunk)
    assert event.data == b"one\n"
    stream.close()  # type: ignore[attr-defined]
    executions.find(box.box_id, execution).write(b"\n", False, 60)
    assert read(executions, box, execution, event.position)[0] == b"two\n"


def test_ten_megabytes_arrive_whole_in_bounded_chunks(executions: Executions, box: BoxRef) -> None:
    execution = shell(executions, box, "head -c 10000000 /dev/zero; echo end >&2")
    events = list(executions.read_output(box.box_id, execution))
    chunks = [event for event in events if isinstance(event, Chunk)]
    assert sum(len(chunk.data) for chunk in chunks) == 10_000_004
    assert max(len(chunk.data) for chunk in chunks) <= 256 * 1024
    assert isinstance(events[-1], Ended)
    assert events[-1].state.exit_code == 0


def test_input_and_its_end(executions: Executions, box: BoxRef) -> None:
    execution = start(executions, box, "cat")
    found = executions.find(box.box_id, execution)
    assert found.write(b"hel", False, 60) == (3, False)
    assert found.write(b"lo", True, 60) == (2, False)
    assert read(executions, box, execution)[0] == b"hello"
    assert found.write(b"", True, 60) == (0, False)
    with pytest.raises(InvalidStateError):
        found.write(b"more", False, 60)


def test_input_after_its_end_is_refused(executions: Executions, box: BoxRef) -> None:
    execution = start(executions, box, "sleep", "1000")
    found = executions.find(box.box_id, execution)
    found.write(b"", True, 60)
    with pytest.raises(InvalidStateError, match="end of its input"):
        found.write(b"more", False, 60)
    executions.kill(box.box_id, execution)
    read(executions, box, execution)


def test_end_of_input_waits_for_all_of_the_data(executions: Executions, box: BoxRef) -> None:
    execution = start(executions, box, "sleep", "1000")
    found = executions.find(box.box_id, execution)
    assert found.write(b"x" * 3_000_000, True, 0.1)[0] < 3_000_000
    assert found.write(b"", False, 0.1) == (0, False)  # not refused: the input is open
    executions.kill(box.box_id, execution)
    read(executions, box, execution)


def test_kill(executions: Executions, box: BoxRef) -> None:
    execution = start(executions, box, "sleep", "1000")
    executions.kill(box.box_id, execution)
    state = read(executions, box, execution)[2]
    assert (state.status, state.exit_code) == (ExecutionStatus.KILLED, 137)
    executions.kill(box.box_id, execution)
    with pytest.raises(InvalidStateError):
        executions.find(box.box_id, execution).signal(15)


def test_a_signal_is_no_kill(executions: Executions, box: BoxRef) -> None:
    execution = start(executions, box, "sleep", "1000")
    executions.find(box.box_id, execution).signal(15)
    state = read(executions, box, execution)[2]
    assert (state.status, state.exit_code) == (ExecutionStatus.COMPLETED, 143)


def test_time_limit(executions: Executions, box: BoxRef) -> None:
    stopping = threading.Event()
    keeper = in_thread(lambda: executions.keep(stopping))
    execution = shell(executions, box, "echo begun; sleep 1000", timeout=0.3)
    out, _, state = read(executions, box, execution)
    assert (out, state.status, state.exit_code) == (b"begun\n", ExecutionStatus.TIMED_OUT, 137)
    assert "time limit" in state.error_message
    stopping.set()
    executions.wake()
    keeper.join(60)
    assert not keeper.is_alive()


def test_spawn_failure_says_so_and_frees_the_id(executions: Executions, box: BoxRef) -> None:
    execution = ids.execution_id()
    with pytest.raises(ExecutionError, match="not found"):
        executions.start(execution, box, ExecSpec(("no-such-command",)))
    with pytest.raises(NotFoundError):
        executions.get(box.box_id, execution)
    executions.start(execution, box, ExecSpec(("true",)))
    assert read(executions, box, execution)[2].exit_code == 0


def test_a_start_that_fails_leaves_nothing_for_the_next_worker(site: Site, box: BoxRef, tmp_path: Path) -> None:
    def fail_late(box: BoxRef, spec: ExecSpec, on_begun: Callable[[Process], object]) -> Process:
        process = spawn(box, ExecSpec(("true",)), on_begun)
        collect(process)
        raise ExecutionError("it could not be started")

    (tmp_path / "journal").mkdir()
    executions = Executions(site.runtime, tmp_path, journal=Journal(tmp_path / "journal"))
    spawn = site.runtime.spawn
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ExecutionError):
        patch.setattr(site.runtime, "spawn", fail_late)
        executions.start(ids.execution_id(), box, ExecSpec(("true",)))
    assert Journal(tmp_path / "journal").load() == []


def test_a_repeated_start_starts_nothing(executions: Executions, box: BoxRef) -> None:
    execution = ids.execution_id()
    spec = ExecSpec(("sh", "-c", "echo once"))
    threads = [in_thread(lambda: executions.start(execution, box, spec)) for _ in range(4)]
    for thread in threads:
        thread.join(60)
    assert read(executions, box, execution)[0] == b"once\n"
    assert executions.start(execution, box, spec).exit_code == 0
    with pytest.raises(InvalidStateError):
        executions.start(execution, BoxRef("another", 1), spec)


def test_an_unknown_execution(executions: Executions, box: BoxRef) -> None:
    execution = start(executions, box, "true")
    for box_id, execution_id in [(box.box_id, "unknown"), ("other", execution)]:
        with pytest.raises(NotFoundError, match="not found"):
            executions.get(box_id, execution_id)
        with pytest.raises(NotFoundError):
            list(executions.read_output(box_id, execution_id))


def test_finished_executions_are_forgotten_after_a_while(site: Site, box: BoxRef, tmp_path: Path) -> None:
    clock = Clock()
    executions = Executions(site.runtime, tmp_path, clock)
    execution = start(executions, box, "echo", "kept")
    assert read(executions, box, execution)[0] == b"kept\n"
    await_finished(executions)
    clock.now += KEEP_FINISHED - 1
    executions.tick()
    assert read(executions, box, execution)[0] == b"kept\n"
    late = executions.read_output(box.box_id, execution)
    assert isinstance(next(late), Chunk)
    clock.now += 1
    with pytest.raises(NotFoundError, match="5 minutes"):
        executions.get(box.box_id, execution)
    assert isinstance(next(late), Ended), "a reader that is in the midst of it reads to the end"


def await_finished(executions: Executions) -> None:
    """Until the threads of the ended executions have done their last step, and are idle."""
    wait_until(
        lambda: not any(thread.name.startswith("execution ") for thread in threading.enumerate()),
        "no execution has a thread any more",
    )


def test_a_reader_that_goes_away_is_let_go(executions: Executions, box: BoxRef) -> None:
    execution = start(executions, box, "sleep", "1000")
    leave: list[Callable[[], None]] = []
    registered, left = threading.Event(), threading.Event()

    def on_leaving(callback: Callable[[], None]) -> bool:
        leave.append(callback)
        registered.set()
        return True

    def reader() -> None:
        assert list(executions.read_output(box.box_id, execution, 0, on_leaving)) == []
        left.set()

    in_thread(reader)
    assert registered.wait(60)
    leave[0]()
    assert left.wait(60)
    assert list(executions.read_output(box.box_id, execution, 0, lambda leave: False)) == []
    executions.kill(box.box_id, execution)
    read(executions, box, execution)


def test_a_slow_reader_slows_the_command_and_loses_nothing(site: Site, box: BoxRef, tmp_path: Path) -> None:
    executions = Executions(site.runtime, tmp_path, log_capacity=300_000)
    execution = start(executions, box, "sh", "-c", "echo ready; read line; head -c 3000000 /dev/zero")
    stream = executions.read_output(box.box_id, execution)
    assert isinstance(next(stream), Chunk)
    executions.find(box.box_id, execution).write(b"\n", False, 60)
    assert not any(isinstance(event, Dropped) for event in stream)


def test_without_a_reader_the_command_goes_on_and_the_loss_is_told(site: Site, box: BoxRef, tmp_path: Path) -> None:
    executions = Executions(site.runtime, tmp_path, log_capacity=300_000)
    execution = start(executions, box, "head", "-c", "3000000", "/dev/zero")
    await_finished(executions)
    dropped, *chunks, ended = executions.read_output(box.box_id, execution)
    assert isinstance(dropped, Dropped)
    assert dropped.byte_count + sum(len(c.data) for c in chunks if isinstance(c, Chunk)) == 3_000_000
    assert isinstance(ended, Ended)


def test_stopping_the_box_ends_its_executions(site: Site, executions: Executions) -> None:
    box = site.running_box()
    execution = start(executions, box, "sleep", "1000")
    site.runtime.stop(box, 0)
    assert read(executions, box, execution)[2].exit_code == 137
    site.runtime.remove(box, force=True)


class TestMain:
    def test_one_execution_per_run(self, site: Site, executions: Executions) -> None:
        box = site.new_box(cmd=("sh", "-c", "echo hello; read line; exit 7"))
        first = executions.attach_box(box)
        assert first.status is ExecutionStatus.RUNNING
        site.runtime.start(box)
        assert executions.attach_box(box).execution_id == first.execution_id
        executions.find(box.box_id, first.execution_id).write(b"\n", False, 60)
        out, _, state = read(executions, box, first.execution_id)
        assert (out, state.exit_code, state.status) == (b"hello\n", 7, ExecutionStatus.COMPLETED)
        second = executions.attach_box(box)
        assert second.execution_id != first.execution_id
        executions.kill(box.box_id, second.execution_id)
        assert read(executions, box, second.execution_id)[2].status is ExecutionStatus.KILLED
        site.runtime.remove(box, force=True)

    def test_attaching_to_an_unknown_box(self, executions: Executions) -> None:
        for _ in range(2):
            with pytest.raises(NotFoundError):
                executions.attach_box(BoxRef(ids.new_id(), 1))


class StuckProcess:
    """A command of which the engine says nothing any more. Ends only when let go."""

    handle = lost = ""

    memory_limit_hit = 0

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.kills = 0
        self.kill_error: BoxliteError | None = None
        self.fails_again = False
        self.killed = threading.Event()

    def read(self) -> tuple[int, bytes] | None:
        self.closed.wait()
        return None

    def kill(self) -> None:
        self.kills += 1
        self.killed.set()
        if self.kill_error is not None:
            error, self.kill_error = self.kill_error, self.kill_error if self.fails_again else None
            raise error

    def wait(self) -> int:
        self.closed.wait()
        return 137

    def close(self) -> None:
        self.closed.set()

    def write(self, data: bytes, timeout: float) -> int:
        return 0

    def close_input(self, timeout: float) -> bool:
        return True

    def signal(self, number: int) -> None: ...

    def resize(self, cols: int, rows: int) -> None: ...


class TestLostInput:
    def test_a_command_that_lost_input_is_killed(self, executions: Executions, box: BoxRef) -> None:
        execution = shell(executions, box, "cat; exit 0")
        executions.lose_input(box.box_id, execution)
        _, _, ended = read(executions, box, execution)
        assert (ended.status, ended.exit_code) == (ExecutionStatus.KILLED, 137)
        assert "a part of its input was lost" in ended.error_message

    def test_a_command_that_has_ended_lost_nothing(self, executions: Executions, box: BoxRef) -> None:
        execution = shell(executions, box, "exit 3")
        ended = read(executions, box, execution)[2]
        executions.lose_input(box.box_id, execution)
        assert executions.get(box.box_id, execution) == ended

    def test_a_command_on_a_terminal_goes_on(self, executions: Executions, box: BoxRef) -> None:
        execution = ids.execution_id()
        executions.start(execution, box, ExecSpec(("sh", "-c", "cat; exit 4"), tty=True))
        executions.lose_input(box.box_id, execution)
        assert executions.find(box.box_id, execution).write(b"", True, 60) == (0, False)
        assert read(executions, box, execution)[2].exit_code == 4

    def test_a_message_is_under_way_until_its_end_is_taken(self, executions: Executions, box: BoxRef) -> None:
        found = executions.find(box.box_id, shell(executions, box, "sleep 1000"))
        for data, more, expected in ((b"a", True, True), (b"b", False, False), (b"x" * 3_000_000, False, True)):
            found.write(data, False, 0.1, more=more)
            assert found.in_message == expected
        executions.kill(box.box_id, found.execution_id)

    def test_a_command_without_input_gets_its_end(self, executions: Executions, box: BoxRef) -> None:
        execution = ids.execution_id()
        executions.start(execution, box, ExecSpec(("cat",)), stdin=b"")
        assert read(executions, box, execution)[2].exit_code == 0


class TestHostileEngine:
    @pytest.fixture
    def stuck(self, fake_site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[StuckProcess]:
        process = StuckProcess()

        def spawn(box: BoxRef, spec: ExecSpec, on_begun: Callable[[Process], object]) -> Process:
            on_begun(process)
            return process

        monkeypatch.setattr(fake_site.runtime, "spawn", spawn)
        monkeypatch.setattr(fake_site.runtime, "attach_main", lambda box: process)
        yield process
        process.close()

    def test_an_execution_without_end_of_output_ends_with_its_box(
        self, fake_site: Site, stuck: StuckProcess, tmp_path: Path
    ) -> None:
        executions = Executions(fake_site.runtime, tmp_path)
        box = fake_site.running_box()
        execution = start(executions, box, "anything")
        executions.sweep()
        executions.sweep()
        assert executions.get(box.box_id, execution).status is ExecutionStatus.RUNNING
        fake_site.runtime.remove(box, force=True)
        executions.sweep()
        assert not stuck.closed.is_set(), "one sweep is not enough"
        executions.sweep()
        assert read(executions, box, execution)[2].exit_code == 137

    def test_a_main_command_that_waits_for_its_start_is_left_alone(
        self, fake_site: Site, stuck: StuckProcess, tmp_path: Path
    ) -> None:
        executions = Executions(fake_site.runtime, tmp_path)
        box = fake_site.new_box()
        execution = executions.attach_box(box).execution_id
        for _ in range(3):
            executions.sweep()
        assert executions.get(box.box_id, execution).status is ExecutionStatus.RUNNING
        fake_site.runtime.start(box)
        executions.sweep()
        fake_site.runtime.stop(box, 0)
        executions.sweep()
        executions.sweep()
        assert read(executions, box, execution)[2].exit_code == 137
        fake_site.runtime.remove(box, force=True)

    def test_an_engine_that_is_down_ends_nothing(
        self, fake_site: Site, stuck: StuckProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        executions = Executions(fake_site.runtime, tmp_path)
        box = fake_site.running_box()
        execution = start(executions, box, "anything")
        monkeypatch.setattr(fake_site.runtime, "down", True)
        for _ in range(3):
            executions.sweep()
        assert executions.get(box.box_id, execution).status is ExecutionStatus.RUNNING
        monkeypatch.undo()
        fake_site.runtime.remove(box, force=True)

    def test_a_kill_that_shows_no_effect_is_given_up(
        self, fake_site: Site, stuck: StuckProcess, tmp_path: Path
    ) -> None:
        clock = Clock()
        executions = Executions(fake_site.runtime, tmp_path, clock)
        box = fake_site.running_box()
        execution = start(executions, box, "anything")
        executions.kill(box.box_id, execution)
        assert executions.get(box.box_id, execution).status is ExecutionStatus.RUNNING
        clock.now += KILL_GRACE
        executions.tick()
        state = read(executions, box, execution)[2]
        assert (state.status, state.exit_code) == (ExecutionStatus.KILLED, 137)
        fake_site.runtime.remove(box, force=True)

    def test_a_time_limit_is_enforced_again_when_the_engine_failed(
        self, fake_site: Site, stuck: StuckProcess, tmp_path: Path
    ) -> None:
        clock = Clock()
        executions = Executions(fake_site.runtime, tmp_path, clock)
        box = fake_site.running_box()
        stuck.kill_error = EngineError("down")
        execution = start(executions, box, "anything", timeout=2)
        executions.tick()
        assert stuck.kills == 0
        clock.now += 2
        executions.tick()
        assert stuck.killed.wait(60)
        stuck.killed.clear()
        while not stuck.killed.is_set():
            clock.now += 1
            executions.tick()
            stuck.killed.wait(0.01)
        stuck.close()
        assert read(executions, box, execution)[2].status is ExecutionStatus.TIMED_OUT
        fake_site.runtime.remove(box, force=True)

    @pytest.mark.parametrize("error", [EngineError("no luck"), UnsupportedError("no means")])
    def test_a_command_that_cannot_be_killed_ends_its_execution_all_the_same(
        self, fake_site: Site, stuck: StuckProcess, tmp_path: Path, error: BoxliteError
    ) -> None:
        clock = Clock()
        executions = Executions(fake_site.runtime, tmp_path, clock)
        box = fake_site.running_box()
        stuck.kill_error, stuck.fails_again = error, True
        execution = start(executions, box, "anything", timeout=2)
        while not executions.get(box.box_id, execution).exit_code:
            clock.now += 1
            executions.tick()
            stuck.killed.wait(0.01)
        state = executions.get(box.box_id, execution)
        assert (state.status, state.exit_code) == (ExecutionStatus.TIMED_OUT, 137)
        assert error.message in state.error_message
        assert stuck.kills == (1 if isinstance(error, UnsupportedError) else MAX_KILLS)
        fake_site.runtime.remove(box, force=True)

    def test_a_kill_that_fails_leaves_the_execution_as_it_is(
        self, fake_site: Site, stuck: StuckProcess, tmp_path: Path
    ) -> None:
        executions = Executions(fake_site.runtime, tmp_path)
        box = fake_site.running_box()
        stuck.kill_error = EngineError("down")
        execution = start(executions, box, "anything")
        with pytest.raises(EngineError):
            executions.kill(box.box_id, execution)
        stuck.close()
        assert read(executions, box, execution)[2].status is ExecutionStatus.COMPLETED
        fake_site.runtime.remove(box, force=True)

    def test_a_log_that_cannot_be_written_ends_the_command(self, fake_site: Site, tmp_path: Path) -> None:
        executions = Executions(fake_site.runtime, tmp_path / "missing")
        box = fake_site.running_box()
        execution = shell(executions, box, "echo lost; sleep 1000")
        state = read(executions, box, execution)[2]
        assert state.exit_code == 137
        assert "output was lost" in state.error_message
        fake_site.runtime.remove(box, force=True)


class TestBounds:
    def test_a_box_has_a_bounded_number_of_executions(
        self, fake_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(executions_module, "MAX_PER_BOX", 2)
        executions, box, other = Executions(fake_site.runtime, tmp_path), fake_site.running_box(), None
        first, second = (start(executions, box, "sleep", "1000") for _ in range(2))
        with pytest.raises(ResourceExhaustedError, match="runs 2 executions"):
            start(executions, box, "true")
        with pytest.raises(ExecutionError):  # a start that was refused or failed takes no place
            start(executions, other := fake_site.running_box(), "no-such-command")
        start(executions, other, "true"), start(executions, other, "true")
        assert executions.start(first, box, ExecSpec(("sleep", "1000"))).status is ExecutionStatus.RUNNING
        executions.kill(box.box_id, first)
        read(executions, box, first)
        await_free(executions, box, 1)
        start(executions, box, "true")
        executions.kill(box.box_id, second)
        for ref in (box, other):
            fake_site.runtime.remove(ref, force=True)

    def test_a_full_disk_is_said_before_the_start_and_recovers(
        self, fake_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        executions, box = Executions(fake_site.runtime, tmp_path), fake_site.running_box()
        with monkeypatch.context() as patch:
            patch.setattr(output_log_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
            with pytest.raises(ResourceExhaustedError, match="disk is full"):
                start(executions, box, "true")
            with pytest.raises(ResourceExhaustedError, match="disk is full"):
                executions.attach_box(box)
        assert read(executions, box, start(executions, box, "true"))[2].exit_code == 0
        fake_site.runtime.remove(box, force=True)

    def test_an_execution_that_was_forgotten_is_not_started_again(self, fake_site: Site, tmp_path: Path) -> None:
        clock = Clock()
        executions, box = Executions(fake_site.runtime, tmp_path, clock), fake_site.running_box()
        execution = shell(executions, box, "echo x >> file")
        read(executions, box, execution)
        await_finished(executions)
        clock.now += KEEP_FINISHED
        with pytest.raises(InvalidStateError, match="ended long ago"):
            executions.start(execution, box, ExecSpec(("sh", "-c", "echo x >> file")))
        assert read(executions, box, shell(executions, box, "cat file"))[0] == b"x\n"
        fake_site.runtime.remove(box, force=True)


def await_free(executions: Executions, box: BoxRef, count: int) -> None:
    """Until the threads of ended executions have given their places back."""
    wait_until(lambda: executions._counts[box.box_id] <= count, "the places are free again")
