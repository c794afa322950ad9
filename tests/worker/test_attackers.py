"""What attacks in a box come to: they harm that box at most, which is said, and neither the worker nor other boxes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from support.attackers import Field, field, replacement, unharmed
from support.cluster import wait_until
from support.sites import collect, in_thread

from boxlite_server.errors import EngineError
from boxlite_server.worker.commands import ExecSpec, Process
from boxlite_server.worker.docker.exec import ExecProcess
from boxlite_server.worker.runtime import BoxRef
from boxlite_server.worker.supervisor import process as supervised_process
from boxlite_server.worker.supervisor.process import SupervisedProcess
from boxlite_server.worker.supervisor.program import program

SOON = 60.0  # seconds


@pytest.fixture(scope="module")
def honest(request: pytest.FixtureRequest) -> Iterator[Field]:
    """A worker whose boxes have the supervisor."""
    supervisor = program()
    assert supervisor is not None, "the supervisor is not built; `make build` does that"
    with field(request, supervisor) as made:
        yield made


@pytest.fixture(scope="module")
def usurped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """A worker whose boxes have an attacker in the supervisor's place, with the pid that the worker expects."""
    with field(request, replacement(tmp_path_factory.mktemp("replacement"))) as made:
        made.replaced("mute")  # the first box starts a thread
        yield made


@pytest.fixture(scope="module")
def bystander(honest: Field) -> BoxRef:
    """A box that no test attacks."""
    return honest.running_box()


@pytest.fixture(scope="module")
def box(honest: Field, bystander: BoxRef) -> BoxRef:
    """A box with commands that attack it from inside."""
    return honest.attacked()


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised_process, "ANSWER_PATIENCE", 0.5)


ORPHANS = f"for n in $(seq 1000); do ({'true & ' * 20}); done"


@contextmanager
def attacking(site: Field, box: BoxRef, attack: str, *arguments: str) -> Iterator[None]:
    """An attack by a command goes on during the block, and the command can be killed then."""
    process = site.attack(box, attack, *arguments)
    assert process.read() is not None
    yield
    process.kill()
    assert collect(process)[2] == 137


# ---- processes of the box against its supervisor ----


@pytest.mark.parametrize("user", ["", "box"])
def test_nobody_traces_the_supervisor_or_takes_its_memory_or_descriptors(
    honest: Field, bystander: BoxRef, user: str
) -> None:
    with unharmed(honest, bystander):
        box = honest.attacked(user=user)
        out, err, code = collect(honest.attack(box, "thief", "1"))
        assert (err, code) == (b"", 0)
        assert [line.split(maxsplit=1)[1] for line in out.splitlines()] == [b"[]", b"[]"]
        honest.runtime.remove(box, force=True)


def test_a_supervisor_without_descriptors_leaves_commands_to_the_engine(honest: Field, bystander: BoxRef) -> None:
    """Any process may set the limits of another one of its user."""
    with unharmed(honest, bystander):
        box = honest.attacked()
        collect(honest.attack(box, "limiter"))
        _try_to_run(honest, box)  # it may be told that the supervisor was lost
        process = honest.runtime.spawn(box, ExecSpec(("echo", "on")))
        assert isinstance(process, ExecProcess)
        assert collect(process) == (b"on\n", b"", 0)
        honest.runtime.remove(box, force=True)


def test_strangers_on_the_socket_are_not_heard(honest: Field, box: BoxRef, bystander: BoxRef) -> None:
    with unharmed(honest, bystander), attacking(honest, box, "stranger"):
        for _ in range(20):
            assert honest.run(box, "echo", "heard") == (b"heard\n", b"", 0)


def test_strangers_who_dial_before_the_supervisor_are_not_heard(honest: Field, bystander: BoxRef) -> None:
    """The main command runs before the supervisor dials, and keeps all places in the line of those who dial taken."""
    with unharmed(honest, bystander):
        box = honest.attacked(cmd=("/bin/sh", "-c", 'exec "$@"', "sh", *honest.command("stranger")))
        link = honest.link(box)
        assert honest.run(box, "echo", "on") == (b"on\n", b"", 0)  # whoever runs it
        wait_until(lambda: link.is_live or link.dropped > 8, "somebody to be heard or dropped")
        assert honest.run(box, "cat", "/proc/1/comm")[0] == b"init\n"
        assert link.dropped < 1000
        honest.runtime.remove(box, force=True)


def test_signals_without_end_delay_at_most(honest: Field, box: BoxRef, bystander: BoxRef) -> None:
    with unharmed(honest, bystander), attacking(honest, box, "signaller"):
        for _ in range(20):
            assert honest.run(box, "true")[2] == 0


def test_20_000_orphans_are_reaped_while_commands_go_on(honest: Field, box: BoxRef, bystander: BoxRef) -> None:
    with unharmed(honest, bystander):
        ended = in_thread(lambda: honest.run(box, "sh", "-c", ORPHANS))
        while ended.is_alive():
            assert honest.run(box, "true")[2] == 0
        count = "ls -d /proc/[0-9]* | wc -l"
        wait_until(lambda: int(honest.run(box, "sh", "-c", count)[0]) < 12, "all orphans to be reaped")


