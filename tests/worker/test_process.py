"""What every implementation of `Process` promises."""

from __future__ import annotations

import signal

import pytest
from support.sites import ALL_RUNTIMES, Site, collect, in_thread

from boxlite_server.errors import ExecutionError, InvalidArgumentError, InvalidStateError, StoppedError
from boxlite_server.worker.commands import ExecSpec, Process
from boxlite_server.worker.runtime import BoxRef

RUNTIMES = ALL_RUNTIMES


def spawn(site: Site, box: BoxRef, *command: str, **fields: object) -> Process:
    return site.runtime.spawn(box, ExecSpec(command, **fields))  # type: ignore[arg-type]


def shell(site: Site, box: BoxRef, script: str, **fields: object) -> Process:
    return spawn(site, box, "sh", "-c", script, **fields)


def test_streams_and_exit_code_arrive_apart(site: Site, box: BoxRef) -> None:
    assert collect(shell(site, box, "echo out; echo err >&2; exit 3")) == (b"out\n", b"err\n", 3)


def test_silent_success(site: Site, box: BoxRef) -> None:
    assert collect(spawn(site, box, "true")) == (b"", b"", 0)


def test_exit_code_127_of_a_shell_is_no_failed_spawn(site: Site, box: BoxRef) -> None:
    assert collect(shell(site, box, "exit 127"))[2] == 127


def test_all_of_a_large_output_arrives(site: Site, box: BoxRef) -> None:
    out, err, code = collect(shell(site, box, "head -c 10000000 /dev/zero; echo end >&2"))
    assert (len(out), err, code) == (10_000_000, b"end\n", 0)


def test_bytes_are_not_touched(site: Site, box: BoxRef) -> None:
    data = bytes(range(256)) * 40
    process = spawn(site, box, "cat")
    assert process.write(data, 60) == len(data)
    process.close_input(60)
    assert collect(process) == (data, b"", 0)


def test_end_of_input_ends_cat_and_may_be_repeated(site: Site, box: BoxRef) -> None:
    process = spawn(site, box, "cat")
    assert process.write(b"hello\n", 60) == 6
    process.close_input(60)
    process.close_input(60)
    assert collect(process) == (b"hello\n", b"", 0)


def test_write_does_not_wait_for_ever_for_a_command_that_does_not_read(site: Site, box: BoxRef) -> None:
    process = spawn(site, box, "sleep", "1000")
    data = b"x" * 8_000_000
    taken = process.write(data, 0.2)
    assert taken < len(data)
    process.kill()
    assert collect(process)[2] == 137


def test_a_large_input_is_taken_whole_by_a_command_that_reads(site: Site, box: BoxRef) -> None:
    process = spawn(site, box, "wc", "-c")
    data = b"x" * 3_000_000
    sent = 0
    while sent < len(data):
        sent += process.write(data[sent:], 60)
    process.close_input(60)
    assert int(collect(process)[0]) == len(data)


def test_environment_and_directory(site: Site, box: BoxRef) -> None:
    process = shell(site, box, 'echo "$A $PWD"', env={"A": "1 =2"}, working_dir="/tmp")
    assert collect(process)[0] == b"1 =2 /tmp\n"


def test_signal(site: Site, box: BoxRef) -> None:
    process = shell(site, box, "trap 'echo got it; exit 9' USR1; echo ready; while :; do sleep 0.02; done")
    assert process.read() == (1, b"ready\n")
    process.signal(signal.SIGUSR1)
    assert collect(process) == (b"got it\n", b"", 9)


def test_signalled_command_ends_with_128_and_the_number(site: Site, box: BoxRef) -> None:
    process = spawn(site, box, "sleep", "1000")
    process.signal(signal.SIGTERM)
    assert collect(process)[2] == 143


def test_unknown_signal_is_refused(site: Site, box: BoxRef) -> None:
    process = spawn(site, box, "sleep", "1000")
    for number in (0, -9, 65):
        with pytest.raises(InvalidArgumentError):
            process.signal(number)
    process.kill()
    assert collect(process)[2] == 137


def test_kill_takes_the_process_group_along(site: Site, box: BoxRef) -> None:
    # The child holds the output open: it ends only when both are gone.
    process = shell(site, box, "sleep 1000 & echo $!; wait")
    piece = process.read()
    assert piece is not None
    process.kill()
    assert collect(process)[2] == 137
    # A zombie has no command line; a pid that is gone has no file.
    check = shell(site, box, f"cat /proc/{int(piece[1])}/cmdline 2>/dev/null")
    assert collect(check)[0] == b""


