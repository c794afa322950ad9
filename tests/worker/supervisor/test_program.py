"""Commands that the supervisor runs in real containers, of root and of a user without any capability."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from support.cluster import wait_until
from support.supervised_box import INIT, NewBox, Supervised
from support.supervisor_peer import (
    BY_SIGNAL,
    DIRECTORY,
    EXEC,
    GROUP,
    IDENTITY,
    RESOURCES,
    USER,
    Packet,
)


@pytest.fixture(scope="module")
def crowded(new_supervised: NewBox) -> Supervised:
    """A box of root with more groups."""
    box = new_supervised()
    groups = "one:x:101:box\ntwo:x:102:nobody,box\nthree:x:103:boxer\nfour:x:1000:box\n"
    assert box.peer.run("sh", "-c", 'printf "$0" >> /etc/group', groups)[0] == 0
    return box


# ---- how a command ends ----


def test_hello_names_the_protocol_and_no_command(box: Supervised) -> None:
    assert box.peer.hello == Packet("H", 0, 1, 0)


@pytest.mark.parametrize("code", [0, 1, 127, 255])
def test_the_exit_code(box: Supervised, code: int) -> None:
    command = box.peer.spawn("sh", "-c", f"exit {code}")
    assert command.started().type == "A"
    assert command.end() == Packet("X", command.id, code)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_command_that_a_signal_ends(box: Supervised, number: int) -> None:
    command = box.peer.spawn("sh", "-c", f"kill -{number} $$")
    assert command.end() == Packet("X", command.id, 128 + number, 0, BY_SIGNAL)


def test_output_and_errors_arrive_whole_and_apart(box: Supervised) -> None:
    assert box.peer.run("sh", "-c", "seq 20000; echo no >&2; exit 3") == (
        3,
        b"".join(b"%d\n" % n for n in range(1, 20001)),
        b"no\n",
    )


@pytest.mark.parametrize(
    ("argv", "options", "stage", "error"),
    [
        (["nosuch"], {}, EXEC, errno.ENOENT),
        (["/bin/nosuch"], {}, EXEC, errno.ENOENT),
        ([""], {}, EXEC, errno.ENOENT),
        (["/etc/passwd"], {}, EXEC, errno.EACCES),
        (["passwd"], {"env": {"PATH": "/etc"}}, EXEC, errno.EACCES),
        (["/bin"], {}, EXEC, errno.EACCES),
        (["/etc/passwd/x"], {}, EXEC, errno.ENOTDIR),
        (["true"], {"env": {"PATH": ""}}, EXEC, errno.ENOENT),
        (["true", "x" * 200_000], {}, EXEC, errno.E2BIG),
        (["true"], {"working_dir": "/nosuch"}, DIRECTORY, errno.ENOENT),
        (["true"], {"working_dir": "/etc/passwd"}, DIRECTORY, errno.ENOTDIR),
        (["true"], {"user": "nosuch"}, USER, errno.ENOENT),
        (["true"], {"user": "4294967296"}, USER, errno.ENOENT),
        (["true"], {"user": "box:nosuch"}, GROUP, errno.ENOENT),
    ],
)
def test_a_command_that_cannot_be_started(
    box: Supervised, argv: list[str], options: dict[str, object], stage: int, error: int
) -> None:
    command = box.peer.spawn(*argv, **options)  # type: ignore[arg-type]
    assert command.end() == Packet("E", command.id, error, stage)


def test_a_directory_that_only_the_user_may_enter(new_supervised: NewBox) -> None:
    box = new_supervised(CapDrop=["DAC_OVERRIDE", "DAC_READ_SEARCH"])
    assert box.peer.run("sh", "-c", "mkdir -m 700 /tmp/own; chown 1000 /tmp/own")[0] == 0
    assert box.peer.run("pwd", user="box", working_dir="/tmp/own") == (0, b"/tmp/own\n", b"")
    refused = box.peer.spawn("pwd", user="nobody", working_dir="/tmp/own")
    assert refused.end() == Packet("E", refused.id, errno.EACCES, DIRECTORY)


def test_the_path_of_the_commands_own_environment_is_searched(box: Supervised) -> None:
    assert box.peer.run("true", env={"PATH": "/nosuch:/etc/passwd::/etc:/bin"})[0] == 0
    assert box.peer.run("true", env={})[0] == 0  # the default path


# ---- as the engine's exec has it ----


def said(box: Supervised, user: str, *command: str) -> bytes:
    """What a command, which says something, says under the engine's exec. On a busy machine the engine may lose the
    output of a command that ends at once."""
    found: list[bytes] = []

    def is_said() -> bool:
        code, output = box.exec(*command, user=user)
        assert code == 0, output
        found.append(output)
        return bool(output)

    wait_until(is_said, "the engine's exec to give the output")
    return found[-1]


@pytest.mark.parametrize("user", ["", "root", "0", "box", "1000", "box:nogroup", "nobody", "1234", "1234:5", "0:box"])
def test_a_user_has_the_groups_and_the_home_of_the_engines_exec(crowded: Supervised, user: str) -> None:
    groups = "id -G | tr ' ' '\\n' | sort -u"  # newer engines name a group twice
    for script in ("id -u; id -g", groups, "echo $HOME", "grep -e Uid -e Gid -e Cap -e NoNewPrivs /proc/self/status"):
        engines = said(crowded, user, "sh", "-c", script)
        assert crowded.peer.run("sh", "-c", script, user=user) == (0, engines, b"")


def test_the_environment_is_the_given_one_and_home(box: Supervised) -> None:
    inspected = box.api.inspect_container(box.container)
    given = dict(variable.split("=", 1) for variable in inspected["Config"]["Env"])
    given["HOSTNAME"] = inspected["Config"]["Hostname"]
    _, output, _ = box.peer.run("env", env={**given, "A": "b=c"})
    engines = said(box, "", "env")
    assert sorted(output.splitlines()) == sorted([*engines.splitlines(), b"A=b=c"])


def test_a_given_home_stays(box: Supervised) -> None:
    assert box.peer.run("sh", "-c", "echo $HOME", env={"PATH": "/bin", "HOME": "/x"}) == (0, b"/x\n", b"")


def test_a_box_whose_root_is_read_only(new_supervised: NewBox) -> None:
    box = new_supervised(ReadonlyRootfs=True)
    script = "exec 2>&1; id; pwd; env | sort; touch /x; echo on > /dev/shm/x && cat /dev/shm/x"
    env = dict(line.split("=", 1) for line in said(box, "", "env").decode().splitlines())
    engines = said(box, "", "sh", "-c", script)
    assert box.peer.run("sh", "-c", script, env=env) == (0, engines, b"")
    assert b"on\n" in engines
    command = box.peer.spawn("stty", "size", terminal=(132, 40))
    assert read_terminal(*command.started().descriptors) == b"40 132\r\n"
    command.end()


def test_limits_and_signals_are_those_of_the_engines_exec(box: Supervised) -> None:
    status = "grep -e SigBlk -e SigIgn -e SigCgt -e Shd -e Cap -e NoNew -e Seccomp /proc/self/status"
    script = f"ulimit -a; umask; {status}; ls /proc/self/fd"
    assert box.peer.run("sh", "-c", script) == (0, said(box, "", "sh", "-c", script), b"")


def test_a_user_that_the_box_may_not_become_is_told(box: Supervised) -> None:
    command = box.peer.spawn("id", "-u", user="nobody")
    if b"CapEff:\t0000000000000000" in said(box, "", "cat", "/proc/self/status"):
        assert command.end() == Packet("E", command.id, errno.EPERM, IDENTITY)
        assert box.peer.run("id", "-un", user="box")[1] == b"box\n"  # who it is already
    else:
        assert command.end().type == "X"


def test_a_strange_passwd_harms_nothing(new_supervised: NewBox) -> None:
    box = new_supervised()
    run = box.peer.run
    assert run("sh", "-c", "rm /etc/passwd; mkfifo /etc/passwd")[0] == 0
    assert run("grep", "Uid", "/proc/self/status", user="5")[1] == b"Uid:\t5\t5\t5\t5\n"
    assert run("sh", "-c", "rm /etc/passwd; yes x:y:z::::::: | head -c 3000000 > /etc/passwd")[0] == 0
    command = box.peer.spawn("true", user="x")
    assert command.end() == Packet("E", command.id, errno.ENOENT, USER)
    assert run("sh", "-c", "rm /etc/passwd; printf 'x\\n\\n:::::\\nx:::::\\nbox:x:77:77:::' > /etc/passwd")[0] == 0
    assert run("id", "-u", user="box")[1] == b"77\n"


def test_anybody_may_open_a_commands_own_output(box: Supervised) -> None:
    assert box.peer.run("sh", "-c", "echo 1 > /dev/stdout; echo 2 > /dev/stderr") == (0, b"1\n", b"2\n")


# ---- terminals ----


def read_terminal(master: int) -> bytes:
    """All output of a terminal, until its command has closed it."""
    os.set_blocking(master, True)
    output = b""
    try:
        while piece := os.read(master, 1 << 16):
            output += piece
    except OSError as error:
        assert error.errno == errno.EIO
    os.close(master)
    return output


def test_a_terminal_has_its_size_from_the_first_instruction(box: Supervised) -> None:
    for _ in range(20):
        command = box.peer.spawn("stty", "size", terminal=(123, 45))
        (master,) = command.started().descriptors
        assert read_terminal(master) == b"45 123\r\n"
        assert command.end().a == 0


def test_a_terminal_controls_its_command(box: Supervised) -> None:
    command = box.peer.spawn("sh", "-c", "tty; echo x > /dev/tty; sleep 1000", terminal=(80, 24))
    (master,) = command.started().descriptors
    os.set_blocking(master, True)
    output = b""
    while b"x" not in output:
        output += os.read(master, 100)
    assert output.startswith(b"/dev/pts/")
    os.write(master, b"\x03")
    assert command.end().a == 128 + signal.SIGINT
    os.close(master)


def test_a_terminal_belongs_to_the_commands_user(new_supervised: NewBox) -> None:
    command = new_supervised().peer.spawn("sh", "-c", "stat -c %U $(tty)", terminal=(80, 24), user="box")
    (master,) = command.started().descriptors
    assert read_terminal(master) == b"box\r\n"
    command.end()


# ---- signals and trees ----


def test_a_signal_goes_to_the_command_alone(box: Supervised) -> None:
    command = box.peer.spawn("sh", "-c", "trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.05; done")
    assert command.read_line() == "ready"
    assert command.signal(signal.SIGUSR1) == 0
    assert command.read_line() == "caught"
    assert command.end().a == 7


def test_a_signal_after_the_end_is_too_late(box: Supervised) -> None:
    command = box.peer.spawn("true")
    assert box.peer.next("X", command.id).a == 0
    assert command.signal(signal.SIGTERM) == errno.ESRCH
    assert command.kill() == errno.ESRCH
    command.forget()
    assert command.kill() == errno.ESRCH


def test_no_signal_but_the_two_that_cannot_be_blocked_harms_a_keeper(box: Supervised) -> None:
    """Also those that C libraries keep for themselves."""
    command = box.peer.spawn("sh", "-c", "for n in $(seq 64); do [ $n != 9 ] && kill -$n $PPID; done; exit 4")
    assert command.end() == Packet("X", command.id, 4)


def test_a_signal_that_is_none_is_refused(box: Supervised) -> None:
    command = box.peer.spawn("sleep", "1000")
    assert command.signal(65) == errno.EINVAL
    assert command.signal(2**32 - 1) == errno.EINVAL
    assert command.signal(signal.SIGKILL) == 0
    assert command.end().a == 128 + signal.SIGKILL


ESCAPES = """
sleep 98765 &
setsid sleep 98765 &
(setsid sh -c '(env -i /bin/sleep 98765 &) ' &)
setsid sh -c 'trap "" TERM HUP INT; sleep 98765 & setsid sleep 98765 & sleep 98765' &
echo ready
sleep 98765
"""


def test_a_kill_ends_all_that_the_command_has_started(box: Supervised) -> None:
    command = box.peer.spawn("sh", "-c", ESCAPES)
    other = box.peer.spawn("sleep", "87654")
    assert command.read_line() == "ready"
    wait_until(lambda: box.count("sleep 98765") + box.count("/bin/sleep 98765") == 7, "all to have started")
    assert command.kill() == 0
    assert box.count("sleep 98765") + box.count("/bin/sleep 98765") == 0
    assert command.end() == Packet("X", command.id, 128 + signal.SIGKILL, 0, BY_SIGNAL)
    assert box.count("sleep 87654") == 1
    assert other.kill() == 0
    assert other.end().a == 128 + signal.SIGKILL


def test_what_a_command_leaves_behind_lives_on(box: Supervised) -> None:
    script = "sleep 76543 & echo $!; (setsid sh -c 'echo $$; exec sleep 76543' &); exit 6"
    command = box.peer.spawn("sh", "-c", script)
    left = [command.read_line(), command.read_line()]
    assert command.end().a == 6
    assert box.count("sleep 76543") == 2
    assert box.keepers() == []
    assert box.peer.run("kill", *left)[0] == 0
    wait_until(lambda: box.count("sleep 76543") == 0, "the sleepers to end")


def test_a_fork_bomb_is_killed_where_no_process_can_be_made(new_supervised: NewBox) -> None:
    box = new_supervised(PidsLimit=100)
    awk = """awk 'BEGIN { while (1) system("(setsid sleep 54321 &)") }'"""  # goes on where it cannot fork
    script = f"exec 2> /dev/null; for n in 1 2 3 4; do setsid {awk} & done; sleep 54321"
    command = box.peer.spawn("sh", "-c", script)
    wait_until(lambda: len(box.processes()) >= 99, "the bomb to have gone off")
    assert box.peer.spawn("true").end().type in "EX"
    assert command.kill() == 0
    assert command.end().a == 128 + signal.SIGKILL
    wait_until(lambda: len(box.processes()) == 2, "the box to be as before")
    assert box.peer.run("true")[0] == 0


def test_a_chain_of_forks_is_killed(box: Supervised) -> None:
    script = "n=$1; exec 2>/dev/null; while :; do (sh -c 'sleep 0.01; sleep 0.02 & sleep 0.01' &); done"
    command = box.peer.spawn("sh", "-c", script)
    wait_until(lambda: len(box.processes()) > 10, "the chain to have begun")
    assert command.kill() == 0
    command.end()
    wait_until(lambda: len(box.processes()) == 2, "the box to be as before")


def test_no_process_can_be_made(new_supervised: NewBox) -> None:
    box = new_supervised(PidsLimit=2)
    command = box.peer.spawn("true")
    assert command.end() == Packet("E", command.id, errno.EAGAIN, RESOURCES)


# ---- many, and for long ----


def test_five_hundred_commands_and_then_another_one(box: Supervised) -> None:
    for _ in range(500):
        assert box.peer.run("true")[0] == 0
    assert box.peer.run("echo", "still") == (0, b"still\n", b"")
    status = Path(f"/proc/{box.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    assert int(line.split()[1]) <= 1024  # KiB
    assert len(list(Path(f"/proc/{box.pid}/fd").iterdir())) < 10
    wait_until(lambda: len(box.processes()) == 2, "the box to be as before")


def test_the_ends_of_too_many_commands_are_not_forgotten(new_supervised: NewBox) -> None:
    box = new_supervised()
    commands = []
    for _ in range(512):
        commands.append(box.peer.spawn("true"))
        assert box.peer.next("X", commands[-1].id).a == 0
    refused = box.peer.spawn("true")
    assert refused.end() == Packet("E", refused.id, errno.EAGAIN, RESOURCES)
    box.peer.send(Packet("F", commands[77].id))
    assert box.peer.run("true")[0] == 0
    box.peer.hang_up()
    assert box.peer.come_back(box.pid).b == 511
    told = {box.peer.next("X", command.id).id for command in commands if command.id != commands[77].id}
    assert len(told) == 511


def test_the_same_spawn_twice_starts_one_command(box: Supervised) -> None:
    command = box.peer.spawn("sh", "-c", "echo once; sleep 1000")
    started = command.started()
    box.peer.send(Packet("S", command.id, descriptors=(0, 0, 0, 0)))
    assert box.peer.next("A", command.id) == started
    assert command.read_line() == "once"
    command.kill()
    assert command.read() == b""
    command.end()


# ---- the worker goes away ----


def test_commands_go_on_without_the_worker(box: Supervised) -> None:
    peer = box.peer
    lasting, ended = peer.spawn("sleep", "1000"), peer.spawn("sh", "-c", "exit 5")
    ending = peer.spawn("sh", "-c", "while [ -e /tmp/wait ]; do sleep 0.05; done; exit 6")
    assert peer.run("touch", "/tmp/wait")[0] == 0
    for command in (lasting, ended, ending):
        command.started()
    assert peer.next("X", ended.id).a == 5
    peer.hang_up()
    assert box.exec("rm", "/tmp/wait")[0] == 0
    wait_until(lambda: len(box.keepers()) == 1, "a command to end meanwhile")
    assert peer.come_back(box.pid).b == 3
    assert [lasting.started().type, ended.end().a, ending.end().a] == ["A", 5, 6]
    assert lasting.kill() == 0
    lasting.end()
    peer.hang_up()
    assert peer.come_back(box.pid).b == 0


def test_a_worker_that_comes_back_gets_the_terminal_again(box: Supervised) -> None:
    peer = box.peer
    command = peer.spawn("sh", "-c", "read line; echo got $line; exit 4", terminal=(80, 24))
    wait_until(lambda: len(box.keepers()) == 1, "the command to start")
    peer.hang_up()  # without a look at what the supervisor has said
    assert peer.come_back(box.pid).b == 1
    (master,) = command.started().descriptors
    os.write(master, b"me\n")
    os.close(master)
    assert peer.next("X", command.id).a == 4
    peer.hang_up()
    assert peer.come_back(box.pid).b == 1
    (master,) = command.started().descriptors
    assert b"got me" in read_terminal(master)
    assert command.end().a == 4


# ---- as process 1, and beside it ----


def log(box: Supervised) -> bytes:
    return bytes(box.api.logs(box.container))


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 9", 9), ("kill -9 $$", 137)])
def test_the_box_ends_with_its_main_commands_code(new_supervised: NewBox, script: str, code: int) -> None:
    box = new_supervised("sh", "-c", f"echo said; sleep 0.1; {script}", accept=False)
    assert box.api.wait(box.container)["StatusCode"] == code
    assert log(box) == b"said\n"


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        ("nosuch", 127, b"exec nosuch: no such file or directory\n"),
        ("/etc/passwd", 126, b"exec /etc/passwd: permission denied\n"),
    ],
)
def test_a_main_command_that_cannot_be_executed(new_supervised: NewBox, command: str, code: int, text: bytes) -> None:
    box = new_supervised(command, accept=False)
    assert box.api.wait(box.container)["StatusCode"] == code
    assert log(box) == text


def test_a_stop_reaches_the_main_command(new_supervised: NewBox) -> None:
    box = new_supervised("sh", "-c", "trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.05; done")
    wait_until(lambda: log(box) == b"ready\n", "the main command to be ready")
    box.api.stop(box.container, timeout=60)
    assert box.api.inspect_container(box.container)["State"]["ExitCode"] == 3
    assert log(box) == b"ready\nasked\n"


def test_the_main_command_has_the_boxs_terminal(new_supervised: NewBox) -> None:
    script = "tty; read line; echo got $line"
    box = new_supervised("sh", "-c", script, accept=False, tty=True, stdin_open=True)
    attached = box.api.attach_socket(box.container, params={"stdin": 1, "stdout": 1, "stream": 1})
    attached._sock.sendall(b"me\n")
    assert box.api.wait(box.container)["StatusCode"] == 0
    assert b"/dev/" in log(box) and b"got me" in log(box)
    attached.close()


def test_orphans_are_reaped(new_supervised: NewBox) -> None:
    box = new_supervised("sh", "-c", "(sh -c 'sleep 0.2 & sleep 0.1 &' &); sleep 100000")
    box.peer.run("sh", "-c", "for n in 1 2 3 4 5 6 7 8 9; do (sleep 0.1 &); done")
    wait_until(lambda: len(box.processes()) == 2, "all orphans to be gone")


def test_the_supervisor_can_be_brought_in(new_supervised: NewBox) -> None:
    box = new_supervised(as_init=False)
    made = box.api.exec_create(box.container, [INIT])["Id"]
    box.api.exec_start(made, detach=True)
    hello = box.peer.accept()
    assert hello.a == 1
    assert box.peer.run("sh", "-c", "(setsid sleep 0.1 &)")[0] == 0
    killed = box.peer.spawn("sh", "-c", ESCAPES)
    assert killed.read_line() == "ready"
    assert killed.kill() == 0
    assert killed.end().a == 137
    assert box.api.exec_inspect(made)["Running"]
    wait_until(lambda: len(box.processes()) == 2, "the orphan to be reaped")


def test_commands_end_with_a_supervisor_that_is_killed(new_supervised: NewBox) -> None:
    box = new_supervised(as_init=False)
    made = box.api.exec_create(box.container, [INIT])["Id"]
    box.api.exec_start(made, detach=True)
    box.peer.accept()
    box.peer.spawn("sh", "-c", ESCAPES).started()
    os.kill(box.api.exec_inspect(made)["Pid"], signal.SIGKILL)
    with pytest.raises(ConnectionResetError):
        box.peer.receive()
    wait_until(lambda: len(box.processes()) == 1, "the commands to be killed")
