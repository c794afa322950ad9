"""`run` and `exec`: bytes in, bytes out, signals, exit codes, and connections that break."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import random
import signal
import subprocess
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_server import BOX, EXECUTION, FakeServer, Script, Socket, error

from boxlite_server.client import stream

Boxlite = Callable[..., int]
Popen = Callable[..., "subprocess.Popen[bytes]"]
Capture = pytest.CaptureFixture[str]
ID = BOX["box_id"]
EOF = {"type": "stdin_eof"}
WAIT = 60  # seconds; far more than anything here takes


def ends_with(code: int) -> Script:
    return lambda socket: socket.exit(code)


def until_the_client_leaves(socket: Socket) -> Iterator[object]:
    with contextlib.suppress(StopIteration):
        while True:
            yield socket.receive()


def test_exec_sends_the_command_and_keeps_the_streams_apart(
    server: FakeServer, boxlite: Boxlite, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    first: list[object] = []

    def command(socket: Socket) -> None:
        first.append(socket.receive())
        socket.stdout(b"out\xff\x00\n")
        socket.stderr(b"err\n")
        socket.binary(b"\x09of an unknown channel")
        socket.text(type="error", message="9 bytes are lost")
        socket.stdout(b"more")
        socket.exit(3)

    server.on_exec(command)
    assert boxlite("exec", "-e", "A=1", "-w", "/tmp", "-u", "me", "web", "--", "sh", "-c", "exit 3") == 3
    # Older servers do not run a command in one request.
    assert server.lines[:2] == ["POST /v1/boxes/web/run", "POST /v1/boxes/web/exec"]
    assert server.requests[1].body == {
        "command": "sh",
        "args": ["-c", "exit 3"],
        "tty": False,
        "stdin": False,
        "env": {"A": "1"},
        "working_dir": "/tmp",
        "user": "me",
    }
    assert first == [EOF]
    assert capfdbinary.readouterr() == (b"out\xff\x00\nmore", b"err\nboxlite: 9 bytes are lost\n")


def test_exec_passes_flags_of_the_command_on(server: FakeServer, boxlite: Boxlite) -> None:
    server.on_exec(ends_with(0))
    assert boxlite("exec", "web", "ls", "-i", "--url", "--", "x") == 0
    body = server.requests[1].body
    assert body == {"command": "ls", "args": ["-i", "--url", "--", "x"], "tty": False, "stdin": False}


def test_exec_detached_only_starts(server: FakeServer, boxlite: Boxlite, capfd: Capture) -> None:
    server.on_exec(ends_with(9))
    assert boxlite("exec", "-d", "web", "--", "sleep", "9") == 0
    assert server.lines == ["POST /v1/boxes/web/exec"]
    assert capfd.readouterr() == ("", "")


def test_attach_carries_key_and_prefix(server: FakeServer, boxlite: Boxlite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXLITE_API_KEY", "s3cret")
    server.on("POST", "/v1/acme/boxes/web/exec", (201, {"execution_id": EXECUTION}))
    server.on_attach(f"/v1/acme/boxes/web/executions/{EXECUTION}/attach", ends_with(0))
    assert boxlite("--path-prefix", "acme", "exec", "web", "true") == 0
    assert server.requests[1].headers["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (422, error("execution_failed", "cannot run 'nope': not found"), 127),
        (422, error("execution_failed", "cannot run '/etc/passwd': Permission denied"), 126),
        (404, error("not_found", "no box 'web'"), 125),
        (409, error("stopped", "box 'web' is stopped"), 125),
    ],
)
def test_a_command_that_never_ran(
    server: FakeServer, boxlite: Boxlite, capfd: Capture, status: int, body: dict[str, Any], code: int
) -> None:
    server.on("POST", "/v1/boxes/web/exec", (status, body))
    assert boxlite("exec", "web", "nope") == code
    assert capfd.readouterr().err == f"Error: {body['error']['message']}\n"
    server.on_run(ends_with(0))
    server.on("POST", f"/v1/boxes/{ID}/start", (status, body))
    assert boxlite("run", "--rm", "alpine", "nope") == code
    assert server.lines[-1] == f"DELETE /v1/boxes/{ID}?force=true"


def test_a_refused_attach_is_an_error(server: FakeServer, boxlite: Boxlite, capfd: Capture) -> None:
    server.on_exec((409, error("already_exists", "another client is attached")))
    assert boxlite("exec", "web", "sh") == 125
    assert capfd.readouterr().err == "Error: another client is attached\n"


def test_run_attaches_before_it_starts(server: FakeServer, boxlite: Boxlite, capfd: Capture) -> None:
    def command(socket: Socket) -> None:
        assert socket.receive() == EOF
        socket.stdout(b"hello\n")
        socket.exit(4)

    server.on_run(command)
    assert boxlite("run", "--name", "web", "alpine", "echo", "hello") == 4
    assert server.lines == [
        "POST /v1/boxes",
        f"GET /v1/boxes/{ID}/attach",
        f"POST /v1/boxes/{ID}/start",
    ]
    body = server.requests[0].body
    assert (body["name"], body["cmd"], body["detach"]) == ("web", ["echo", "hello"], False)
    assert "tty" not in body
    assert capfd.readouterr() == ("hello\n", "")


def test_a_command_that_ends_at_once_loses_nothing(server: FakeServer, boxlite: Boxlite, capfd: Capture) -> None:
    """Output, exit and close all come before the client has said a word."""

    def command(socket: Socket) -> None:
        for number in range(100):
            socket.stdout(b"%d\n" % number)
        socket.exit(4)

    server.on_run(command)
    assert boxlite("run", "alpine", "seq", "100") == 4
    assert capfd.readouterr().out.split() == [str(number) for number in range(100)]


def test_run_rm_removes_the_box(server: FakeServer, boxlite: Boxlite) -> None:
    server.on_run(ends_with(0))
    assert boxlite("run", "--rm", "alpine", "true") == 0
    assert server.lines[-1] == f"DELETE /v1/boxes/{ID}?force=true"
    assert "auto_remove" not in server.requests[0].body


def test_run_rm_keeps_the_exit_code_when_the_removal_fails(
    server: FakeServer, boxlite: Boxlite, capfd: Capture
) -> None:
    server.on_run(ends_with(7))
    server.on("DELETE", f"/v1/boxes/{ID}?force=true", (503, error("upstream_unavailable", "no worker")))
    assert boxlite("run", "--rm", "alpine", "false") == 7
    assert capfd.readouterr().err == f"Error: box {ID} was not removed: no worker\n"
    server.on("DELETE", f"/v1/boxes/{ID}?force=true", (404, error("not_found", "gone already")))
    assert boxlite("run", "--rm", "alpine", "false") == 7
    assert capfd.readouterr().err == ""


def test_run_detached_prints_the_id(server: FakeServer, boxlite: Boxlite, capfd: Capture) -> None:
    server.on_run(ends_with(0))
    assert boxlite("run", "-d", "--rm", "alpine", "sleep", "9") == 0
    assert capfd.readouterr().out == f"{ID}\n"
    assert server.lines == ["POST /v1/boxes", f"POST /v1/boxes/{ID}/start"]
    assert server.requests[0].body["detach"] is True
    assert server.requests[0].body["auto_remove"] is True


def test_stdin_of_any_size_comes_back_byte_for_byte(server: FakeServer, popen: Popen, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(10_000_000)
    big, out = tmp_path / "big", tmp_path / "out"
    big.write_bytes(data)

    def cat(socket: Socket) -> None:
        # Takes no input until its output is taken, so both directions must move at once.
        while isinstance(frame := socket.receive(), bytes):
            socket.stdout(frame)
        assert frame == EOF
        socket.exit(0)

    server.on_exec(cat)
    with big.open("rb") as source, out.open("wb") as sink:
        process = popen("exec", "-i", "web", "cat", stdin=source, stdout=sink)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert hashlib.sha256(out.read_bytes()).digest() == hashlib.sha256(data).digest()


def test_input_and_output_do_not_wait_for_each_other(server: FakeServer, popen: Popen) -> None:
    """A command that writes all before it reads, to a client that has plenty to send."""
    size = 8_000_000
    received: list[int] = []

    def command(socket: Socket) -> None:
        for _ in range(size // 50_000):
            socket.stdout(b"x" * 50_000)
        received.append(len(socket.stdin_until_eof()))
        socket.exit(0)

    server.on_exec(command)
    output, _ = popen("exec", "-i", "web", "--", "both").communicate(b"y" * size, timeout=60)
    assert len(output) == size
    assert received == [size]


def test_without_i_stdin_is_left_alone(server: FakeServer, popen: Popen) -> None:
    frames: list[object] = []

    def command(socket: Socket) -> None:
        frames.append(socket.receive())
        socket.exit(0)

    server.on_exec(command)
    reader, writer = os.pipe()
    os.write(writer, b"for the next command\n")
    process = popen("exec", "web", "cat", stdin=reader)
    assert process.wait(WAIT) == 0
    os.close(writer)
    assert frames == [EOF]
    assert os.read(reader, 100) == b"for the next command\n"
    os.close(reader)


def test_an_open_stdin_does_not_keep_the_client(server: FakeServer, popen: Popen) -> None:
    server.on_exec(ends_with(5))
    assert popen("exec", "-i", "web", "true").wait(WAIT) == 5


def test_endless_input_does_not_keep_the_client(server: FakeServer, popen: Popen) -> None:
    def command(socket: Socket) -> None:
        socket.receive()
        socket.stdout(b"enough")
        socket.exit(5)

    server.on_exec(command)
    with Path("/dev/zero").open("rb") as endless:
        process = popen("exec", "-i", "web", "true", stdin=endless)
        output, _ = process.communicate(timeout=WAIT)
    assert (process.returncode, output) == (5, b"enough")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_go_to_the_command(server: FakeServer, popen: Popen, number: signal.Signals) -> None:
    def command(socket: Socket) -> None:
        assert socket.receive() == EOF
        socket.stdout(b"ready")
        socket.exit(128 + numbers.get(timeout=WAIT))

    server.on_run(command)
    numbers = server.on_signal(ID)
    process = popen("run", "--rm", "alpine", "sleep", "99")
    assert process.stdout is not None
    assert process.stdout.read(5) == b"ready"
    process.send_signal(number)
    assert process.wait(WAIT) == 128 + number
    assert server.lines[-1] == f"DELETE /v1/boxes/{ID}?force=true"


def test_a_command_that_ignores_signals_does_not_hold_the_client(server: FakeServer, popen: Popen) -> None:
    frames: queue.Queue[object] = queue.Queue()

    def command(socket: Socket) -> None:
        while True:
            frames.put(socket.receive())

    server.on_run(command)
    numbers = server.on_signal(ID)
    process = popen("run", "--rm", "alpine", "stubborn")
    assert frames.get(timeout=WAIT) == EOF
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        assert numbers.get(timeout=WAIT) == 2
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT) == 130
    assert server.lines[-1] == f"DELETE /v1/boxes/{ID}?force=true"


def test_a_reader_that_leaves_ends_the_command_quietly(server: FakeServer, popen: Popen) -> None:
    def yes(socket: Socket) -> None:
        assert socket.receive() == EOF
        socket.stdout(b"y\n")
        with pytest.raises(StopIteration):
            socket.receive()

    server.on_exec(yes)
    numbers = server.on_signal("web")
    reader, writer = os.pipe()
    os.close(reader)
    process = popen("exec", "web", "yes", stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=WAIT)
    assert (process.returncode, errors) == (141, b"")
    assert numbers.get(timeout=WAIT) == signal.SIGPIPE


def test_a_broken_connection_is_taken_up_again(server: FakeServer, boxlite: Boxlite, capfd: Capture) -> None:
    eofs: list[object] = []

    def breaks(socket: Socket) -> None:
        eofs.append(socket.receive())
        socket.stdout(b"one ")
        socket.text(type="error", message="9 bytes are lost", dropped_bytes=9)
        socket.drop()

    def goes_on(socket: Socket) -> None:
        eofs.append(socket.receive())
        socket.stdout(b"two")
        socket.exit(6)

    # The server has not noticed yet that the first socket is dead when the second knocks.
    server.on_exec(breaks, (409, error("already_exists", "attached")), (503, b""), goes_on)
    assert boxlite("exec", "web", "sh") == 6
    assert capfd.readouterr() == ("one two", "boxlite: 9 bytes are lost\n")
    assert eofs == [EOF, EOF]
    attach = f"GET /v1/boxes/web/executions/{EXECUTION}/attach"
    assert server.lines[2:] == [attach, *[f"{attach}?received=13"] * 3]


def test_the_main_command_is_taken_up_again_and_not_started_twice(server: FakeServer, boxlite: Boxlite) -> None:
    server.on_run(lambda socket: socket.drop())
    server.on_attach(f"/v1/boxes/{ID}/executions/{EXECUTION}/attach", ends_with(2))
    assert boxlite("run", "alpine", "sh") == 2
    assert server.lines.count(f"POST /v1/boxes/{ID}/start") == 1


def test_lost_input_is_told(server: FakeServer, popen: Popen) -> None:
    def breaks(socket: Socket) -> None:
        assert socket.receive() == b"some"
        socket.drop()

    def goes_on(socket: Socket) -> None:
        rest = socket.stdin_until_eof()
        socket.stdout(rest)
        socket.exit(0)

    server.on_exec(breaks, goes_on)
    process = popen("exec", "-i", "web", "cat")
    assert process.stdin is not None
    process.stdin.write(b"some")
    process.stdin.flush()
    assert process.stderr is not None
    assert b"input may not have arrived" in process.stderr.readline()
    output, _ = process.communicate(b" more", timeout=WAIT)
    assert (process.returncode, output) == (0, b" more")


def test_an_execution_that_ended_meanwhile_gives_its_code(server: FakeServer, boxlite: Boxlite, capfd: Capture) -> None:
    server.on_exec(lambda socket: socket.drop(), (410, error("session_reaped", "reaped")))
    execution = f"/v1/boxes/web/executions/{EXECUTION}"
    server.on("GET", execution, (200, {"execution_id": EXECUTION, "status": "completed", "exit_code": 8}))
    assert boxlite("exec", "web", "sh") == 8
    assert "output is lost" in capfd.readouterr().err


def test_gives_up_in_the_end(server: FakeServer, boxlite: Boxlite, capfd: Capture) -> None:
    server.on_exec(lambda socket: socket.drop())
    execution = f"/v1/boxes/web/executions/{EXECUTION}"
    server.on("GET", execution, (200, {"execution_id": EXECUTION, "status": "running", "exit_code": None}))
    assert boxlite("exec", "web", "sh") == 125
    assert capfd.readouterr().err == "Error: lost the connection to the command, which may still be running\n"
    attached = [line for line in server.lines if "/attach" in line]
    assert len(attached) == 1 + len(stream.RECONNECT_DELAYS)


def test_a_silent_server_is_taken_for_dead(
    server: FakeServer, boxlite: Boxlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SILENCE", 0.2)

    def silent(socket: Socket) -> None:
        assert socket.receive() == EOF
        with pytest.raises(StopIteration):
            socket.receive()

    server.on_exec(silent, ends_with(3))
    assert boxlite("exec", "web", "sh") == 3


def test_attach_leaves_the_input_of_the_main_command_open(server: FakeServer, popen: Popen) -> None:
    frames: list[object] = []

    def command(socket: Socket) -> None:
        frames.append(socket.receive())
        socket.stdout(b"heard")
        socket.text(type="exit", exit_code=128 + signals.get(timeout=WAIT))
        frames.extend(until_the_client_leaves(socket))

    signals = server.on_signal("web")
    server.on("GET", "/v1/boxes/web", (200, BOX))
    server.on_attach("/v1/boxes/web/attach", command)
    process = popen("attach", "web")
    assert process.stdin is not None
    process.stdin.write(b"hello")
    process.stdin.flush()
    assert process.stdout is not None
    assert process.stdout.read(5) == b"heard"
    process.stdin.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT) == 143
    server.close()
    assert frames == [b"hello"]
    assert server.lines[:2] == ["GET /v1/boxes/web", "GET /v1/boxes/web/attach"]


def test_attach_without_stdin_says_so(server: FakeServer, boxlite: Boxlite, capfd: Capture) -> None:
    frames: list[object] = []

    def command(socket: Socket) -> None:
        socket.stdout(b"out\n")
        socket.text(type="exit", exit_code=4)
        frames.extend(until_the_client_leaves(socket))

    server.on("GET", "/v1/boxes/web", (200, BOX))
    server.on_attach(f"/v1/boxes/web/executions/{EXECUTION}/attach", command)
    server.on_attach("/v1/boxes/web/attach", command)
    assert boxlite("attach", "--no-stdin", "web", EXECUTION) == 4
    assert boxlite("attach", "--no-stdin", "web") == 4
    attached = [line for line in server.lines if "/attach" in line]
    assert attached == [
        f"GET /v1/boxes/web/executions/{EXECUTION}/attach?stdin=0",
        "GET /v1/boxes/web/attach?stdin=0",
    ]
    assert capfd.readouterr() == ("out\nout\n", "")
    server.close()
    assert frames == []


@pytest.mark.parametrize("status", ["stopped", "configured"])
def test_attach_to_a_box_that_does_not_run(server: FakeServer, boxlite: Boxlite, capfd: Capture, status: str) -> None:
    server.on("GET", "/v1/boxes/web", (200, BOX | {"status": status}))
    assert boxlite("attach", "web") == 125
    assert capfd.readouterr().err == f"Error: box 'web' is {status}; start it with 'boxlite start web'\n"


def test_tty_needs_a_terminal(server: FakeServer, popen: Popen) -> None:
    for line in ("run -it alpine sh", "exec -t web sh"):
        process = popen(*line.split())
        _, errors = process.communicate(timeout=WAIT)
        assert (process.returncode, errors) == (125, b"Error: the input device is not a TTY\n")
    assert not server.requests


@pytest.mark.parametrize("ending", ["exit", "drop"])
def test_tty_is_raw_sized_and_restored(server: FakeServer, popen: Popen, ending: str) -> None:
    frames: queue.Queue[object] = queue.Queue()

    def shell(socket: Socket) -> None:
        frames.put(socket.receive())
        socket.stdout(b"$ ")
        frames.put(socket.receive())
        frames.put(socket.receive())
        if ending == "exit":
            socket.exit(0)
        else:
            socket.drop()

    server.on_exec(shell, (410, error("session_reaped", "reaped")))
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (33, 101))
    before = termios.tcgetattr(slave)
    process = popen("exec", "-it", "web", "sh", stdin=slave, stdout=slave)
    assert frames.get(timeout=WAIT) == {"type": "resize", "cols": 101, "rows": 33}
    assert os.read(master, 2) == b"$ "
    assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    os.write(master, b"\x03")
    assert frames.get(timeout=WAIT) == b"\x03"
    termios.tcsetwinsize(slave, (40, 120))
    process.send_signal(signal.SIGWINCH)
    assert frames.get(timeout=WAIT) == {"type": "resize", "cols": 120, "rows": 40}
    assert process.wait(WAIT) == (0 if ending == "exit" else 125)
    assert termios.tcgetattr(slave) == before
    body = server.requests[0].body
    assert (body["tty"], body["cols"], body["rows"]) == (True, 101, 33)
    assert "stdin" not in body
    os.close(master)
    os.close(slave)
