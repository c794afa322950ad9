"""Boxes with a supervisor, on a real engine: what runs in them, what is kept of them, and what the fallback takes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from support.sites import Site, abandon, collect, docker_site, in_thread

from boxlite_server import ids
from boxlite_server.errors import (
    EngineError,
    ExecutionError,
    InvalidArgumentError,
    InvalidStateError,
    StoppedError,
)
from boxlite_server.worker.commands import ExecSpec, Process
from boxlite_server.worker.docker.config import SUPERVISOR
from boxlite_server.worker.docker.exec import ExecProcess
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.holder import Holder
from boxlite_server.worker.runtime import BoxRef, Mount, Owner
from boxlite_server.worker.supervisor import process as supervised_process
from boxlite_server.worker.supervisor.links import Links
from boxlite_server.worker.supervisor.process import SupervisedProcess

NEEDS_PID_1 = ["sh", "-c", "[ $$ = 1 ] || exit 100; echo up; exec sleep 999"]


@pytest.fixture(scope="module")
def supervised(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from docker_site(request, supervised=True)


@pytest.fixture(scope="module")
def own_box(supervised: Site) -> Iterator[BoxRef]:
    """A running box that the tests share."""
    box = supervised.running_box()
    yield box
    supervised.runtime.remove(box, force=True)


def spawn(site: Site, box: BoxRef, *command: str, **fields: object) -> Process:
    return site.runtime.spawn(box, ExecSpec(command, **fields))  # type: ignore[arg-type]


def shell(site: Site, box: BoxRef, script: str, **fields: object) -> Process:
    return spawn(site, box, "sh", "-c", script, **fields)


def run(site: Site, box: BoxRef, *command: str, **fields: object) -> str:
    return collect(spawn(site, box, *command, **fields))[0].decode()


def name(box: BoxRef) -> str:
    return f"boxlite-{box.box_id}-{box.generation}"


def is_supervised(process: Process) -> bool:
    """Whether the command runs under a supervisor; ends it."""
    process.kill()
    collect(process)
    return isinstance(process, SupervisedProcess)


def test_commands_run_under_the_supervisor_of_the_box(supervised: Site, own_box: BoxRef) -> None:
    assert is_supervised(spawn(supervised, own_box, "sleep", "1000"))
    assert run(supervised, own_box, "cat", "/proc/1/comm") == "init\n"


def test_a_command_has_what_the_engines_exec_gives_it(supervised: Site, own_box: BoxRef, api: docker.APIClient) -> None:
    script = "id; env | sort; pwd; umask; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; cat /proc/self/cgroup"
    for fields in ({}, {"user": "box"}, {"user": "1234"}, {"user": "0:7"}, {"working_dir": "/tmp"}):
        process = shell(supervised, own_box, script, **fields)
        assert isinstance(process, SupervisedProcess)
        said = b""
        while not said:  # a busy engine now and then loses what a short command says
            exec_id = api.exec_create(
                name(own_box),
                ["sh", "-c", script],
                user=str(fields.get("user", "")),
                workdir=str(fields.get("working_dir", "")) or None,
            )["Id"]
            said = api.exec_start(exec_id)
        assert collect(process)[0].decode() == said.decode()


def test_a_terminal_has_its_size_before_the_commands_first_instruction(supervised: Site, own_box: BoxRef) -> None:
    for _ in range(20):
        process = spawn(supervised, own_box, "stty", "size", tty=True, cols=132, rows=40)
        assert collect(process)[0] == b"40 132\r\n"


@pytest.mark.parametrize("user", ["0", "1:0"])
def test_a_user_that_the_box_may_not_become_is_left_to_the_engine(supervised: Site, own_box: BoxRef, user: str) -> None:
    box = supervised.running_box(user="box")
    assert is_supervised(spawn(supervised, box, "sleep", "1000"))
    assert is_supervised(spawn(supervised, box, "sleep", "1000", user="box"))
    process = spawn(supervised, box, "id", "-u", user=user)
    assert isinstance(process, ExecProcess)
    assert collect(process)[2] == 0
    assert supervised.runtime.measure(box).commands_by_engine == 1
    supervised.runtime.remove(box, force=True)


def test_an_image_whose_init_is_process_1_keeps_it(supervised: Site, new_image: Callable[..., str]) -> None:
    box = supervised.running_box(image=new_image(Entrypoint=NEEDS_PID_1))
    first = spawn(supervised, box, "cat", "/proc/1/comm")
    assert isinstance(first, SupervisedProcess)
    assert collect(first)[0] == b"sleep\n"
    assert supervised.runtime.inspect(box).commands == 0
    process = spawn(supervised, box, "sleep", "1000")
    assert supervised.runtime.inspect(box).commands == 1
    assert is_supervised(process)
    supervised.runtime.stop(box, 1)
    supervised.runtime.start(box)
    assert is_supervised(spawn(supervised, box, "sleep", "1000"))
    supervised.runtime.remove(box, force=True)


def test_who_kills_a_supervisor_that_was_brought_in_harms_the_box_alone(
    supervised: Site, new_image: Callable[..., str]
) -> None:
    box = supervised.running_box(image=new_image(Entrypoint=NEEDS_PID_1))
    process = spawn(supervised, box, "sleep", "1000")
    assert isinstance(process, SupervisedProcess)
    collect(shell(supervised, box, "for p in /proc/[0-9]*; do [ $(cat $p/comm) = init ] && kill -9 ${p#/proc/}; done"))
    assert collect(process)[2] == 137
    assert "exit code is lost" in process.lost
    assert run(supervised, box, "echo", "on") == "on\n"
    supervised.runtime.remove(box, force=True)


def test_no_image_of_a_box_has_the_supervisor_in_it(
    supervised: Site, new_image: Callable[..., str], api: docker.APIClient
) -> None:
    for image, fields in (
        ({"Cmd": ["sleep", "999"]}, {}),
        ({"Cmd": ["sleep", "999"]}, {"cmd": ("sleep", "998")}),
        ({"Cmd": ["999"]}, {"entrypoint": ("sleep",), "cmd": ("997",)}),
        ({"Cmd": ["999"]}, {"entrypoint": ("sleep", "996")}),
    ):
        box = supervised.running_box(image=new_image(**image), **fields)
        assert run(supervised, box, "cat", "/proc/1/comm") == "init\n"
        supervised.runtime.disks.snapshot(box, box.box_id)
        config = api.inspect_image(f"boxlite/snapshot:{box.box_id}")["Config"]
        entrypoint = list(fields.get("entrypoint", ()))
        command = list(fields.get("cmd", () if entrypoint else image["Cmd"]))
        assert (config["Entrypoint"] or [], config["Cmd"] or []) == (entrypoint, command)
        with supervised.runtime.disks.export(box) as export:
            assert (list(export.settings.entrypoint), list(export.settings.cmd)) == (entrypoint, command)
            assert SUPERVISOR.encode() not in b"".join(export.tar)
        copy = BoxRef(ids.new_id(), 1)
        supervised.runtime.disks.clone(box, copy, supervised.spec(entrypoint=tuple(entrypoint), cmd=tuple(command)))
        supervised.runtime.start(copy)
        assert is_supervised(spawn(supervised, copy, "sleep", "1000"))
        for each in (box, copy):
            supervised.runtime.remove(each, force=True)


def test_errors_name_the_main_command_and_not_the_supervisor(supervised: Site) -> None:
    missing = supervised.new_box(cmd=("/no/such", "thing"))
    with pytest.raises(ExecutionError, match=r"main command of box .* not found in the box: exec /no/such"):
        supervised.runtime.start(missing)
    ended = supervised.running_box(cmd=("sh", "-c", "exit 3"))
    with pytest.raises(StoppedError, match=r"its main command \(sh -c 'exit 3'\) ended with exit code 3"):
        while True:
            collect(spawn(supervised, ended, "true"))
    for box in (missing, ended):
        supervised.runtime.remove(box, force=True)


def test_the_main_command_gets_signals_and_its_exit_code_is_the_boxs(supervised: Site) -> None:
    box = supervised.new_box(cmd=("sh", "-c", "trap 'echo usr; exit 9' USR1; echo up; while :; do sleep 0.05; done"))
    process = supervised.runtime.attach_main(box)
    supervised.runtime.start(box)
    assert process.read() == (1, b"up\n")
    process.signal(signal.SIGUSR1)
    assert collect(process) == (b"usr\n", b"", 9)
    supervised.runtime.remove(box, force=True)


def test_the_main_command_can_be_stopped_and_the_supervisor_goes_on(supervised: Site) -> None:
    box = supervised.running_box(cmd=("sleep", "999"))
    process = supervised.runtime.attach_main(box)
    state = "grep State: $(ls -d /proc/[0-9]* | sort -V | sed -n 2p)/status"
    for number, told in ((signal.SIGSTOP, "T"), (signal.SIGCONT, "S")):
        process.signal(number)
        until = f"until {state} | grep -q {told}; do sleep 0.02; done; echo {told}"
        assert collect(shell(supervised, box, until))[0].decode() == f"{told}\n"
    process.close()
    supervised.runtime.remove(box, force=True)


def test_a_command_is_killed_although_the_box_has_stopped_its_supervisor(
    supervised: Site, new_image: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised_process, "ANSWER_PATIENCE", 0.5)
    box = supervised.running_box(image=new_image(Entrypoint=NEEDS_PID_1))
    process = shell(supervised, box, "setsid sleep 1000 & echo $!; sleep 1000")
    piece = process.read()
    assert piece is not None
    # All that is called init is the supervisor or a keeper, also the keeper of this command.
    stop = "for p in /proc/[0-9]*; do [ $(cat $p/comm) = init ] && kill -STOP ${p#/proc/}; done; echo done"
    stopper = shell(supervised, box, stop)
    assert stopper.read() == (1, b"done\n")
    process.kill()
    with pytest.raises(EngineError, match="supervisor did not answer"):
        spawn(supervised, box, "true")
    supervised.runtime.stop(box, 0)
    assert collect(process)[2] == 137
    stopper.close()
    supervised.runtime.remove(box, force=True)


def test_a_paused_box_takes_no_command(supervised: Site, api: docker.APIClient) -> None:
    box = supervised.running_box()
    assert is_supervised(spawn(supervised, box, "sleep", "1000"))
    api.pause(name(box))
    with pytest.raises(InvalidStateError, match="paused"):
        spawn(supervised, box, "true")
    api.unpause(name(box))
    assert is_supervised(spawn(supervised, box, "sleep", "1000"))
    supervised.runtime.remove(box, force=True)


def test_commands_end_with_a_box_that_is_killed(supervised: Site, api: docker.APIClient) -> None:
    box = supervised.running_box(cmd=("sleep", "999"))
    process = shell(supervised, box, "echo said; exec sleep 1000")
    assert process.read() == (1, b"said\n")
    api.kill(name(box))
    assert collect(process)[2] == 137
    assert process.lost == "the command ended with its box: its main command (sleep 999) ended with exit code 137"
    with pytest.raises(StoppedError):
        spawn(supervised, box, "true")
    supervised.runtime.start(box)
    assert is_supervised(spawn(supervised, box, "sleep", "1000"))
    supervised.runtime.remove(box, force=True)


def test_nothing_can_be_mounted_over_the_supervisor(supervised: Site) -> None:
    for path in ("/dev/boxlite", "/dev/boxlite/", "/dev/boxlite/socket"):
        with pytest.raises(InvalidArgumentError, match="the supervisor of the box is there"):
            supervised.new_box(mounts=(Mount(path, host_path=str(supervised.allowed)),))


def test_nothing_is_left_of_a_box_that_was_removed(supervised: Site) -> None:
    assert isinstance(supervised.runtime, DockerRuntime)
    box = supervised.running_box()
    assert name(box) in supervised.runtime._supervisors.names()
    supervised.runtime.remove(box, force=True)
    assert name(box) not in supervised.runtime._supervisors.names()


# ---- the worker is killed and restarted ----


class Lives:
    """Workers after each other on one home: a runtime for each."""

    def __init__(self, docker_host: str, home: Path, program: Path) -> None:
        self._owner = Owner(ids.new_id(), ids.new_id())
        self._docker_host, self._home, self._program = docker_host, home, program
        self.site_of: Callable[[DockerRuntime], Site]

    def next(self) -> DockerRuntime:
        links = Links(self._home / "boxes", self._program)
        holder = Holder(self._home)
        return DockerRuntime(lambda: self._owner, self._docker_host, holder=holder, links=links)


def test_nothing_of_50_commands_is_lost_when_the_worker_is_killed(
    docker_host: str, supervised: Site, tmp_path: Path
) -> None:
    assert isinstance(supervised.runtime, DockerRuntime)
    links = supervised.runtime._supervisors._links
    assert links is not None
    lives = Lives(docker_host, tmp_path, links._program)
    first = lives.next()
    site = Site(first, supervised.image, supervised.bare_image, supervised.allowed)
    box = site.running_box(memory_mib=256)
    # Each says numbers, of which the first worker takes some, reads a line, and ends with a code of its own.
    script = "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; read line; echo $line >&2; exit {}"
    processes = [shell(site, box, script.format(number)) for number in range(50)]
    taken = []
    for number, process in enumerate(processes):
        piece = process.read() if number % 2 else None
        taken.append(piece[1] if piece else b"")
    handles = [process.handle for process in processes]
    for process in processes:
        abandon(process)
    first.close()

    second = lives.next()
    again = [second.readopt(box, handle) for handle in handles]
    for number, process in enumerate(again):
        assert process.write(b"line %d\n" % number, 60) > 0
    rest = [(b"", b"", -1)] * len(again)

    def finish(number: int) -> None:
        rest[number] = collect(again[number])

    threads = [in_thread(lambda number=number: finish(number)) for number in range(len(again))]  # type: ignore[misc]
    for thread in threads:
        thread.join(120)
    said = b"".join(b"%d\n" % number for number in range(2000))
    for number, (out, err, code) in enumerate(rest):
        assert taken[number] + out == said
        assert (err, code, again[number].lost) == (b"line %d\n" % number, number, "")
    second.remove(box, force=True)
    second.close()


def test_what_ended_while_there_was_no_worker_is_told_to_the_next(
    docker_host: str, supervised: Site, tmp_path: Path
) -> None:
    assert isinstance(supervised.runtime, DockerRuntime)
    links = supervised.runtime._supervisors._links
    assert links is not None
    lives = Lives(docker_host, tmp_path, links._program)
    first = lives.next()
    site = Site(first, supervised.image, supervised.bare_image, supervised.allowed)
    box = site.running_box()
    process = shell(site, box, "until test -e go; do sleep 0.02; done; echo last; exit 7")
    terminal = shell(site, box, "echo up; read x; echo got $x; exit 8", tty=True)
    assert terminal.read() == (1, b"up\r\n")
    handles = process.handle, terminal.handle
    abandon(process)
    abandon(terminal)
    first.close()
    client = docker.APIClient(base_url=docker_host, version="auto")
    client.exec_start(client.exec_create(name(box), ["touch", "go"])["Id"])
    client.close()
    second = lives.next()
    found, adopted = (second.readopt(box, handle) for handle in handles)
    assert collect(found) == (b"last\n", b"", 7)
    assert adopted.tty
    adopted.resize(100, 30)
    assert adopted.write(b"me\n", 60) == 3
    assert collect(adopted) == (b"me\r\ngot me\r\n", b"", 8)
    second.remove(box, force=True)
    second.close()
