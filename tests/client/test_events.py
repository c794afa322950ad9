"""`exec` without input and terminal: one request, its events, signals, and connections that break."""

from __future__ import annotations

import base64
import os
import queue
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from support.fake_server import EXECUTION, FakeServer, Socket, error

from boxlite_server.client import stream

Boxlite = Callable[..., int]
Popen = Callable[..., "subprocess.Popen[bytes]"]
Send = Callable[[str, object], None]
WAIT = 60  # seconds; far more than anything here takes
ATTACH = f"GET /v1/boxes/web/executions/{EXECUTION}/attach"


def said(data: bytes) -> dict[str, str]:
    return {"data": base64.b64encode(data).decode()}


def test_exec_is_one_request(server: FakeServer, boxlite: Boxlite, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    def command(send: Send) -> None:
        send("stdout", said(b"out\xff\x00\n"))
        send("stderr", said(b"err\n"))
        send("unknown", "what a later server may send")
        send("stdout", said(b"more"))
        send("exit", {"exit_code": 3, "duration_ms": 1, "error": "the box hit its memory limit"})

    server.on_events(command)
    assert boxlite("exec", "-e", "A=1", "-w", "/tmp", "-u", "me", "web", "--", "sh", "-c", "exit 3") == 3
    assert capfdbinary.readouterr() == (b"out\xff\x00\nmore", b"err\nboxlite: the box hit its memory limit\n")
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/boxes/web/run")
    assert request.body == {
        **{"command": "sh", "args": ["-c", "exit 3"], "encoding": "base64"},
        **{"env": {"A": "1"}, "working_dir": "/tmp", "user": "me"},
    }
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["idempotency-key"], "the command outlives a connection that breaks"


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (422, error("execution_failed", "command 'nope' not found in the box"), 127),
        (422, error("execution_failed", "command '/etc/passwd' cannot be executed: permission denied"), 126),
        (409, error("stopped", "the box does not resume"), 125),
    ],
)
def test_a_command_that_does_not_run_is_told(
    server: FakeServer, boxlite: Boxlite, status: int, body: Any, code: int
) -> None:
    server.on("POST", "/v1/boxes/web/run", (status, body))
    assert boxlite("exec", "web", "nope") == code
    assert server.lines == ["POST /v1/boxes/web/run"]


@pytest.mark.parametrize("last_words", ["error", "none"])
def test_a_broken_stream_is_taken_up_by_attaching(
    server: FakeServer, boxlite: Boxlite, capfd: pytest.CaptureFixture[str], last_words: str
) -> None:
    def breaks(send: Send) -> None:
        send("stdout", said("één ".encode()))
        send("lost", {"message": "9 bytes are lost", "dropped_bytes": 9})
        if last_words == "error":
            send("error", "worker one was lost")

    def goes_on(socket: Socket) -> None:
        assert socket.receive() == {"type": "stdin_eof"}
        socket.stdout(b"two")
        socket.exit(6)

    server.on_events(breaks, (503, b""), goes_on)
    assert boxlite("exec", "web", "sh") == 6
    assert capfd.readouterr() == ("één two", "boxlite: 9 bytes are lost\n")
    assert server.lines[1:] == [f"{ATTACH}?received=15"] * 2


def test_a_silent_server_is_left(server: FakeServer, boxlite: Boxlite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SILENCE", 0.2)
    left = queue.Queue[None]()

    def ends(socket: Socket) -> None:
        left.put(None)
        socket.exit(4)

    server.on_events(lambda send: left.get(timeout=WAIT), ends)
    assert boxlite("exec", "web", "sh") == 4


def test_an_end_that_was_missed_is_asked_for(server: FakeServer, boxlite: Boxlite) -> None:
    server.on_events(lambda send: None, (410, error("session_reaped", "reaped")))
    state = {"execution_id": EXECUTION, "status": "completed", "exit_code": 8}
    server.on("GET", f"/v1/boxes/web/executions/{EXECUTION}", (200, state))
    assert boxlite("exec", "web", "sh") == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_go_to_the_command(server: FakeServer, popen: Popen, number: signal.Signals) -> None:
    def command(send: Send) -> None:
        send("stdout", said(b"ready"))
        send("exit", {"exit_code": 128 + numbers.get(timeout=WAIT)})

    server.on_events(command)
    numbers = server.on_signal("web")
    process = popen("exec", "web", "sleep", "99")
    assert process.stdout is not None
    assert process.stdout.read(5) == b"ready"
    process.send_signal(number)
    assert process.wait(WAIT) == 128 + number


def test_a_command_that_ignores_signals_does_not_hold_the_client(server: FakeServer, popen: Popen) -> None:
    done = queue.Queue[None]()

    def stubborn(send: Send) -> None:
        send("stdout", said(b"ready"))
        done.get(timeout=WAIT)

    server.on_events(stubborn)
    numbers = server.on_signal("web")
    process = popen("exec", "web", "stubborn")
    assert process.stdout is not None
    assert process.stdout.read(5) == b"ready"
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        assert numbers.get(timeout=WAIT) == 2
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT) == 130
    done.put(None)


def test_a_reader_that_leaves_ends_the_command_quietly(server: FakeServer, popen: Popen) -> None:
    def yes(send: Send) -> None:
        send("stdout", said(b"y\n"))
        numbers.put(numbers.get(timeout=WAIT))

    server.on_events(yes)
    numbers = server.on_signal("web")
    reader, writer = os.pipe()
    os.close(reader)
    process = popen("exec", "web", "yes", stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=WAIT)
    assert (process.returncode, errors) == (141, b"")
    assert numbers.get(timeout=WAIT) == signal.SIGPIPE
