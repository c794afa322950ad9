"""The process that keeps connections while the worker is away, and connections that change hands."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from boxlite_server.worker import holder as holder_module
from boxlite_server.worker.docker.stream import Stream
from boxlite_server.worker.holder import Holder, is_connected


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes that were started; they must have ended when the test is over."""
    made: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def noted(*args: object, **how: object) -> subprocess.Popen[bytes]:
        made.append(popen(*args, **how))  # type: ignore[call-overload]
        return made[-1]

    monkeypatch.setattr(holder_module.subprocess, "Popen", noted)
    yield made
    for process in made:
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        if process.poll() is None:
            process.kill()
            process.wait()
            pytest.fail("the holder does not end")


def pair() -> tuple[socket.socket, socket.socket]:
    """A connection: the engine's end and ours."""
    theirs, ours = socket.socketpair()
    theirs.settimeout(10)
    return theirs, ours


Started = list[subprocess.Popen[bytes]]


def test_what_was_kept_is_there_for_the_next_process(tmp_path: Path, started: Started) -> None:
    deep = tmp_path / ("long" * 30)
    deep.mkdir()
    first = Holder(deep)
    theirs, ours = pair()
    assert first.take("one") == []
    assert started == [], "nothing is started before there is something to keep"
    first.keep("one", ours.fileno())
    first.close()
    ours.close()
    theirs.sendall(b"said in between")
    second = Holder(deep)
    assert second.take("another") == []
    (descriptor,) = second.take("one")
    assert is_connected(descriptor)
    with socket.socket(fileno=descriptor) as again:
        assert again.recv(100) == b"said in between"
        again.sendall(b"heard")
    assert theirs.recv(100) == b"heard"
    assert len(started) == 1
    second.drop("one")
    assert theirs.recv(100) == b"", "nobody holds it any more"
    assert second.take("one") == []
    second.close()


def test_a_dead_holder_costs_no_more_than_it_held(tmp_path: Path, started: Started) -> None:
    holder = Holder(tmp_path)
    theirs, ours = pair()
    holder.keep("one", ours.fileno())
    (copy,) = holder.take("one")
    os.close(copy)
    started[0].send_signal(signal.SIGKILL)
    started[0].wait()
    holder.drop("one")
    assert holder.take("one") == []
    holder.keep("two", ours.fileno())
    (descriptor,) = holder.take("two")
    os.close(descriptor)
    assert len(started) == 2
    holder.drop("two")
    holder.close()
    theirs.close()
    ours.close()


def test_without_room_for_a_holder_the_worker_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours = pair()
    holder = Holder(tmp_path / "missing")
    holder.keep("one", ours.fileno())
    assert "would not survive" in caplog.text
    assert holder.take("one") == []
    holder.drop("one")
    theirs.close()
    assert not is_connected(ours.fileno())
    ours.close()


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


class TestFrames:
    """Of output, taken whole so that any other reader can go on."""

    @pytest.fixture
    def ends(self) -> Iterator[tuple[socket.socket, Stream]]:
        theirs, ours = pair()
        stream = Stream.inherited(ours.detach(), framed=True)
        yield theirs, stream
        theirs.close()

    def test_another_reader_goes_on_after_any_piece(self, ends: tuple[socket.socket, Stream]) -> None:
        theirs, stream = ends
        theirs.sendall(frame(1, b"one") + frame(2, b"two") + frame(1, b"cut off")[:10])
        assert [stream.read(), stream.read()] == [(1, b"one"), (2, b"two")]
        other = Stream.inherited(os.dup(stream.fileno()), framed=True)
        theirs.sendall(frame(1, b"cut off")[10:])
        assert other.read() == (1, b"cut off")
        theirs.close()
        assert other.read() is None
        assert stream.read() is None

    def test_pieces_of_all_sizes(self, ends: tuple[socket.socket, Stream]) -> None:
        theirs, stream = ends
        sizes = [1, 0, 5000, 32768, 1, 300_000, 2]
        sent = [os.urandom(size) for size in sizes]

        def send() -> None:  # the buffer between is smaller than what this writes
            for piece in sent:
                theirs.sendall(frame(1, piece))
            theirs.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        got = []
        while (piece := stream.read()) is not None:
            assert piece[0] == 1
            got.append(piece[1])
        sender.join()
        assert all(got)  # neighbours may be joined, and an empty one is none
        assert b"".join(got) == b"".join(sent)

    def test_what_is_out_of_step_is_read_away(self, ends: tuple[socket.socket, Stream]) -> None:
        theirs, stream = ends
        theirs.sendall(b"the rest of a frame that a dead process had begun to take")
        theirs.shutdown(socket.SHUT_WR)
        assert stream.read() is None
