"""What becomes of boxes and of the worker when the engine is ended, killed, held up, and back again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from support.engines import PrivateEngine, private_engine
from support.sites import Site, collect, in_thread

from boxlite_server import ids
from boxlite_server.errors import EngineError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.executions.execution import ExecutionStatus
from boxlite_server.worker.executions.registry import Executions
from boxlite_server.worker.holder import Holder
from boxlite_server.worker.membership.inventory import inventory
from boxlite_server.worker.runtime import BoxRef, BoxState, BoxStatus, Owner

IMAGE = "boxlite-test:latest"
OWNER = Owner(ids.new_id(), ids.new_id())

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an engine of its own takes root")


@pytest.fixture(scope="module", params=[False, True], ids=["bridge", "no-bridge"])
def engine(request: pytest.FixtureRequest) -> Iterator[PrivateEngine]:
    with private_engine(IMAGE, without_bridge=request.param) as engine:
        yield engine


class Watched:
    """A worker's runtime that watches the engine; changes can be awaited."""

    def __init__(self, site: Site) -> None:
        self.site, self.runtime = site, site.runtime
        self.changed, self.stopping = threading.Event(), threading.Event()
        self.thread = in_thread(lambda: self.runtime.watch(self.changed.set, self.stopping))
        assert self.changed.wait(60)

    def await_state(self, box: BoxRef, status: BoxStatus) -> BoxState:
        """Wait until a heartbeat would report this state."""
        while True:
            self.changed.clear()
            states = {state.box: state for state in self.runtime.list_boxes()}
            if states[box].status is status:
                return states[box]
            assert self.changed.wait(30)

    def await_engine(self) -> None:
        """Wait until the engine answers again."""
        while not isinstance(self.runtime, DockerRuntime) or self.runtime._watch._listening_since is None:
            assert self.changed.wait(30)
            self.changed.clear()


@pytest.fixture
def watched(engine: PrivateEngine, tmp_path: Path) -> Iterator[Watched]:
    runtime = DockerRuntime(lambda: OWNER, engine.docker_host, holder=Holder(tmp_path))
    watched = Watched(Site(runtime, IMAGE, IMAGE, tmp_path))
    yield watched
    watched.stopping.set()
    for state in runtime.list_boxes():
        runtime.remove(state.box, force=True)
    runtime.close()


def test_an_engine_that_is_ended_interrupts_its_boxes(engine: PrivateEngine, watched: Watched) -> None:
    runtime, life = watched.runtime, watched.runtime.life()
    assert runtime.life() == life
    box, ended = watched.site.running_box(), watched.site.running_box(cmd=("sh", "-c", "exit 3"))
    stopped = watched.site.running_box()
    runtime.stop(stopped, 1)
    watched.await_state(ended, BoxStatus.STOPPED)
    seen: list[BoxState] = []

    def report() -> None:
        """Heartbeats while the engine goes down: none may say that the box ended by itself."""
        while len(seen) < 1:
            try:
                seen.extend(s for s in runtime.list_boxes() if s.box == box and s.status is BoxStatus.STOPPED)
            except EngineError:
                return

    reporter = in_thread(report)
    engine.end()
    reporter.join(70)
    assert all(state.interrupted for state in seen)
    with pytest.raises(EngineError):
        runtime.life()
    watched.changed.clear()
    engine.start()
    watched.await_engine()
    assert runtime.life() != life
    states = {state.box: state for state in runtime.list_boxes()}
    assert (states[box].status, states[box].interrupted) == (BoxStatus.STOPPED, True)
    assert (states[ended].exit_code, states[ended].interrupted) == (3, False)
    assert not states[stopped].interrupted
    # All works again, on the same runtime.
    assert not runtime.start(box).interrupted
    assert collect(runtime.spawn(box, ExecSpec(("echo", "back"))))[0] == b"back\n"
    assert watched.await_state(box, BoxStatus.RUNNING).box == box


def test_an_engine_that_is_killed_ends_its_boxes_when_it_comes_back(
    engine: PrivateEngine, watched: Watched, tmp_path: Path
) -> None:
    runtime, box = watched.runtime, watched.site.running_box()
    executions, execution = Executions(runtime, tmp_path), ids.execution_id()
    executions.start(execution, box, ExecSpec(("sleep", "1000")))
    before = inventory(runtime)
    engine.kill()
    with pytest.raises(EngineError):
        inventory(runtime)
    assert executions.get(box.box_id, execution).status is ExecutionStatus.RUNNING
    watched.changed.clear()
    engine.start()
    watched.await_engine()
    after = inventory(runtime)
    assert after.engine_life != before.engine_life
    assert [entry["status"] for entry in after.boxes] == ["stopped"]
    list(executions.read_output(box.box_id, execution))  # to its end
    assert "engine restarted" in executions.get(box.box_id, execution).error_message
    assert executions.get(box.box_id, execution).exit_code == 137
    runtime.start(box)
    assert not watched.await_state(box, BoxStatus.RUNNING).interrupted


def test_a_kill_by_other_hands_interrupts(engine: PrivateEngine, watched: Watched) -> None:
    api = docker.APIClient(base_url=engine.docker_host, version="auto")
    box = watched.site.running_box()
    name = f"boxlite-{box.box_id}-{box.generation}"
    api.kill(name)
    assert watched.await_state(box, BoxStatus.STOPPED).interrupted
    assert watched.runtime.inspect(box).interrupted
    watched.runtime.start(box)
    api.stop(name, timeout=1)
    assert watched.await_state(box, BoxStatus.STOPPED).interrupted
    api.close()


@pytest.mark.parametrize("how", ["stop", "signal", "kill", "itself", "memory"])
def test_other_ends_are_no_interruptions(watched: Watched, how: str) -> None:
    runtime = watched.runtime
    command = ("tail", "/dev/zero") if how == "memory" else ("sh", "-c", "read x; exit 5")
    box = watched.site.new_box(cmd=command, memory_mib=16)
    main = runtime.attach_main(box)
    runtime.start(box)
    match how:
        case "stop":
            runtime.stop(box, 0)
        case "signal":
            main.signal(15)
        case "kill":
            main.kill()
        case "itself":
            main.close_input(60)
    assert not watched.await_state(box, BoxStatus.STOPPED).interrupted
    main.close()


def test_a_signal_that_was_survived_does_not_excuse_a_later_kill(engine: PrivateEngine, watched: Watched) -> None:
    api = docker.APIClient(base_url=engine.docker_host, version="auto")
    runtime = watched.runtime
    box = watched.site.new_box(cmd=("sh", "-c", "trap 'echo heard' TERM; echo up; while :; do sleep 0.02; done"))
    main = runtime.attach_main(box)
    runtime.start(box)
    assert main.read() == (1, b"up\n")
    main.signal(15)
    assert main.read() == (1, b"heard\n")
    api.kill(f"boxlite-{box.box_id}-{box.generation}")
    assert watched.await_state(box, BoxStatus.STOPPED).interrupted
    main.close()
    api.close()


def test_an_engine_that_is_held_up_goes_on_where_it_was(
    engine: PrivateEngine, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, box = watched.runtime, watched.site.running_box()
    assert isinstance(runtime, DockerRuntime)
    life = runtime.life()
    engine.pause()
    monkeypatch.setattr(runtime._engine.api, "timeout", 0.3)
    try:
        with pytest.raises(EngineError, match="does not answer"):
            runtime.list_boxes()
    finally:
        engine.resume()
    monkeypatch.undo()
    assert runtime.life() == life
    assert runtime.inspect(box).status is BoxStatus.RUNNING
