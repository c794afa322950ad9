"""Prepared boxes of Docker Engine: claimed, they are as if they were made for the claim, through restarts of the worker
and of the engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from support.sites import Site, collect

from boxlite_server import ids
from boxlite_server.errors import EngineError, UnsupportedError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.holder import Holder
from boxlite_server.worker.runtime import BoxRef, BoxStatus, Owner
from boxlite_server.worker.supervisor.links import Links
from boxlite_server.worker.supervisor.process import SupervisedProcess
from boxlite_server.worker.supervisor.program import program

# What the main command says of itself; then it does what its arguments say.
TELL = 'echo "args $*, pid 1 is me: $([ $$ = 1 ] && echo yes || echo no), pwd $PWD"; env | grep -v HOSTNAME | sort; '
STAY = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1 & wait $!; done"


class Workers:
    """The processes of one worker, one after the other."""

    def __init__(self, docker_host: str, home: Path, image: str) -> None:
        self.docker_host = docker_host
        self.home = home
        self.owner = Owner(ids.new_id(), ids.new_id())
        self.image = image
        self.next()

    def next(self) -> DockerRuntime:
        """A new process, after the former one was killed."""
        if hasattr(self, "runtime"):
            self.runtime.close()
        supervisor = program()
        assert supervisor is not None
        self.runtime = DockerRuntime(
            lambda: self.owner,
            self.docker_host,
            holder=Holder(self.home),
            records=self.home / "system-files",
            prepared=self.home / "prepared",
            links=Links(self.home / "boxes", supervisor),
        )
        self.runtime.tidy()
        self.site = Site(self.runtime, self.image, "", Path())
        return self.runtime

    def prepared(self, **fields: object) -> BoxRef:
        box = BoxRef(ids.new_id(), 1)
        self.runtime.prepare(box, self.site.spec(**fields))
        return box

    def claimed(self, image: str, **fields: object) -> BoxRef:
        box = self.prepared(image=image)
        pid = self.pid(box)
        self.runtime.create(box, self.site.spec(image=image, **fields))
        assert self.pid(box) == pid, "it was claimed, not made anew"
        return box

    def pid(self, box: BoxRef) -> int:
        return int(self.runtime._containers.get_as_is(box)["State"]["Pid"])

    def run(self, box: BoxRef, script: str, **fields: Any) -> str:
        process = self.runtime.spawn(box, ExecSpec(("sh", "-c", script), **fields))
        return collect(process)[0].decode()

    def log(self, box: BoxRef, *, until: str = "ready\n") -> str:
        reader = self.runtime.read_logs(box, None, follow=True)
        said = ""
        while until not in said and (piece := reader.read()) is not None:
            said += piece[1].decode()
        reader.close()
        return said


@pytest.fixture
def workers(docker_host: str, tmp_path: Path, test_image: str) -> Iterator[Workers]:
    workers = Workers(docker_host, tmp_path, test_image)
    yield workers
    for state in workers.next().list_boxes():
        workers.runtime.remove(state.box, force=True)
    assert list((tmp_path / "prepared").glob("boxlite-*")) == []
    workers.runtime.close()


IMAGES: dict[str, dict[str, object]] = {
    "plain": {},
    "command": {"Cmd": ["sh", "-c", TELL + STAY, "image"]},
    "entrypoint": {"Entrypoint": ["sh", "-c", TELL + STAY, "image"], "Cmd": ["of the image"]},
    "user": {"User": "1000:1000", "WorkingDir": "/tmp", "Env": ["A=of the image", "B=b"], "StopSignal": "SIGINT"},
}
MAIN = ("sh", "-c", TELL + STAY.replace("TERM", "TERM INT"), "asked")
CLAIMS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "cmd": {"cmd": MAIN},
    "entrypoint": {"entrypoint": MAIN, "cmd": ("one", "two")},
    "init": {"cmd": ("/init", "x")},  # a known init runs as process 1
    "env": {"cmd": MAIN, "env": {"A": "asked", "PATH": "/bin:/usr/bin", "HOME": "/tmp"}, "working_dir": "/etc"},
}


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claimed_box_is_like_a_box_that_was_made_for_the_request(
    workers: Workers, new_image: Callable[..., str], image: str, claim: str
) -> None:
    """Whatever can be seen of it is the same."""
    name, fields = new_image(**IMAGES[image]), CLAIMS[claim]
    cold = BoxRef(ids.new_id(), 1)
    workers.runtime.create(cold, workers.site.spec(image=name, **fields))
    assert seen_of(workers, workers.claimed(name, **fields)) == seen_of(workers, cold)


def seen_of(workers: Workers, box: BoxRef) -> dict[str, Any]:
    """All that can be told of a box that was not started yet."""
    runtime = workers.runtime
    seen: dict[str, Any] = {}
    try:
        started = runtime.start(box)
    except Exception as exc:
        return {"refused": "not found" in str(exc)}
    seen["started"] = (started.status, started.supervisor, started.ports, started.unclaimed)
    says_something = "ready" in json.dumps(runtime._containers.get(box)["Config"]["Cmd"]) or "ready" in json.dumps(
        runtime._containers.get(box)["Config"]["Entrypoint"]
    )
    seen["log"] = workers.log(box) if says_something else ""
    look = "id; env | grep -v HOSTNAME | grep -v BOXLITE | sort; pwd; [ $(hostname) = $HOSTNAME ] || hostname"
    seen["command"] = workers.run(box, look)
    seen["own"] = workers.run(box, look, env={"A": "own"}, working_dir="/")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime._supervisors, "spawn", lambda run, spec, on_begun: None)
        process = runtime.spawn(box, ExecSpec(("true",)))
        assert not isinstance(process, SupervisedProcess)
        collect(process)
        seen["by engine"] = workers.run(box, look)
    with runtime.disks.export(box) as export:
        seen["settings"] = export.settings
    seen["stopped"] = [(state := runtime.stop(box, 30)).status, state.exit_code, state.interrupted, state.out_of_memory]
    seen["again"] = runtime.start(box).supervisor
    seen["logs"] = workers.log(box, until=seen["log"] * 2) if says_something else ""
    return seen


def test_a_worker_that_is_killed_knows_what_is_prepared_and_what_is_claimed(workers: Workers) -> None:
    box = workers.prepared()
    pid = workers.pid(box)
    assert workers.next().inspect(box).unclaimed
    workers.runtime.create(box, workers.site.spec(env={"ONE": "x"}))
    assert not workers.next().inspect(box).unclaimed
    started = workers.runtime.start(box)
    assert (started.status, started.pid) == (BoxStatus.RUNNING, pid)
    assert workers.run(box, "echo $ONE") == "x\n"
    assert workers.next().inspect(box).pid == pid
    assert workers.run(box, "echo $ONE") == "x\n"
    workers.runtime.stop(box, 0)
    assert workers.next().start(box).status is BoxStatus.RUNNING
    assert workers.run(box, "echo $ONE") == "x\n"


@pytest.mark.parametrize("image", ["plain", "entrypoint"])
def test_a_start_that_is_cut_off_before_the_main_command_is_finished_by_the_next_worker(
    workers: Workers, new_image: Callable[..., str], image: str
) -> None:
    box = workers.claimed(new_image(**IMAGES[image]), entrypoint=("sh", "-c", TELL + STAY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers.runtime, "_start_main", _die)
        with pytest.raises(KeyboardInterrupt):
            workers.runtime.start(box)
    assert workers.next().inspect(box).status is BoxStatus.RUNNING
    assert workers.log(box).count("ready") == 1
    assert workers.runtime.start(box).status is BoxStatus.RUNNING
    workers.runtime.stop(box, 0)
    assert workers.log(box, until="nothing").count("ready") == 1


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_box_that_the_engine_has_ended_is_made_anew_for_its_claim(workers: Workers, api: docker.APIClient) -> None:
    box = workers.prepared()
    api.kill(f"boxlite-{box.box_id}-1")
    assert workers.runtime.inspect(box).unclaimed
    workers.runtime.create(box, workers.site.spec(env={"ONE": "x"}))
    assert workers.runtime.start(box).status is BoxStatus.RUNNING
    assert workers.run(box, "echo $ONE") == "x\n"


def test_a_claimed_box_that_the_engine_has_ended_is_started_anew(workers: Workers, api: docker.APIClient) -> None:
    box = workers.claimed(workers.image, env={"ONE": "x"})
    api.kill(f"boxlite-{box.box_id}-1")
    assert workers.runtime.inspect(box).status is BoxStatus.CONFIGURED
    assert workers.runtime.start(box).status is BoxStatus.RUNNING
    assert workers.run(box, "echo $ONE") == "x\n"


def test_an_engine_that_stops_its_containers_need_not_wait_for_a_prepared_box(
    workers: Workers, api: docker.APIClient
) -> None:
    box = workers.prepared()
    api.stop(f"boxlite-{box.box_id}-1", timeout=600)
    assert api.inspect_container(f"boxlite-{box.box_id}-1")["State"]["ExitCode"] == 143


def test_a_main_command_that_cannot_be_started_ends_its_box(workers: Workers) -> None:
    box = workers.claimed(workers.image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers.runtime._supervisors, "start_main", _fail)
        with pytest.raises(EngineError, match="for a test"):
            workers.runtime.start(box)
    assert workers.runtime.inspect(box).status is BoxStatus.STOPPED
    assert workers.runtime.start(box).status is BoxStatus.RUNNING


def _fail(*_: object) -> None:
    raise EngineError("for a test")


def test_damaged_records_keep_no_worker_from_starting(workers: Workers, tmp_path: Path) -> None:
    box = workers.prepared()
    [record] = (tmp_path / "prepared").glob("boxlite-*")
    record.write_text("{")
    assert workers.next().inspect(box).status is BoxStatus.RUNNING
    other = workers.prepared()
    assert workers.runtime.inspect(other).unclaimed
    workers.runtime.remove(other, force=False)
    record.unlink()


def test_a_worker_without_supervisors_prepares_no_boxes(docker_alone: Site) -> None:
    box = BoxRef(ids.new_id(), 1)
    with pytest.raises(UnsupportedError, match="no supervisor"):
        docker_alone.runtime.prepare(box, docker_alone.spec())
    assert docker_alone.runtime.list_boxes() == []
