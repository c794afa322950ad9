"""Boxes whose main command is process 1 itself, on a real engine: those of images with an entrypoint, and of inits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import docker
import pytest
from support.sites import Site, collect

from boxlite_server import ids
from boxlite_server.errors import ExecutionError, StoppedError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker import runtime
from boxlite_server.worker.docker.config import container_config
from boxlite_server.worker.runtime import BoxRef, BoxSpec, BoxStatus, Owner

NewImage = Callable[..., str]

NEEDS_PID_1 = ["sh", "-c", "[ $$ = 1 ] || exit 100; echo up; exec sleep 999"]
PATIENCE = 40  # seconds for a stop
SOON = PATIENCE / 2  # a stop that waits for nothing takes less, on a busy machine too


@pytest.fixture(scope="module")
def init_image(new_image: NewImage) -> str:
    return new_image(Entrypoint=NEEDS_PID_1)


def runs(site: Site, box: BoxRef) -> bool:
    return site.runtime.inspect(box).status is BoxStatus.RUNNING


def first_process(site: Site, box: BoxRef) -> bytes:
    return collect(site.runtime.spawn(box, ExecSpec(("cat", "/proc/1/comm"))))[0].strip()


def stop(site: Site, box: BoxRef) -> tuple[int | None, bool]:
    """Stop the box; returns the exit code, and whether the stop waited for nothing."""
    began = time.monotonic()
    code = site.runtime.stop(box, PATIENCE).exit_code
    return code, time.monotonic() - began < SOON


def started(site: Site, image: str, **fields: object) -> BoxRef:
    """A box whose main command has said its first line."""
    box = site.new_box(image=image, **fields)
    process = site.runtime.attach_main(box)
    site.runtime.start(box)
    assert process.read() is not None
    process.close()
    return box


def test_an_image_whose_init_has_to_be_process_1_runs(docker_alone: Site, init_image: str) -> None:
    box = docker_alone.running_box(image=init_image)
    assert first_process(docker_alone, box) == b"sleep"
    copy = BoxRef(ids.new_id(), 1)
    docker_alone.runtime.disks.clone(box, copy, docker_alone.spec())
    docker_alone.runtime.disks.snapshot(box, "first-process")
    stop(docker_alone, box)
    restored = BoxRef(box.box_id, 2)
    docker_alone.runtime.disks.restore(box, "first-process", 2, docker_alone.spec())
    for other in (copy, restored):
        docker_alone.runtime.start(other)
        assert first_process(docker_alone, other) == b"sleep"
        docker_alone.runtime.remove(other, force=True)


def test_an_import_of_such_a_box_runs_too(docker_alone: Site, init_image: str) -> None:
    box = docker_alone.new_box(image=init_image)
    for image_entrypoint in (True, False):
        other = BoxRef(ids.new_id(), 1)
        with docker_alone.runtime.disks.export(box) as export:
            spec = docker_alone.spec(
                entrypoint=export.settings.entrypoint,
                cmd=export.settings.cmd,
                env=export.settings.env,
                image_entrypoint=image_entrypoint,
                stop_signal=export.settings.stop_signal,
            )
            docker_alone.runtime.disks.load(other, spec, export.tar)
        process = docker_alone.runtime.attach_main(other)
        docker_alone.runtime.start(other)
        if image_entrypoint:
            assert process.read() == (1, b"up\n")
            process.close()
        else:
            assert collect(process)[2] == 100
        docker_alone.runtime.remove(other, force=True)
    docker_alone.runtime.remove(box, force=True)


@pytest.mark.parametrize(
    ("image", "fields", "init"),
    [
        ({"Cmd": ["sh"]}, {}, True),
        ({}, {}, True),
        ({"Cmd": ["/sbin/init"]}, {}, False),
        ({"Cmd": ["sh"]}, {"cmd": ("/usr/bin/tini", "--", "sh")}, False),
        ({"Entrypoint": ["/run.sh"]}, {}, False),
        ({"Entrypoint": ["/run.sh"], "Cmd": ["a"]}, {"cmd": ("b",)}, False),
        ({"Entrypoint": ["/init"]}, {"entrypoint": ("sleep", "9")}, True),
        ({"Cmd": ["/init"]}, {"entrypoint": ("sleep", "9")}, True),
        ({"Cmd": ["sh"]}, {"entrypoint": ("/init",)}, False),
        ({"Cmd": ["sh"]}, {"entrypoint": ("/run.sh",), "image_entrypoint": True}, False),
        ({"Cmd": ["sh"]}, {"cmd": ("initdb",)}, True),
        ({"Cmd": ["/bin/sh", "-c", "exec /sbin/init --log"]}, {}, False),
        ({"Cmd": ["/bin/sh", "-c", "echo init"]}, {}, True),
        ({"Cmd": ["/bin/sh", "-c"]}, {}, True),
    ],
)
def test_what_runs_under_the_engines_init(image: dict[str, object], fields: dict[str, object], init: bool) -> None:
    spec = BoxSpec("some:image", **fields)  # type: ignore[arg-type]
    config = container_config(BoxRef("box", 1), spec, {"Config": image}, Owner("cluster", "worker"))
    assert config["HostConfig"]["Init"] is init


def test_a_command_without_a_handler_is_stopped_at_once(docker_alone: Site, init_image: str) -> None:
    box = started(docker_alone, init_image)
    assert stop(docker_alone, box) == (137, True)
    docker_alone.runtime.remove(box, force=False)


def test_a_command_that_puts_the_default_back_is_stopped_at_once(docker_alone: Site, new_image: NewImage) -> None:
    script = "trap 'trap - TERM; kill -TERM $$' TERM; echo up; while :; do sleep 0.1; done"
    box = started(docker_alone, new_image(Entrypoint=["sh", "-c", script]))
    assert stop(docker_alone, box) == (137, True)
    docker_alone.runtime.remove(box, force=False)


@pytest.mark.parametrize("name", ["TERM", "QUIT", "RTMIN+3"])
def test_a_stop_is_the_images_own_signal_and_its_handler_has_its_time(
    docker_alone: Site, new_image: NewImage, name: str
) -> None:
    number = {"TERM": 15, "QUIT": 3, "RTMIN+3": 37}[name]
    script = f"trap 'sleep 1; exit 7' {number}; echo up; while :; do sleep 0.1; done"
    image = new_image(Entrypoint=["sh", "-c", script], StopSignal=f"SIG{name}")
    box = started(docker_alone, image)
    assert stop(docker_alone, box) == (7, True)
    docker_alone.runtime.remove(box, force=False)


def test_a_command_that_refuses_to_end_is_killed_after_the_timeout(docker_alone: Site, new_image: NewImage) -> None:
    script = "trap 'echo no' TERM; echo up; while :; do sleep 0.1; done"
    box = started(docker_alone, new_image(Entrypoint=["sh", "-c", script]))
    began = time.monotonic()
    assert docker_alone.runtime.stop(box, 1).exit_code == 137
    assert time.monotonic() - began >= 1
    docker_alone.runtime.remove(box, force=False)


@pytest.mark.parametrize("number", [1, 2, 15])
def test_a_signal_ends_a_command_without_a_handler(docker_alone: Site, init_image: str, number: int) -> None:
    box = docker_alone.new_box(image=init_image)
    process = docker_alone.runtime.attach_main(box)
    docker_alone.runtime.start(box)
    assert process.read() == (1, b"up\n")
    process.signal(28)  # a change of the window's size ends nothing
    assert runs(docker_alone, box)
    process.signal(number)
    assert collect(process)[2] == 137
    assert not docker_alone.runtime.inspect(box).interrupted
    docker_alone.runtime.remove(box, force=False)


@pytest.mark.parametrize("command", ["no-such-command", "/no/such/command", "/etc/passwd", "/broken"])
def test_an_entrypoint_that_cannot_be_executed(docker_alone: Site, api: docker.APIClient, command: str) -> None:
    base = api.create_container(docker_alone.image, ["sh", "-c", "echo '#!/no/such' >/broken; chmod +x /broken"])["Id"]
    api.start(base)
    api.wait(base)
    api.commit(base, "boxlite-test-broken", "latest", conf={"Entrypoint": [command]})
    api.remove_container(base)
    box = docker_alone.new_box(image="boxlite-test-broken:latest")
    for _ in range(2):
        with pytest.raises(ExecutionError, match="cannot be executed" if command == "/etc/passwd" else "not found"):
            docker_alone.runtime.start(box)
        assert not runs(docker_alone, box)
    docker_alone.runtime.remove(box, force=False)
    api.remove_image("boxlite-test-broken:latest")


def test_a_start_does_not_wait_for_a_child_of_process_1(
    docker_alone: Site, init_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_SPAWN_PATIENCE", float("inf"))
    box = docker_alone.running_box(image=init_image)
    docker_alone.runtime.remove(box, force=True)


def test_how_the_main_command_ended_is_told_before_the_engine_has_seen_it(
    docker_alone: Site, new_image: NewImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine refuses a command for some milliseconds while it still calls the box running."""
    box = docker_alone.new_box(image=new_image(Cmd=["false"]))
    docker_alone.runtime.start(box)
    while runs(docker_alone, box):
        pass
    client: Any = docker_alone.runtime._engine.api  # type: ignore[attr-defined]
    inspect, late = client.inspect_container, iter(range(5))

    def inspect_late(container: str) -> Any:
        found = inspect(container)
        if next(late, None) is not None:
            found["State"].update(Running=True, Status="running", Pid=2**30)  # no process has this pid
        return found

    monkeypatch.setattr(client, "inspect_container", inspect_late)
    with pytest.raises(StoppedError, match=r"\(false\) ended with exit code 1"):
        docker_alone.runtime.spawn(box, ExecSpec(("true",)))
    docker_alone.runtime.remove(box, force=True)