def test_kill_takes_sessions_and_daemons_along(site: Site, box: BoxRef) -> None:
    orphan = "sh -c 'echo $$; exec sleep 1000'"
    process = shell(site, box, f"setsid {orphan} & (setsid {orphan} &) ; sleep 1000")
    said = b""
    while said.count(b"\n") < 2:
        piece = process.read()
        assert piece is not None
        said += piece[1]
    process.kill()
    assert collect(process)[2] == 137
    for pid in said.split():
        assert collect(shell(site, box, f"cat /proc/{int(pid)}/cmdline 2>/dev/null"))[0] == b""


def test_the_output_ends_with_a_command_that_leaves_processes_running(site: Site, box: BoxRef) -> None:
    process = shell(site, box, "(while sleep 0.02; do echo more; done) & sleep 1000 & echo $!; echo err >&2; exit 3")
    out, err, code = collect(process)
    assert (err, code) == (b"err\n", 3)
    left = int(out.split(b"\n")[0])
    assert collect(shell(site, box, f"kill {left}"))[2] == 0


def test_signal_after_the_end_is_refused_and_kill_does_nothing(site: Site, box: BoxRef) -> None:
    process = spawn(site, box, "true")
    assert process.read() is None
    assert process.wait() == 0
    with pytest.raises(InvalidStateError):
        process.signal(signal.SIGTERM)
    process.kill()
    process.close()


def test_close_ends_a_blocked_read_and_kills_nothing(site: Site, box: BoxRef) -> None:
    process = shell(site, box, "echo $$; exec sleep 1000")
    piece = process.read()
    assert piece is not None
    reader = in_thread(process.read)
    process.close()
    reader.join(60)
    assert not reader.is_alive()
    assert process.wait() == 137
    pid = int(piece[1])
    assert collect(shell(site, box, f"kill -9 {pid}"))[2] == 0


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("command", ["no-such-command", "/no/such/command"])
def test_missing_command(site: Site, box: BoxRef, command: str, tty: bool) -> None:
    with pytest.raises(ExecutionError, match=f"command '{command}' not found"):
        spawn(site, box, command, tty=tty)


def test_file_that_is_not_executable(site: Site, box: BoxRef) -> None:
    with pytest.raises(ExecutionError, match="permission denied"):
        spawn(site, box, "/etc/passwd")


def test_missing_working_directory(site: Site, box: BoxRef) -> None:
    with pytest.raises(ExecutionError, match="working directory '/no/such' not found"):
        spawn(site, box, "true", working_dir="/no/such")


def test_missing_user(site: Site, box: BoxRef) -> None:
    with pytest.raises(ExecutionError, match="user 'ghost' not found"):
        spawn(site, box, "true", user="ghost")


def test_box_at_rest(site: Site) -> None:
    box = site.new_box()
    with pytest.raises(StoppedError):
        spawn(site, box, "true")
    site.runtime.start(box)
    site.runtime.stop(box, 0)
    with pytest.raises(StoppedError):
        spawn(site, box, "true")
    site.runtime.remove(box, force=False)


def test_the_end_of_the_box_ends_its_commands(site: Site) -> None:
    box = site.running_box()
    process = spawn(site, box, "sleep", "1000")
    site.runtime.remove(box, force=True)
    assert collect(process)[2] == 137


def test_terminal(site: Site, box: BoxRef) -> None:
    process = shell(site, box, "test -t 0 && test -t 1 && echo yes; cat >/dev/null; exit 4", tty=True)
    assert process.read() == (1, b"yes\r\n")
    process.resize(100, 40)
    process.close_input(60)
    assert collect(process)[2] == 4


@pytest.mark.parametrize("text", [b"", b"line\n", b"abc"])
def test_end_of_input_on_a_terminal_ends_cat(site: Site, box: BoxRef, text: bytes) -> None:
    process = shell(site, box, "stty -echo; echo ready; cat; exit 4", tty=True)
    assert process.tty
    assert process.read() == (1, b"ready\r\n")
    assert process.write(text, 60) == len(text)
    assert process.close_input(60)
    assert collect(process) == (text.replace(b"\n", b"\r\n"), b"", 4)


def test_end_of_input_waits_for_a_terminal_that_is_not_read(site: Site, box: BoxRef) -> None:
    process = shell(site, box, "stty -echo; echo ready; read x; cat >/dev/null; exit 4", tty=True)
    assert process.read() == (1, b"ready\r\n")
    process.signal(signal.SIGSTOP)
    while process.write(b"0123456789abcde\n" * 100_000, 1):
        pass
    assert not process.close_input(0.1)
    process.signal(signal.SIGCONT)
    assert process.close_input(60)
    assert collect(process)[2] == 4


