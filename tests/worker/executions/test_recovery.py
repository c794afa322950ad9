"""Executions across the death of the worker's process: what the next one finds, on every runtime."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.cluster import wait_until
from support.sites import ALL_RUNTIMES, Site, abandon, collect, in_thread

from boxlite_server import ids
from boxlite_server.errors import EngineError, NotFoundError
from boxlite_server.worker.commands import Durable, ExecSpec
from boxlite_server.worker.executions.execution import Delivered, Ended, ExecutionState, ExecutionStatus
from boxlite_server.worker.executions.journal import Journal, Record
from boxlite_server.worker.executions.output_log import Chunk, Gap
from boxlite_server.worker.executions.registry import KEEP_FINISHED, Executions
from boxlite_server.worker.runtime import BoxRef

RUNTIMES = ALL_RUNTIMES


class Worker:
    """The part of a worker that knows of executions. `die` leaves what the death of its process would."""

    def __init__(self, site: Site, home: Path, life: int = 1) -> None:
        self._site, self._home, self._life = site, home, life
        self._journal = home / f"journal-{life}"
        self._journal.mkdir(exist_ok=True)
        self.executions = Executions(site.runtime, home, journal=Journal(self._journal))
        self.executions.recover()

    def start(self, box: BoxRef, script: str, **how: float) -> str:
        execution_id = ids.execution_id()
        self.executions.start(execution_id, box, ExecSpec(("sh", "-c", script), tty=bool(how.get("hangup"))), **how)
        return execution_id

    def die(self) -> Callable[[], Worker]:
        """Ends this worker. Returns a function that starts the next one."""
        after = self._home / f"journal-{self._life + 1}"
        with self.executions._journal._lock:
            shutil.copytree(self._journal, after)  # the threads of the dead worker write nothing any more
        for execution in self.executions.live():
            process = execution._process
            abandon(process)
            if isinstance(process, Durable):  # it would go on writing to the log that the next worker takes over
                end_of(execution.execution_id)
        return lambda: Worker(self._site, self._home, self._life + 1)

    def records(self) -> list[str]:
        return sorted(record.execution_id for record in Journal(self._journal).load())


def end_of(execution: str) -> None:
    """Wait until no thread works for the execution any more."""
    name = f"execution {execution}"
    wait_until(lambda: all(thread.name != name for thread in threading.enumerate()), "its thread is done", 60)


@pytest.fixture
def worker(site: Site, tmp_path: Path) -> Worker:
    return Worker(site, tmp_path)


@pytest.fixture
def stopping() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def read(worker: Worker, box: BoxRef, execution: str, position: int = 0) -> tuple[list[str], bytes, ExecutionState]:
    """What is reported as lost, the output, and the end."""
    *events, last = worker.executions.read_output(box.box_id, execution, position)
    assert isinstance(last, Ended)
    lost = [event.reason for event in events if isinstance(event, Gap)]
    return lost, b"".join(event.data for event in events if isinstance(event, Chunk)), last.state


def test_a_running_command_is_found_again_with_its_exit_code(worker: Worker, box: BoxRef) -> None:
    script = "echo begun; until test -e go1; do sleep 0.02; done; rm go1; echo more; read x; echo $x; cat; exit 7"
    execution = worker.start(box, script)
    assert isinstance(next(worker.executions.read_output(box.box_id, execution)), Chunk)
    began = worker.executions.get(box.box_id, execution).started_at_ms
    worker = worker.die()()
    state = worker.executions.get(box.box_id, execution)
    assert (state.status, state.started_at_ms) == (ExecutionStatus.RUNNING, began)
    assert worker.executions.running_in(box.box_id) == 1
    worker.start(box, "touch go1")
    assert worker.executions.find(box.box_id, execution).write(b"in\nput", True, 60) == (6, False)
    lost, output, state = read(worker, box, execution)
    assert (state.status, state.exit_code) == (ExecutionStatus.COMPLETED, 7)
    if is_durable(worker, box):
        assert (lost, output, state.error_message) == ([], b"begun\nmore\nin\nput", "")
        return
    assert output == b"more\nin\nput"
    assert len(lost) == 1 and "restarted" in lost[0]
    assert "restarted" in state.error_message
    # Once more, and for whoever knows a position in the former log.
    assert read(worker, box, execution, 12345) == (lost, output, state)


def is_durable(worker: Worker, box: BoxRef) -> bool:
    """Whether the box's commands lose nothing with their worker: those under a supervisor."""
    process = worker._site.runtime.spawn(box, ExecSpec(("true",)))
    collect(process)
    return isinstance(process, Durable)