def test_processes_that_fork_while_they_are_killed_are_killed_all(honest: Field, bystander: BoxRef) -> None:
    with unharmed(honest, bystander):
        box = honest.attacked()
        with attacking(honest, box, "bomb", "100"):
            pass
        out, _, _ = honest.run(box, "sh", "-c", "grep -l box_attacker /proc/[0-9]*/cmdline")
        assert len(out.splitlines()) <= 1  # grep itself
        honest.runtime.remove(box, force=True)


def test_a_bomb_without_bounds_at_the_memory_limit_is_killed(honest: Field, bystander: BoxRef) -> None:
    with unharmed(honest, bystander):
        box = honest.attacked(memory_mib=128)
        _kill_at_the_limit(honest.attack(box, "heavy_bomb"))
        out, _, _ = honest.run(box, "sh", "-c", "grep -l box_attacker /proc/[0-9]*/cmdline")
        assert len(out.splitlines()) <= 1  # grep itself
        honest.runtime.remove(box, force=True)


def _kill_at_the_limit(process: Process) -> None:
    """Kill a command, in good time, once the kernel has killed processes of its box at the memory limit."""
    assert process.read() is not None
    wait_until(lambda: process.memory_limit_hit > 0, "the limit to be hit")
    began = time.monotonic()
    process.kill()
    assert collect(process)[2] == 137
    assert time.monotonic() - began < SOON


@pytest.mark.usefixtures("short_patience")
def test_what_a_dead_command_has_started_is_killed_although_the_box_has_stopped_its_keeper(
    honest: Field, bystander: BoxRef, new_image: Callable[..., str]
) -> None:
    image = new_image(Entrypoint=["sh", "-c", "[ $$ = 1 ] || exit 100; exec sleep 999"])
    with unharmed(honest, bystander):
        box = honest.running_box(image=image)
        process = honest.runtime.spawn(box, ExecSpec(("sh", "-c", "setsid sleep 54321 & echo $$; exec sleep 1000")))
        piece = process.read()
        assert piece is not None
        stop = "for p in $(ls -d /proc/[0-9]* | sort -V); do [ $(cat $p/comm) = init ] && kill -STOP ${p#/proc/}; done"
        _by_engine(honest, box, "sh", "-c", f"{stop}; kill -9 {int(piece[1])}")
        process.kill()
        assert b"54321" not in _by_engine(honest, box, "ps")
        honest.runtime.remove(box, force=True)
        assert collect(process)[2] == 137
        del process


def _by_engine(site: Field, box: BoxRef, *command: str) -> bytes:
    """What a command says that the engine starts in the box."""
    api = site.runtime._engine.api
    output = api.exec_start(api.exec_create(f"boxlite-{box.box_id}-{box.generation}", list(command))["Id"])
    assert isinstance(output, bytes)
    return output


@pytest.mark.parametrize("tty", [False, True])
def test_output_without_end_that_nobody_reads_waits_in_its_pipe(
    honest: Field, box: BoxRef, bystander: BoxRef, tty: bool
) -> None:
    with unharmed(honest, bystander):
        processes = [honest.runtime.spawn(box, ExecSpec(("yes",), tty=tty)) for _ in range(20)]
        for process in processes:
            assert process.read() is not None
        assert honest.run(box, "echo", "on") == (b"on\n", b"", 0)
        for process in processes:
            process.kill()
            assert collect(process)[2] == 137
        processes.clear()
        del process


def test_who_kills_a_supervisor_that_was_brought_in_does_not_become_it(
    honest: Field, bystander: BoxRef, new_image: Callable[..., str]
) -> None:
    image = new_image(Entrypoint=["sh", "-c", "[ $$ = 1 ] || exit 100; exec sleep 999"])
    with unharmed(honest, bystander):
        box = honest.attacked(image=image)
        assert "exit code is lost" in _lost(honest, box, lambda: _start_by_engine(honest, box, "killer"))
        for _ in range(3):
            assert honest.run(box, "echo", "on") == (b"on\n", b"", 0)  # by the engine's exec
        assert honest.link(box).dropped < 100
        honest.runtime.remove(box, force=True)


def test_nobody_but_root_traces_what_the_worker_starts_from_its_first_moment_on(
    honest: Field, bystander: BoxRef
) -> None:
    with unharmed(honest, bystander):
        box = honest.attacked(user="box")
        assert b"ermission denied" in honest.run(box, "cat", "/dev/boxlite/init")[1]  # why nobody can
        attack = honest.attack(box, "tracer")
        assert attack.read() == (1, b"tracing\n")
        for _ in range(20):
            _by_engine(honest, box, "/dev/boxlite/init", "--files")
        attack.kill()
        assert b"traced init" not in collect(attack)[0]
        honest.runtime.remove(box, force=True)
        del attack


def _lost(site: Field, box: BoxRef, attack: Callable[[], None]) -> str:
    """What is said of a command whose exit code an attack has made nobody know."""
    victim = site.runtime.spawn(box, ExecSpec(("sleep", "1000")))
    assert isinstance(victim, SupervisedProcess)
    attack()
    assert collect(victim)[2] == 137
    return victim.lost