def test_a_terminal_has_a_size_from_the_start_or_soon_after(site: Site, box: BoxRef) -> None:
    wait = 'until [ -n "$(stty size 2>/dev/null | grep -v "^0")" ]; do :; done; stty size'
    assert collect(shell(site, box, wait, tty=True))[0] == b"24 80\r\n"
    assert collect(shell(site, box, wait, tty=True, cols=132, rows=40))[0] == b"40 132\r\n"


class TestMain:
    """The box's main command as a process."""

    def test_attached_before_start_misses_nothing(self, site: Site) -> None:
        box = site.new_box(cmd=("sh", "-c", "echo first; echo second >&2; exit 5"))
        process = site.runtime.attach_main(box)
        site.runtime.start(box)
        assert collect(process) == (b"first\n", b"second\n", 5)
        site.runtime.remove(box, force=False)

    def test_signals_without_being_attached(self, site: Site) -> None:
        box = site.new_box(cmd=("sh", "-c", "trap 'echo hup; exit 3' HUP; echo ready; while :; do sleep 0.1; done"))
        with pytest.raises(InvalidStateError):
            site.runtime.signal(box, 1)
        process = site.runtime.attach_main(box)
        site.runtime.start(box)
        assert process.read() == (1, b"ready\n")
        with pytest.raises(InvalidArgumentError):
            site.runtime.signal(box, 65)
        site.runtime.signal(box, 1)
        assert collect(process) == (b"hup\n", b"", 3)
        with pytest.raises(InvalidStateError):
            site.runtime.signal(box, 1)
        site.runtime.remove(box, force=False)

    def test_input_and_its_end(self, site: Site) -> None:
        box = site.new_box(cmd=("cat",))
        process = site.runtime.attach_main(box)
        assert process.write(b"early\n", 60) == 6
        site.runtime.start(box)
        assert process.read() == (1, b"early\n")
        assert process.write(b"late\n", 60) == 5
        process.close_input(60)
        assert collect(process) == (b"late\n", b"", 0)
        site.runtime.remove(box, force=False)

    def test_attached_late_gets_what_was_said(self, site: Site) -> None:
        box = site.new_box(cmd=("sh", "-c", "echo said; read line; echo $line"))
        first = site.runtime.attach_main(box)
        site.runtime.start(box)
        assert first.read() == (1, b"said\n")
        late = site.runtime.attach_main(box)
        assert late.read() == (1, b"said\n")
        assert late.write(b"done\n", 60) == 5
        assert collect(late) == (b"done\n", b"", 0)
        assert collect(first) == (b"done\n", b"", 0)
        site.runtime.remove(box, force=False)

    def test_attached_late_to_a_second_run_gets_that_alone(self, site: Site) -> None:
        box = site.new_box(cmd=("sh", "-c", "echo said; echo and so >&2; read line; echo $line; exit 6"))
        for word in (b"one\n", b"two\n", b"three\n"):
            site.runtime.start(box)
            first = site.runtime.attach_main(box)
            said = sorted(piece for piece in (first.read(), first.read()) if piece)
            assert said == [(1, b"said\n"), (2, b"and so\n")]
            late = site.runtime.attach_main(box)
            assert late.write(word, 60) == len(word)
            assert collect(late) == (b"said\n" + word, b"and so\n", 6)
            assert collect(first) == (word, b"", 6)
            site.runtime.stop(box, 1)
        site.runtime.remove(box, force=True)

    def test_second_run_does_not_repeat_the_first(self, site: Site) -> None:
        box = site.new_box(cmd=("sh", "-c", "echo $(cat); exit 6"))
        for word in (b"one\n", b"two\n"):
            process = site.runtime.attach_main(box)
            site.runtime.start(box)
            assert process.write(word, 60) == len(word)
            process.close_input(60)
            assert collect(process) == (word, b"", 6)
            site.runtime.stop(box, 1)
        site.runtime.remove(box, force=False)

    def test_signal_and_kill(self, site: Site) -> None:
        box = site.new_box(cmd=("sleep", "1000"))
        process = site.runtime.attach_main(box)
        site.runtime.start(box)
        process.signal(signal.SIGTERM)
        assert collect(process)[2] == 143
        process = site.runtime.attach_main(box)
        site.runtime.start(box)
        process.kill()
        assert collect(process)[2] == 137
        site.runtime.remove(box, force=True)

    def test_kill_before_start_ends_the_attachment(self, site: Site) -> None:
        box = site.new_box()
        process = site.runtime.attach_main(box)
        process.kill()
        assert collect(process) == (b"", b"", 137)
        site.runtime.remove(box, force=False)

    def test_letting_go_leaves_a_shell_running(self, site: Site) -> None:
        box = site.running_box()
        process = site.runtime.attach_main(box)
        process.close()
        assert collect(spawn(site, box, "echo", "alive"))[0] == b"alive\n"
        site.runtime.remove(box, force=True)