def test_a_reader_goes_on_in_the_next_life_where_it_was_in_the_last(worker: Worker, box: BoxRef) -> None:
    if not is_durable(worker, box):
        pytest.skip("the output of such a command ends with its worker")
    execution = worker.start(box, "echo one; read x; echo two >&2; exit 3")
    first = next(worker.executions.read_output(box.box_id, execution))
    assert isinstance(first, Chunk) and first.data == b"one\n"
    worker.executions.confirm(box.box_id, execution, Delivered(4, first.position, 4))
    worker = worker.die()()
    assert worker.executions.get(box.box_id, execution).delivered == Delivered(4, first.position, 4)
    worker.executions.find(box.box_id, execution).write(b"\n", False, 60)
    assert read(worker, box, execution, first.position)[:2] == ([], b"two\n")
    worker = worker.die()()
    assert read(worker, box, execution, first.position)[:2] == ([], b"two\n")
    assert read(worker, box, execution)[:2] == ([], b"one\ntwo\n")


@pytest.mark.parametrize("how", ["removed", "damaged"])
def test_a_log_that_is_removed_or_damaged_meanwhile_is_told_as_lost(
    worker: Worker, box: BoxRef, tmp_path: Path, how: str
) -> None:
    execution = worker.start(box, "echo one; read x; echo two")
    next(worker.executions.read_output(box.box_id, execution))
    next_life = worker.die()
    (log,) = tmp_path.glob(f"output-{execution}")
    log.unlink() if how == "removed" else log.write_bytes(b"nonsense" * 1000)
    worker = next_life()
    worker.executions.find(box.box_id, execution).write(b"\n", False, 60)
    lost, output, _ = read(worker, box, execution)
    assert (len(lost), output) == (1, b"two\n")


@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "terminal"])
def test_input_whose_answer_was_lost_with_the_worker_is_not_taken_twice(worker: Worker, box: BoxRef, tty: bool) -> None:
    if not is_durable(worker, box):
        pytest.skip("nobody counts the input of such a command")
    script = "stty raw -echo 2>/dev/null; touch ready; head -c 14; until test -e go6; do sleep 0.02; done; exit 6"
    execution = worker.start(box, script, hangup=60 if tty else 0)
    read(worker, box, worker.start(box, "until test -e ready; do sleep 0.02; done; rm ready"))
    feed = worker.executions.find(box.box_id, execution)
    assert feed.state.counts_input
    assert feed.write(b"one,", False, 60, source="me") == (4, False)
    assert feed.write(b"two,", False, 60, source="me", offset=4) == (4, False)
    worker = worker.die()()
    feed = worker.executions.find(box.box_id, execution)
    assert feed.write(b"two,three,", False, 60, source="me", offset=4) == (10, False)
    assert feed.write(b"three,", False, 60, source="me", offset=8) == (6, False)
    collect(worker._site.runtime.spawn(box, ExecSpec(("touch", "go6"))))
    assert read(worker, box, execution)[1:][0] == b"one,two,three,"


def test_what_is_said_in_between_is_not_lost(worker: Worker, box: BoxRef) -> None:
    size = 3_000_000
    script = f"until test -e go4; do sleep 0.02; done; rm go4; head -c {size} /dev/zero; echo err >&2; exit 8"
    execution = worker.start(box, script)
    next_life = worker.die()
    collect(worker._site.runtime.spawn(box, ExecSpec(("touch", "go4"))))
    _, output, state = read(next_life(), box, execution)
    assert (len(output), state.exit_code) == (size + 4, 8)
    assert output.strip(b"\0") == b"err\n"


def test_two_deaths_in_a_row(worker: Worker, box: BoxRef) -> None:
    execution = worker.start(box, "read x; echo $x; exit 2")
    worker = worker.die()()
    worker = worker.die()()
    worker.executions.find(box.box_id, execution).write(b"y\n", False, 60)
    assert read(worker, box, execution)[1:][0] == b"y\n"