def _start_by_engine(site: Field, box: BoxRef, attack: str) -> None:
    api = site.runtime._engine.api
    made = api.exec_create(f"boxlite-{box.box_id}-{box.generation}", list(site.command(attack)), stdout=False)["Id"]
    api.exec_start(made, detach=True)


# ---- somebody in the supervisor's place ----


def test_a_supervisor_that_never_dials_leaves_commands_to_the_engine(
    usurped: Field, honest: Field, bystander: BoxRef
) -> None:
    with unharmed(honest, bystander):
        box = usurped.replaced("mute")
        assert usurped.run(box, "echo", "on") == (b"on\n", b"", 0)
        assert usurped.runtime.inspect(box).supervisor == "none: the supervisor does not dial"
        usurped.runtime.remove(box, force=True)


def test_strangers_whose_sockets_take_an_hour_to_close_delay_no_other_box(
    usurped: Field, honest: Field, bystander: BoxRef
) -> None:
    with unharmed(honest, bystander):
        box = usurped.replaced("mute")
        _start_by_engine(usurped, box, "lingerer")
        wait_until(lambda: usurped.link(box).dropped > 0, "a stranger to be dropped")
        other = usurped.replaced("silent")
        wait_until(lambda: usurped.link(other).is_live, "the supervisor of another box to be heard")
        assert usurped.link(box).dropped < 20
        for each in (box, other):
            usurped.runtime.remove(each, force=True)


def test_a_greeting_without_its_end_leaves_commands_to_the_engine(
    usurped: Field, honest: Field, bystander: BoxRef
) -> None:
    with unharmed(honest, bystander):
        box = usurped.replaced("half_greeting")
        assert usurped.run(box, "echo", "on") == (b"on\n", b"", 0)
        assert usurped.runtime.inspect(box).supervisor == "none: the supervisor does not dial"
        usurped.runtime.remove(box, force=True)


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("tty", [False, True])
def test_a_supervisor_that_answers_nothing_is_told(usurped: Field, honest: Field, bystander: BoxRef, tty: bool) -> None:
    with unharmed(honest, bystander):
        box = usurped.replaced("silent")
        for _ in range(3):
            with pytest.raises(EngineError, match="the box's supervisor did not answer within"):
                usurped.runtime.spawn(box, ExecSpec(("true",), tty=tty))
        usurped.runtime.remove(box, force=True)


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize(
    "attack", ["flood", "sizes", "replay", "replay_left", "replay_end", "passer", "lingering_passer"]
)
def test_packets_that_no_supervisor_sends_are_dropped(
    usurped: Field, honest: Field, bystander: BoxRef, attack: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As fast as a process can send them, and with as many descriptors as there can be."""
    with unharmed(honest, bystander):
        box = usurped.replaced(attack)
        link, until = usurped.link(box), time.monotonic() + 3
        while time.monotonic() < until or not link.dropped:
            for tty in (False, True):
                _try_to_run(usurped, box, tty=tty)
        assert 0 < link.dropped < 200
        assert f"dropping the connection to the supervisor in boxlite-{box.box_id}" in caplog.text
        usurped.runtime.remove(box, force=True)


def _try_to_run(site: Field, box: BoxRef, *, tty: bool = False) -> None:
    """Start a command where that can be, and end it."""
    try:
        process = site.runtime.spawn(box, ExecSpec(("echo", "on"), tty=tty))
        process.kill()
    except EngineError:
        return
    collect(process)


@pytest.mark.usefixtures("short_patience")
def test_a_terminal_that_blocks_keeps_nobody_waiting(usurped: Field, honest: Field, bystander: BoxRef) -> None:
    """The threads that read from it and write to it come back although the box lives on."""
    with unharmed(honest, bystander):
        box = usurped.replaced("blocking_terminal")
        _hindered(usurped.runtime.spawn(box, ExecSpec(("cat",), tty=True)))
        wait_until(lambda: not _threads_at_terminals(), "what reads and writes to be back")
        usurped.runtime.remove(box, force=True)


def _hindered(process: Process) -> None:
    reader = in_thread(lambda: collect(process))
    for _ in range(3):
        began = time.monotonic()
        process.write(b"x" * 100_000, 0.5)
        assert time.monotonic() - began < 10
    process.resize(100, 30)
    process.close()
    reader.join(SOON)
    assert not reader.is_alive()


def _threads_at_terminals() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "terminal" in thread.name]


def test_a_supervisor_that_lies_harms_its_own_commands_alone(usurped: Field, honest: Field, bystander: BoxRef) -> None:
    """It claims commands that nobody has started, and ends at once what writes without end into the kept pipes."""
    with unharmed(honest, bystander):
        box = usurped.replaced("liar")
        for _ in range(20):
            out, err, code = usurped.run(box, "true")
            assert (set(out + err) <= set(b"y\n"), code) == (True, 0)
        usurped.runtime.remove(box, force=True)
