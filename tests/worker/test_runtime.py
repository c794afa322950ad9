"""What every `BoxRuntime` promises about boxes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from support.sites import ALL_RUNTIMES, Site, collect

from boxlite_server import ids
from boxlite_server.errors import (
    ExecutionError,
    ImageError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    StoppedError,
)
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.runtime import BoxRef, BoxStatus

RUNTIMES = ALL_RUNTIMES


def states_of(site: Site, box: BoxRef) -> list[tuple[int, BoxStatus]]:
    return [(s.box.generation, s.status) for s in site.runtime.list_boxes() if s.box.box_id == box.box_id]


def run_in(site: Site, box: BoxRef, script: str) -> bytes:
    return collect(site.runtime.spawn(box, ExecSpec(("sh", "-c", script))))[0]


def test_a_life(site: Site) -> None:
    box = site.new_box()
    state = site.runtime.inspect(box)
    assert (state.status, state.pid, state.exit_code) == (BoxStatus.CONFIGURED, None, None)
    state = site.runtime.start(box)
    assert state.status is BoxStatus.RUNNING
    assert state.pid is not None and state.pid > 0
    assert state.exit_code is None
    state = site.runtime.stop(box, 5)
    assert (state.status, state.pid, state.exit_code) == (BoxStatus.STOPPED, None, 143)
    assert site.runtime.start(box).status is BoxStatus.RUNNING
    site.runtime.remove(box, force=True)
    with pytest.raises(NotFoundError):
        site.runtime.inspect(box)


def test_every_verb_may_be_repeated(site: Site) -> None:
    box = site.new_box()
    assert site.runtime.create(box, site.spec()).status is BoxStatus.CONFIGURED
    assert states_of(site, box) == [(1, BoxStatus.CONFIGURED)]
    assert site.runtime.stop(box, 1).status is BoxStatus.CONFIGURED
    started = site.runtime.start(box)
    assert started.engine_life == site.runtime.life()
    assert site.runtime.start(box) == started
    assert site.runtime.create(box, site.spec()) == replace(started, engine_life="")
    stopped = site.runtime.stop(box, 1)
    assert site.runtime.stop(box, 1) == stopped
    site.runtime.remove(box, force=False)
    site.runtime.remove(box, force=False)
    assert states_of(site, box) == []


def test_a_running_box_is_removed_only_by_force(site: Site) -> None:
    box = site.running_box()
    with pytest.raises(InvalidStateError, match="running"):
        site.runtime.remove(box, force=False)
    assert site.runtime.inspect(box).status is BoxStatus.RUNNING
    site.runtime.remove(box, force=True)


def test_a_later_generation_replaces_the_former(site: Site) -> None:
    first = site.running_box()
    second = BoxRef(first.box_id, 2)
    with pytest.raises(NotFoundError):
        site.runtime.start(second)
    site.runtime.create(second, site.spec())
    assert states_of(site, first) == [(2, BoxStatus.CONFIGURED)]
    verbs: list[Callable[[], object]] = [
        lambda: site.runtime.create(first, site.spec()),
        lambda: site.runtime.start(first),
        lambda: site.runtime.stop(first, 1),
        lambda: site.runtime.remove(first, force=True),
        lambda: site.runtime.inspect(first),
        lambda: site.runtime.spawn(first, ExecSpec(("true",))),
        lambda: site.runtime.attach_main(first),
    ]
    for verb in verbs:
        with pytest.raises(InvalidStateError, match="generation 1 is over"):
            verb()
    site.runtime.remove(BoxRef(first.box_id, 3), force=True)
    assert states_of(site, first) == []


def test_a_failed_image_leaves_the_former_generation_alone(site: Site) -> None:
    box = site.running_box()
    with pytest.raises(ImageError):
        site.runtime.create(BoxRef(box.box_id, 2), site.spec(image="127.0.0.1:9/no/such:image"))
    assert site.runtime.inspect(box).status is BoxStatus.RUNNING
    site.runtime.remove(box, force=True)


def test_unknown_box(site: Site) -> None:
    box = BoxRef(ids.new_id(), 1)
    signal = partial(site.runtime.signal, number=1)
    for verb in (site.runtime.start, site.runtime.inspect, site.runtime.attach_main, signal):
        with pytest.raises(NotFoundError):
            verb(box)
    site.runtime.remove(box, force=False)


def test_an_image_that_cannot_be_had(site: Site) -> None:
    for image in ("127.0.0.1:9/no/such:image", "Not A Reference::"):
        box = BoxRef(ids.new_id(), 1)
        with pytest.raises(ImageError):
            site.runtime.create(box, site.spec(image=image))
        assert states_of(site, box) == []


def test_more_cpus_than_there_are(site: Site) -> None:
    box = BoxRef(ids.new_id(), 1)
    with pytest.raises(InvalidArgumentError):
        site.runtime.create(box, site.spec(cpus=(os.cpu_count() or 1) + 1))
    assert states_of(site, box) == []


@pytest.mark.parametrize("fields", [{"cmd": ("no-such-command",)}, {"entrypoint": ("/no/such/command",)}])
def test_a_main_command_that_is_not_there(site: Site, fields: dict[str, object]) -> None:
    box = site.new_box(**fields)
    for _ in range(2):
        with pytest.raises(ExecutionError, match="not found"):
            site.runtime.start(box)
        state = site.runtime.inspect(box)
        assert state.status in (BoxStatus.STOPPED, BoxStatus.FAILED)
        assert state.exit_code == 127
    site.runtime.remove(box, force=False)


def test_a_main_command_may_say_127_itself(site: Site) -> None:
    box = site.new_box(cmd=("sh", "-c", "exit 127"))
    process = site.runtime.attach_main(box)
    site.runtime.start(box)
    assert collect(process)[2] == 127
    assert site.runtime.stop(box, 1).exit_code == 127
    site.runtime.remove(box, force=False)


@pytest.mark.parametrize("script", ["exit 3", "sleep 0.2; exit 3"])
def test_a_command_in_a_box_that_has_ended_is_told_how(site: Site, script: str) -> None:
    box = site.new_box(cmd=("sh", "-c", script))
    process = site.runtime.attach_main(box)
    site.runtime.start(box)
    assert collect(process)[2] == 3
    with pytest.raises(StoppedError, match=r"its main command \(sh -c .*exit 3'?\) ended with exit code 3"):
        site.runtime.spawn(box, ExecSpec(("true",)))
    site.runtime.remove(box, force=False)


def test_a_box_without_command_stays_up(site: Site) -> None:
    for image in (site.image, site.bare_image):
        box = site.running_box(image=image)
        assert run_in(site, box, "echo here") == b"here\n"
        assert site.runtime.inspect(box).status is BoxStatus.RUNNING
        site.runtime.remove(box, force=True)


def test_environment_reaches_main_and_other_commands(site: Site) -> None:
    box = site.new_box(env={"A": "from the box"}, cmd=("sh", "-c", 'echo "$A"; read forever'))
    process = site.runtime.attach_main(box)
    site.runtime.start(box)
    assert process.read() == (1, b"from the box\n")
    process.close()
    assert run_in(site, box, 'echo "$A"') == b"from the box\n"
    site.runtime.remove(box, force=True)


def test_a_stubborn_command_is_killed_after_the_timeout(site: Site) -> None:
    box = site.new_box(cmd=("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"))
    process = site.runtime.attach_main(box)
    site.runtime.start(box)
    assert process.read() == (1, b"ready\n")
    assert site.runtime.stop(box, 1).exit_code == 137
    assert collect(process)[2] == 137
    site.runtime.remove(box, force=False)


def test_changes_are_reported(site: Site) -> None:
    changed, stopping = threading.Event(), threading.Event()
    watcher = threading.Thread(target=site.runtime.watch, args=(changed.set, stopping), daemon=True)
    watcher.start()
    box = site.new_box()
    verbs: list[Callable[[], object]] = [
        lambda: site.runtime.start(box),
        lambda: site.runtime.stop(box, 0),
        lambda: site.runtime.remove(box, force=False),
    ]
    expected: list[list[tuple[int, BoxStatus]]] = [[(1, BoxStatus.RUNNING)], [(1, BoxStatus.STOPPED)], []]
    for verb, states in zip(verbs, expected, strict=True):
        verb()
        # The verb has returned, so a list asked for after the report shows at least its effect.
        while states_of(site, box) != states:
            assert changed.wait(60), f"no report of {states}"
            changed.clear()
    stopping.set()
    # This change wakes a watcher that waits for one.
    site.runtime.remove(site.new_box(), force=True)
    watcher.join(60)
    assert not watcher.is_alive()


def test_capacity(site: Site) -> None:
    site.runtime.ping()
    capacity = site.runtime.capacity()
    assert capacity.cpus > 0
    assert capacity.memory_mib > 0
    assert capacity.engine_version


def test_commands_in_a_box_are_counted_while_they_run(site: Site) -> None:
    box = site.running_box()
    assert site.runtime.inspect(box).commands == 0
    processes = [site.runtime.spawn(box, ExecSpec(("sleep", "600"))) for _ in range(2)]
    assert site.runtime.inspect(box).commands == 2
    for left, process in ((1, processes[0]), (0, processes[1])):
        process.kill()
        assert collect(process)[2] == 137
        assert site.runtime.inspect(box).commands == left
    site.runtime.remove(box, force=True)


def test_usage_of_a_box_in_every_state(site: Site) -> None:
    box = site.new_box()
    created = site.runtime.measure(box)
    assert (created.cpu_percent, created.memory_bytes) == (0, 0)
    assert created.boot.box_config_ms is not None
    assert created.boot.image_prepare_ms is not None
    assert created.boot.box_spawn_ms is None
    site.runtime.start(box)
    running = site.runtime.measure(box)
    assert running.memory_bytes is not None and running.memory_bytes > 0
    assert running.cpu_percent is not None and running.cpu_percent >= 0
    assert running.boot.box_spawn_ms is not None
    assert running.boot.container_init_ms is not None
    assert running.boot.total_ms is not None and created.boot.total_ms is not None
    assert running.boot.total_ms >= created.boot.total_ms
    site.runtime.stop(box, 0)
    stopped = site.runtime.measure(box)
    assert (stopped.cpu_percent, stopped.memory_bytes) == (0, 0)
    site.runtime.remove(box, force=False)
    with pytest.raises(NotFoundError):
        site.runtime.measure(box)


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143), ("kill -11 $$", 139)],
)
def test_the_exit_code_tells_how_the_main_command_ended(site: Site, script: str, code: int) -> None:
    box = site.new_box(cmd=("sh", "-c", script))
    process = site.runtime.attach_main(box)
    site.runtime.start(box)
    assert collect(process)[2] == code
    state = site.runtime.stop(box, 1)
    assert (state.status, state.exit_code) == (BoxStatus.STOPPED, code)
    site.runtime.remove(box, force=False)