def test_a_repeated_start_of_a_former_command_starts_nothing(worker: Worker, box: BoxRef) -> None:
    script = "echo x >> twice; echo up; exec sleep 1000"
    execution = worker.start(box, script)
    next(worker.executions.read_output(box.box_id, execution))
    worker = worker.die()()
    spec = ExecSpec(("sh", "-c", script))
    assert worker.executions.start(execution, box, spec).status is ExecutionStatus.RUNNING
    assert read(worker, box, worker.start(box, "cat twice; rm twice"))[1] == b"x\n"
    worker.executions.kill(box.box_id, execution)
    assert read(worker, box, execution)[2].status is ExecutionStatus.KILLED


def test_a_command_that_ended_in_between_is_known_by_its_exit_code(worker: Worker, box: BoxRef) -> None:
    execution = worker.start(box, "until test -e go2; do sleep 0.02; done; rm go2; exit 9")
    next_life = worker.die()
    script = "touch go2; while test -e go2; do sleep 0.02; done"
    collect(worker._site.runtime.spawn(box, ExecSpec(("sh", "-c", script))))
    assert read(next_life(), box, execution)[2].exit_code == 9


def test_a_command_that_had_ended_before_is_known_for_a_while(
    worker: Worker, box: BoxRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = worker.start(box, "echo said; exit 3")
    before = read(worker, box, execution)[2]
    end_of(execution)
    next_life = worker.die()
    worker = next_life()
    lost, output, state = read(worker, box, execution)
    assert (output, state.exit_code, state.status) == (b"said\n", 3, ExecutionStatus.COMPLETED)
    assert (state.duration_ms, state.started_at_ms) == (before.duration_ms, before.started_at_ms)
    assert (lost, state.error_message) == ([], "")
    worker = worker.die()()
    assert read(worker, box, execution) == (lost, output, state)
    last_life = worker.die()
    monkeypatch.setattr("boxlite_server.worker.executions.recovery.now_ms", lambda: state.started_at_ms + 10**9)
    worker = last_life()
    with pytest.raises(NotFoundError):
        worker.executions.get(box.box_id, execution)
    assert worker.records() == []
    assert KEEP_FINISHED * 1000 < 10**9


def test_a_command_that_said_nothing_has_lost_nothing(worker: Worker, box: BoxRef) -> None:
    execution = worker.start(box, "exit 4")
    before = read(worker, box, execution)[2]
    end_of(execution)
    assert read(worker.die()(), box, execution) == ([], b"", before)


def test_signals_and_kills_reach_a_found_command(worker: Worker, box: BoxRef) -> None:
    trapped = worker.start(box, "trap 'exit 5' TERM; touch up; while :; do sleep 0.02; done")
    killed = worker.start(box, "sleep 1000")
    read(worker, box, worker.start(box, "until test -e up; do sleep 0.02; done; rm up"))
    worker = worker.die()()
    worker.executions.find(box.box_id, trapped).signal(signal.SIGTERM)
    assert read(worker, box, trapped)[2].exit_code == 5
    worker.executions.kill(box.box_id, killed)
    state = read(worker, box, killed)[2]
    assert (state.status, state.exit_code) == (ExecutionStatus.KILLED, 137)


def test_a_terminal_is_resized_and_hung_up_by_the_next_life(
    worker: Worker, box: BoxRef, stopping: threading.Event
) -> None:
    execution = worker.start(box, "touch up3; exec sleep 1000", hangup=0.3, expects_reader=True)
    read(worker, box, worker.start(box, "until test -e up3; do sleep 0.02; done; rm up3"))
    worker = worker.die()()
    worker.executions.find(box.box_id, execution).resize(100, 30)
    in_thread(lambda: worker.executions.keep(stopping))
    waiting = worker.executions.find(box.box_id, execution)
    reader = waiting.output.reader()
    while not waiting.is_over:
        reader.read(0.05)
    assert waiting.state.exit_code == 129


def test_a_time_limit_is_enforced_by_the_next_life(worker: Worker, box: BoxRef, stopping: threading.Event) -> None:
    execution = worker.start(box, "sleep 1000", timeout=0.3)
    worker = worker.die()()
    in_thread(lambda: worker.executions.keep(stopping))
    assert read(worker, box, execution)[2].status is ExecutionStatus.TIMED_OUT


def test_the_main_command_is_found_again_with_all_it_has_said(worker: Worker, site: Site) -> None:
    box = site.new_box(cmd=("sh", "-c", "echo one; read line; echo $line; exit 4"))
    execution = worker.executions.attach_box(box).execution_id
    site.runtime.start(box)
    stream = worker.executions.read_output(box.box_id, execution)
    first = next(stream)
    assert isinstance(first, Chunk) and first.data == b"one\n"
    worker.executions.confirm(box.box_id, execution, Delivered(4, first.position, 4))
    stream.close()  # type: ignore[attr-defined]
    worker = worker.die()()
    state = worker.executions.get(box.box_id, execution)
    assert (state.status, state.delivered) == (ExecutionStatus.RUNNING, Delivered(4, 0, 0))
    assert worker.executions.attach_box(box).execution_id == execution
    stream = worker.executions.read_output(box.box_id, execution)
    next(stream)  # the engine reads its log, and repeats what is said meanwhile
    stream.close()  # type: ignore[attr-defined]
    worker.executions.find(box.box_id, execution).write(b"two\n", False, 60)
    lost, output, state = read(worker, box, execution)
    assert (lost, output, state.exit_code) == ([], b"one\ntwo\n", 4)
    site.runtime.remove(box, force=True)


def test_a_main_command_that_ended_in_between(worker: Worker, site: Site) -> None:
    box = site.new_box(cmd=("sh", "-c", "trap 'exit 6' TERM; echo up; while :; do sleep 0.02; done"))
    execution = worker.executions.attach_box(box).execution_id
    site.runtime.start(box)
    next(worker.executions.read_output(box.box_id, execution))
    next_life = worker.die()
    site.runtime.stop(box, 10)
    state = read(next_life(), box, execution)[2]
    assert state.exit_code == 6
    assert "stopped while" in state.error_message
    site.runtime.remove(box, force=True)


def test_a_box_that_was_removed_in_between(worker: Worker, site: Site) -> None:
    box = site.running_box()
    execution = worker.start(box, "sleep 1000")
    next_life = worker.die()
    site.runtime.remove(box, force=True)
    state = read(next_life(), box, execution)[2]
    assert (state.status, state.exit_code) == (ExecutionStatus.COMPLETED, 137)
    assert "box was removed" in state.error_message


def test_a_command_that_the_engine_has_forgotten(site: Site, box: BoxRef, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(Record("gone", box.box_id, box.generation, "no-such-handle", False, 1000))
    executions = Executions(site.runtime, tmp_path, journal=Journal(tmp_path))
    executions.recover()
    state = executions.get(box.box_id, "gone")
    assert (state.status, state.exit_code) == (ExecutionStatus.COMPLETED, 137)
    assert "engine was restarted" in state.error_message


def test_while_the_engine_is_down_nothing_is_decided(
    fake_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, box = Worker(fake_site, tmp_path), fake_site.running_box()
    execution, later = worker.start(box, "sleep 1000"), worker.start(box, "sleep 1000")
    next_life = worker.die()
    monkeypatch.setattr(fake_site.runtime, "down", True)
    worker = next_life()
    with pytest.raises(EngineError):
        worker.executions.get(box.box_id, execution)
    worker.executions.sweep()
    monkeypatch.setattr(fake_site.runtime, "down", False)
    assert worker.executions.get(box.box_id, execution).status is ExecutionStatus.RUNNING
    assert worker.executions.running_in(box.box_id) == 1
    worker.executions.sweep()
    assert worker.executions.running_in(box.box_id) == 2
    for each in (execution, later):
        worker.executions.kill(box.box_id, each)
        read(worker, box, each)
    fake_site.runtime.remove(box, force=True)


class TestJournal:
    RECORD = Record("a/b", "box", 2, "handle", False, 1000)

    def test_it_keeps_what_was_written_last(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        journal.add(self.RECORD)
        journal.add(Record("other", "box", 2, "h", True, 1))
        journal.update("a/b", ended_at_ms=5, exit_code=3)
        journal.update("unknown", exit_code=3)
        journal.remove("other")
        (found,) = Journal(tmp_path).load()
        assert (found.execution_id, found.ended_at_ms, found.exit_code) == ("a/b", 5, 3)

    def test_what_is_damaged_is_dropped(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text("{")
        (tmp_path / "y.json").write_text('{"unknown": 1}')
        (tmp_path / "records").write_bytes(b"{".ljust(4096) + b'{"unknown": 1}'.ljust(4096) + bytes(4096))
        assert Journal(tmp_path).load() == []
        assert [path.name for path in tmp_path.iterdir()] == ["records"]

    def test_what_the_disk_does_not_give_back_is_dropped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(path: Path) -> bytes:
            raise OSError(5, "Input/output error")

        (tmp_path / "x.json").write_text(json.dumps(asdict(self.RECORD)))
        monkeypatch.setattr(Path, "read_bytes", broken)
        assert Journal(tmp_path).load() == []
        assert [path.name for path in tmp_path.iterdir()] == ["records"]

    def test_a_damaged_page_costs_its_record_alone(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        journal = Journal(tmp_path)
        for number in range(4):
            journal.add(replace(self.RECORD, execution_id=str(number)))
        content = bytearray((tmp_path / "records").read_bytes())
        content[4096:8192] = b"\xff\x80{" * 1365 + b"\xff"  # no UTF-8
        content[8192:8200] = b"[1, 2]  "
        (tmp_path / "records").write_bytes(content)
        journal = Journal(tmp_path)
        assert [record.execution_id for record in journal.load()] == ["0", "3"]
        assert len(caplog.records) == 2
        journal.add(replace(self.RECORD, execution_id="new"))
        assert {record.execution_id for record in Journal(tmp_path).load()} == {"0", "3", "new"}
        assert (tmp_path / "records").stat().st_size == 4 * 4096

    def test_room_is_used_again(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        for number in range(5):
            journal.add(replace(self.RECORD, execution_id=str(number)))
        for number in range(4):
            journal.remove(str(number))
            journal.add(Record(f"other {number}", "box", 2, "h", True, 1))
        journal.update("other 3", ended_at_ms=5, exit_code=3)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 5 * 4096
        found = {record.execution_id: record.exit_code for record in Journal(tmp_path).load()}
        assert found == {"4": 0, **{f"other {number}": 0 for number in range(3)}, "other 3": 3}

    def test_room_for_very_many_is_given_back(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        for number in range(300):
            journal.add(replace(self.RECORD, execution_id=str(number)))
        for number in range(300):
            journal.remove(str(number))
        assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]
        journal.add(self.RECORD)
        assert Journal(tmp_path).load() == [self.RECORD]

    def test_records_of_an_earlier_version_are_read(self, tmp_path: Path) -> None:
        (tmp_path / "a%2Fb.json").write_text(json.dumps(asdict(self.RECORD)).ljust(4096))
        (tmp_path / "7.free").write_text("{}")
        journal = Journal(tmp_path)
        assert journal.load() == [self.RECORD]
        journal.update("a/b", exit_code=4)
        assert Journal(tmp_path).load() == [replace(self.RECORD, exit_code=4)]
        journal.remove("a/b")
        assert Journal(tmp_path).load() == []
        assert [path.name for path in tmp_path.iterdir()] == ["records"]

    def test_a_long_record_and_what_follows_it_are_whole(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        for message in ("", "x" * 5000, "short", "y" * 9000, "z" * 6000):
            journal.add(self.RECORD)
            journal.update("a/b", error_message=message)
            assert [record.error_message for record in Journal(tmp_path).load()] == [message]
            journal.update("a/b", error_message="end")
            assert [record.error_message for record in Journal(tmp_path).load()] == ["end"]
            journal.remove("a/b")
            assert Journal(tmp_path).load() == []

    def test_a_full_disk_costs_only_the_record(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        journal = Journal(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            journal.add(self.RECORD)
        journal.update("a/b", exit_code=1)
        assert [record.exit_code for record in Journal(tmp_path).load()] == [1]

    def test_a_record_that_was_never_written_is_none(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "killed.json").touch()
        assert Journal(tmp_path).load() == []
        assert [path.name for path in tmp_path.iterdir()] == ["records"]
        assert not caplog.records, "nothing was damaged"
